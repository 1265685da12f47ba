"""What a call gives, on stdout: the values alone, or events."""

import msgspec

from gen_worker.cli.binary import Folder
from gen_worker.cli.failure import Failure
from gen_worker.discovery.stdout import write_all


class Results:
    """Writes each item and output as one JSON document a line; whoever reads stdout finds nothing else there."""

    def __init__(self, descriptor: int = 1, *, pretty: bool = False) -> None:
        self.lost: OSError | None = None
        self._descriptor = descriptor
        self._pretty = pretty

    def value(self, _event: str, value: bytes) -> None:
        """Write an item or an output alone."""
        self._write(value)

    def event(self, event: str, value: bytes) -> None:
        """Write an item or an output as an event; an error is kept in `lost`, so that it is not taken for another's."""
        self._write(b'{"event":"%b","value":%b}' % (event.encode(), value))

    def failure(self) -> Exception:
        """Return what to raise because the results could not be written."""
        if self.lost is None or isinstance(self.lost, BrokenPipeError):
            return self.lost or BrokenPipeError()
        return Failure(f"the result cannot be written: {(self.lost.strerror or str(self.lost)).lower()}")

    def _write(self, document: bytes) -> None:
        if self._pretty:
            document = msgspec.json.format(document, indent=2)
        try:
            write_all(self._descriptor, document + b"\n")
        except OSError as error:
            self.lost = error
            raise


class SavedResults:
    """Writes values with their binary parts put into files."""

    def __init__(self, results: Results, folder: Folder) -> None:
        self._results = results
        self._folder = folder

    def value(self, event: str, value: bytes) -> None:
        """Write an item or an output with paths in the place of its binary parts."""
        try:
            saved = self._folder.take(value)
        except Failure:
            self._results.value(event, value)  # as it came: what could not be saved is not lost
            raise
        self._results.value(event, saved)

    def refuse_none(self) -> None:
        """Raise `Failure` when there was nothing binary."""
        if not self._folder.written:
            raise Failure("nothing in the output is binary, so `-o` wrote nothing", "the output is on stdout")
