"""The files on their way to the store of the platform, as the supervisor knows them: who waits for which.

The fetcher moves the bytes. One that dies is replaced, and what it was at is ordered from the next one.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from gen_worker.wire.fetching import Abort, Destination, FetchReport, Upload, Uploaded, UploadFailed, Uploading
from gen_worker_supervisor.fetching import FetcherProcess

TRIES = 3  # fetchers that may die of one upload


@dataclass(slots=True, eq=False)
class _UnderWay:
    order: Upload
    fd: int
    then: Callable[[Uploaded | UploadFailed], None]
    losses: int = 0


class Uploads:
    """Every upload that is under way."""

    def __init__(self, fetcher: Callable[[], FetcherProcess]) -> None:
        """Order from the fetcher that this returns; it is asked for when there is something to upload."""
        self._fetcher = fetcher
        self._under_way: dict[int, _UnderWay] = {}
        self._number = 0

    def upload(
        self,
        destination: Destination,
        ref: str,
        fd: int,
        length: int,
        mime_type: str,
        then: Callable[[Uploaded | UploadFailed], None],
    ) -> int:
        """Store the first `length` bytes of a descriptor, which is taken over; `then` gets the end, exactly once.

        Returns the number to abort it by.
        """
        self._number += 1
        order = Upload(self._number, destination, ref, length, mime_type)
        self._under_way[order.number] = _UnderWay(order, fd, then)
        self._fetcher().send(order, [fd])
        return order.number

    def abort(self, number: int) -> None:
        """Stop an upload, which ends as `canceled` unless it has ended."""
        if number in self._under_way:
            self._fetcher().send(Abort(number, "upload"))

    def on_report(self, report: FetchReport) -> None:
        """Take what the fetcher says, as far as it is of uploads."""
        if isinstance(report, Uploading):
            return
        if isinstance(report, Uploaded | UploadFailed):
            self._end(report)

    def on_lost(self) -> None:
        """The fetcher has died: order what it was at anew."""
        for number, under_way in list(self._under_way.items()):
            under_way.losses += 1
            if under_way.losses < TRIES:
                self._fetcher().send(under_way.order, [under_way.fd])
            else:
                text = f"{TRIES} fetchers in a row died while it was uploaded"
                self._end(UploadFailed(number, "transfer", text, True))

    def _end(self, report: Uploaded | UploadFailed) -> None:
        under_way = self._under_way.pop(report.number, None)
        if under_way is None:
            return
        os.close(under_way.fd)
        under_way.then(report)

    def close(self) -> None:
        """Let go of every file; calls nobody back."""
        for under_way in self._under_way.values():
            os.close(under_way.fd)
        self._under_way.clear()
