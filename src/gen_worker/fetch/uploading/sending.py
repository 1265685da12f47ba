"""The parts of files on their way: several at once, each tried again for as long as that may help."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.uploading.failure import UploadError
from gen_worker.fetch.uploading.journal import Journal
from gen_worker.fetch.uploading.pace import Pace, pause_after
from gen_worker.fetch.uploading.places import Place
from gen_worker.fetch.uploading.source import Source

_LOOK_S = 0.1  # how often who waits for its turn looks whether it is still wanted


class Turns:
    """So many may at once; the others wait."""

    def __init__(self, at_once: int) -> None:
        self._free = threading.BoundedSemaphore(at_once)

    @contextmanager
    def turn(self, cancel: Cancel) -> Iterator[None]:
        """Wait for a turn and have it; raise `ModelError` when canceled before."""
        while not self._free.acquire(timeout=_LOOK_S):
            cancel.raise_if_set()
        try:
            cancel.raise_if_set()
            yield
        finally:
            self._free.release()


class Sender:
    """Sends the parts of all files of a process."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._turns = Turns(pace.parts)

    def send(
        self, place: Place, source: Source, journal: Journal, cancel: Cancel, on_bytes: Callable[[int], None]
    ) -> list[str]:
        """Put those parts that the journal does not name, and return the ETags of all.

        Raises `UploadError` when one of them cannot be put; no other is on its way any more then.
        """
        starts = range(0, source.length, place.part_bytes)
        spans = {at: (start, min(start + place.part_bytes, source.length)) for at, start in enumerate(starts, 1)}
        missing = [number for number in spans if number not in journal.etags]
        on_bytes(sum(stop - start for number, (start, stop) in spans.items() if number in journal.etags))

        def put(number: int, cancel: Cancel) -> None:
            etag = self._put(place, number, source, spans[number], cancel, on_bytes)
            journal.note_part(number, etag)

        if len(missing) == 1:
            put(missing[0], cancel)
        elif missing:
            self._put_all(missing, put, cancel)
        return [journal.etags[number] for number in spans]

    def _put_all(self, missing: list[int], put: Callable[[int, Cancel], None], cancel: Cancel) -> None:
        at_once = min(self._pace.parts_of_a_file, len(missing))
        failures: list[BaseException] = []
        with cancel.part() as others, ThreadPoolExecutor(at_once, "gen-worker-part") as threads:

            def put_one(number: int) -> None:
                try:
                    put(number, others)
                except BaseException as error:
                    failures.append(error)  # before the others end for it, and fail as well
                    others.set()
                    raise

            puts = [threads.submit(put_one, number) for number in missing]
            try:
                for done in as_completed(puts):
                    done.result()
            except BaseException:
                others.set()
                threads.shutdown(wait=False, cancel_futures=True)
                if failures:
                    raise failures[0] from None
                raise

    def _put(
        self,
        place: Place,
        number: int,
        source: Source,
        span: tuple[int, int],
        cancel: Cancel,
        on_bytes: Callable[[int], None],
    ) -> str:
        failures = 0
        while True:
            part = source.part(*span, on_bytes)
            try:
                with self._turns.turn(cancel):
                    return place.put(number, part, cancel)
            except UploadError as error:
                part.take_back()
                failures += 1
                if not error.retryable or failures >= self._pace.part_tries:
                    raise
            cancel.wait(pause_after(failures, self._pace))
