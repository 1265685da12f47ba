"""Lines of the log from where they are: the newest from the supervisor, older ones from the files of the run directory.

Knows nothing of how they are shown.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from gen_worker.cli.failure import Failure
from gen_worker.line_files import LineFileError, boot_of, files_in, lines_of, wait_until_written
from gen_worker.log_files import LEVELS, Line, decode, folder_in
from gen_worker.rundir import live_supervisors
from gen_worker.wire.messages import Level

if TYPE_CHECKING:
    from gen_worker.client import Client

PAGE = 5000
WAIT_S = 30.0
LAST_WORDS_S = 5.0  # what a supervisor that ends takes to write its last lines; longer only where its disk hangs


class Meant(NamedTuple):
    """Which lines are wanted; each empty value means all."""

    events: bool = False
    device: str = ""
    request_id: str = ""
    level: Level = "debug"
    grep: str = ""
    since: float | None = None
    last: int | None = None  # so many

    def fits(self, line: Line) -> bool:
        """Whether a line is one of them, however many there are."""
        if LEVELS[line.level] < LEVELS[self.level] or (self.events and not line.event):
            return False
        if self.device and self.device not in (line.child, line.source):
            return False
        if self.request_id and line.job != self.request_id:
            return False
        return self.grep.casefold() in line.message.casefold() and line.ts >= (self.since or 0.0)


class Told(NamedTuple):
    """A line as it came, and what it says."""

    text: bytes
    line: Line


def parsed(lines: Iterable[bytes]) -> Iterator[Told]:
    """Yield the lines that say something; those of other versions, and damaged ones, are left out."""
    for text in lines:
        try:
            yield Told(text, decode(text))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue


class Asked:
    """The lines that a supervisor remembers."""

    def __init__(self, client: "Client", meant: Meant) -> None:
        self._client = client
        self._meant = meant
        self.last = 0
        self.left_out = 0  # lines that were gone before they could be read

    def remembered(self) -> list[Told]:
        """Return those that it has now."""
        meant = self._meant
        newest = self._client.read(-1, limit=1).last
        if meant.last == 0:
            self.last = newest
            return []
        after = 0 if meant.last is None or meant.grep else -meant.last
        found: list[Told] = []
        self.last = 0
        while self.last < newest:
            before = self.last
            found += self._page(after, 0.0)
            if self.last == before:
                break  # that was all
            after = self.last
        self.left_out = 0
        return found

    def coming(self) -> Iterator[list[Told]]:
        """Yield the next ones as they come; raise `SupervisorUnreachable` once the supervisor has gone."""
        while True:
            yield self._page(self.last, WAIT_S)

    def _page(self, after: int, wait_s: float) -> list[Told]:
        meant = self._meant
        answer = self._client.read(
            after,
            wait_s=wait_s,
            events=meant.events,
            device=meant.device,
            request_id=meant.request_id,
            level=meant.level,
            limit=PAGE,
        )
        assert isinstance(answer.lines, bytes)  # the conversation opened it
        self.last, self.left_out = answer.last, answer.left_out
        return [told for told in parsed(answer.lines.splitlines(keepends=True)) if meant.fits(told.line)]

    def oldest(self) -> Line | None:
        """Return the oldest line that it remembers, of whatever kind."""
        answer = self._client.read(0, limit=1)
        assert isinstance(answer.lines, bytes)
        return next((told.line for told in parsed(answer.lines.splitlines(keepends=True))), None)


def kept(run_dir: Path, meant: Meant, boot_id: str = "", before: Line | None = None) -> list[Told]:
    """Return the lines in the files, the oldest first; raise `Failure` where they cannot be read.

    Of the supervisor with this `boot_id` they are those before a line, of others that are alive they are none.
    """
    others = {boot_of(each.boot_id) for each in live_supervisors(run_dir)} - {boot_of(boot_id)} if boot_id else set()
    found: list[Told] = []
    try:
        for file in files_in(folder_in(run_dir)):
            if file.boot in others:
                continue
            own = file.boot == boot_of(boot_id)
            for told in parsed(lines_of(file)):
                newer = before is not None and (told.line.seq >= before.seq if own else told.line.ts > before.ts)
                if not newer and meant.fits(told.line):
                    found.append(told)
    except LineFileError as error:
        raise _unreadable(error) from None
    return sorted(found, key=lambda told: told.line.ts)


def goes_back_to(run_dir: Path, oldest: Line | None) -> float | None:
    """Return the moment of the oldest line in the files, or of the oldest that a supervisor remembers; None: no line.

    Raises `Failure` where the files cannot be read.
    """
    try:
        firsts = [next(parsed(lines_of(file)), None) for file in files_in(folder_in(run_dir))]
    except LineFileError as error:
        raise _unreadable(error) from None
    moments = [told.line.ts for told in firsts if told is not None]
    return min(moments if oldest is None else [*moments, oldest.ts], default=None)


def _unreadable(error: LineFileError) -> Failure:
    return Failure(str(error), "`GEN_WORKER_RUN_DIR` says which run directory is read")


def last_words(run_dir: Path, meant: Meant, boot_id: str, after: int) -> list[Told]:
    """Return what a supervisor that ends, or has ended, told after a line, as far as its files have it."""
    folder, boot = folder_in(run_dir), boot_of(boot_id)
    try:
        wait_until_written([file for file in files_in(folder) if file.boot == boot], LAST_WORDS_S)
        own = [file for file in files_in(folder) if file.boot == boot]
        found = [told for file in own for told in parsed(lines_of(file))]
    except LineFileError:  # whoever asked for it says that the supervisor is gone, which is worse
        return []
    return [told for told in found if told.line.seq > after and meant.fits(told.line)]


def limited(found: list[Told], last: int | None) -> list[Told]:
    """Return so many of the last lines; None: all."""
    return found if last is None else found[len(found) - min(last, len(found)) :]
