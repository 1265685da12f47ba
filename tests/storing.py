"""Uploads as tests make them: into a loopback store, with little waiting between tries."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.uploading.failure import UploadError
from gen_worker.fetch.uploading.journal import Journal
from gen_worker.fetch.uploading.pace import Pace
from gen_worker.fetch.uploading.uploader import Uploader
from gen_worker.testing import LoopbackStore
from gen_worker.wire.fetching import Destination, FetchReport, Upload, Uploaded, UploadFailed, Uploading
from gen_worker.wire.messages import Stored
from gen_worker_supervisor.files.uploads import Uploads
from tests.fetchers import Supervisor, config_for

REF = "outputs/r-1/film.bin"
SOON = Pace(
    shortest_pause_s=0.001, longest_pause_s=0.01, ask_again_s=0.001, poll_s=0.01, poll_for_s=1.0, quiet_s=5.0,
    connect_s=2.0, complete_s=5.0, farewell_s=1.0, object_part_bytes=1 << 20,
)  # fmt: skip


def content_of(size: int, seed: int = 0) -> bytes:
    """Return bytes of which no part is like another."""
    return random.Random(seed).randbytes(size)


def memory(content: bytes) -> int:
    """Return a memfd with this content, as a child hands it over."""
    fd = os.memfd_create("storing", os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    return fd


def noted_parts(pid: int) -> int:
    """Return how many parts the journals of a supervisor's uploads name."""
    links = [link for link in Path(f"/proc/{pid}/fd").iterdir() if "gen-worker-upload" in _target(link)]
    return sum(link.read_bytes().count(b'"part":') for link in links)


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:  # closed meanwhile
        return ""


def destination(store: LoopbackStore, **changes: Any) -> Destination:
    """Return where a job's files go."""
    known: dict[str, Any] = {
        "base_url": store.url,
        "token": store.token,
        "request_id": "r-1",
        "owner": "acme",
        **changes,
    }
    return Destination(attempt=1, **known)


class Here:
    """An uploader in this process, and what it told."""

    def __init__(self, store: LoopbackStore, pace: Pace = SOON, max_upload_bytes: int = 0) -> None:
        self._uploader = Uploader(FetchConfig(root="", hf_cache="", max_upload_bytes=max_upload_bytes), pace)
        self.store = store
        self.told: list[tuple[int, int]] = []

    def upload(
        self,
        content: bytes | int,
        *,
        ref: str = REF,
        length: int | None = None,
        mime_type: str = "",
        journal: Journal | None = None,
        cancel: Cancel | None = None,
        to: Destination | None = None,
    ) -> Stored:
        """Upload bytes, or what an open descriptor has."""
        fd = content if isinstance(content, int) else memory(content)
        size = length if length is not None else os.fstat(fd).st_size
        order = Upload(1, to or destination(self.store), ref, size, mime_type)
        try:
            return self._uploader.upload(order, fd, journal or Journal(None), cancel or Cancel(), self._tell)
        finally:
            if not isinstance(content, int):
                os.close(fd)

    def _tell(self, done: int, total: int) -> None:
        self.told.append((done, total))

    def refused(self, content: bytes | int, **options: object) -> UploadError:
        """Upload something, which must fail, and return why."""
        try:
            self.upload(content, **options)  # type: ignore[arg-type] # as `upload` has them
        except UploadError as error:
            return error
        raise AssertionError("it was stored")


class Storing(Supervisor):
    """The part of a supervisor that holds its fetcher and what is uploaded through it."""

    def __init__(self, folder: Path, **config: object) -> None:
        self.uploads = Uploads(lambda: self.process)
        self.ends: dict[int, Uploaded | UploadFailed] = {}
        self.progress: list[Uploading] = []
        super().__init__(config_for(folder, "", **config), folder / "log")

    def _on_report(self, report: FetchReport, descriptors: list[int]) -> None:
        super()._on_report(report, descriptors)
        if isinstance(report, Uploading):
            self.progress.append(report)
        self.uploads.on_report(report)

    def _on_lost(self) -> None:
        super()._on_lost()
        self.uploads.on_lost()

    def begin(self, to: Destination, content: bytes, ref: str = REF) -> int:
        """Order an upload and return its number."""

        def ended(report: Uploaded | UploadFailed) -> None:
            assert number not in self.ends
            self.ends[number] = report

        number = self.uploads.upload(to, ref, memory(content), len(content), "", ended)
        return number

    def end(self, number: int) -> Uploaded | UploadFailed:
        """Wait for the end of an upload."""
        return self.until(lambda: self.ends.get(number), what=f"the end of upload {number}")  # type: ignore[return-value]

    def close(self) -> None:
        """End the fetcher and let go of everything."""
        self.uploads.close()
        super().close()


@contextmanager
def storing(folder: Path, **config: object) -> Iterator[Storing]:
    """A supervisor's uploads, and its fetcher, which is started."""
    supervisor = Storing(folder, **config)
    try:
        supervisor.process.start()
        yield supervisor
    finally:
        supervisor.close()
