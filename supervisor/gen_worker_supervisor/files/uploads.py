"""The files on their way to the store of the platform, as the supervisor knows them: who waits for which.

The fetcher moves the bytes. One that dies is replaced, and the next one is given the same order, with the journal of
how far it was: memory that all of them write to, and that goes with the upload.
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from gen_worker.wire.channel import close_all
from gen_worker.wire.fetching import Abort, Destination, FetchReport, Upload, Uploaded, UploadFailed, with_token
from gen_worker_supervisor.files.fetching import FetcherProcess

TRIES = 3  # fetchers that may die of one upload


@dataclass(slots=True, eq=False)
class _UnderWay:
    order: Upload
    descriptors: list[int]  # the file, and the journal
    then: Callable[[Uploaded | UploadFailed], None]
    losses: int = 0
    aborted: bool = False


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
        *,
        create: bool = False,
    ) -> int:
        """Store the first `length` bytes of a descriptor, which is taken over; `then` gets the end, later, once.

        Returns the number to abort it by. Without a `mime_type` the content tells.
        """
        self._number += 1
        number = self._number
        under_way = _UnderWay(Upload(number, destination, ref, length, mime_type, create), [fd], then)
        self._under_way[number] = under_way
        with suppress(OSError):  # no descriptor is left: without a journal it begins anew
            under_way.descriptors.append(os.memfd_create("gen-worker-upload", os.MFD_CLOEXEC))
        self._order(under_way)
        return number

    def abort(self, number: int) -> None:
        """Stop an upload, which ends as `canceled` unless it has ended."""
        under_way = self._under_way.get(number)
        if under_way is not None and not under_way.aborted:
            under_way.aborted = True
            self._fetcher().send(Abort(number, "upload"))

    def renewed(self, destination: Destination, token: str) -> None:
        """A job has a fresh token: whoever takes over what is under way of it shows that."""
        for under_way in self._under_way.values():
            under_way.order.destination = with_token(under_way.order.destination, destination, token)

    def on_report(self, report: FetchReport) -> None:
        """Take what the fetcher says, as far as it is the end of an upload."""
        if isinstance(report, Uploaded | UploadFailed):
            self._end(report)

    def on_lost(self) -> None:
        """The fetcher has died: order what it was at from the next one."""
        for number, under_way in list(self._under_way.items()):
            under_way.losses += 1
            if under_way.aborted:
                self._end(UploadFailed(number, "canceled", "canceled", retryable=True))
            elif under_way.losses < TRIES:
                self._order(under_way)
            else:
                text = f"`{under_way.order.ref}` cannot be stored: {TRIES} fetchers died while they were at it"
                self._end(UploadFailed(number, "transfer", text, retryable=True))

    def _order(self, under_way: _UnderWay) -> None:
        try:
            self._fetcher().send(under_way.order, under_way.descriptors)
        except OSError as error:  # no descriptor is left
            text = f"`{under_way.order.ref}` cannot be stored: {(error.strerror or str(error)).lower()}"
            failed = UploadFailed(under_way.order.number, "transfer", text, retryable=True)
            asyncio.get_running_loop().call_soon(self._end, failed)

    def _end(self, report: Uploaded | UploadFailed) -> None:
        under_way = self._under_way.pop(report.number, None)
        if under_way is not None:
            close_all(under_way.descriptors)
            under_way.then(report)

    def close(self) -> None:
        """Let go of every file; calls nobody back."""
        for under_way in self._under_way.values():
            close_all(under_way.descriptors)
        self._under_way.clear()
