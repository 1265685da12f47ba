"""The files that jobs save: handed to the supervisor, which keeps them. Never reads a frame itself."""

import itertools
import os
import queue
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gen_worker.api.context import SavedFile
from gen_worker.api.errors import ArtifactTransferError, AuthError, CanceledError, OutputTooLargeError
from gen_worker.outputs import ExistsError, Repository
from gen_worker.wire.messages import INLINE_LIMIT, Save, Saved
from gen_worker_child.platform import Asking


class Saves:
    """The files of all jobs of this child that are on their way."""

    def __init__(self, send: Callable[[Save, Sequence[int]], None]) -> None:
        self._send = send
        self._tokens = itertools.count(1)
        self._waiting: dict[int, queue.SimpleQueue[Saved | None]] = {}

    def saved(self, answer: Saved) -> None:
        """Pass the answer to a `Save` on; called by whichever thread reads frames."""
        waiting = self._waiting.pop(answer.token, None)
        if waiting is not None:
            waiting.put(answer)

    def save(
        self,
        job: Asking,
        ref: str,
        data: bytes | None,
        path: Path | None,
        create: bool = False,
        into: Repository | None = None,
    ) -> SavedFile:
        """Hand a file to the supervisor and wait until it is kept; raise `CanceledError` once the job shall end."""
        repo, opening = ("", {}) if into is None else into
        token = next(self._tokens)
        answer: queue.SimpleQueue[Saved | None] = queue.SimpleQueue()
        self._waiting[token] = answer
        job.saves.add(answer)
        try:
            if job.cancel.is_set():  # looked at after it can be told: no cancel comes in between
                raise CanceledError("canceled")
            self._hand_over(Save(job.number, token, ref, 0, None, create, repo, dict(opening)), data, path)
            saved = answer.get()
        finally:
            job.saves.discard(answer)
            self._waiting.pop(token, None)
        if saved is None:
            raise CanceledError("canceled")
        return _kept(ref, saved)

    def _hand_over(self, order: Save, data: bytes | None, path: Path | None) -> None:
        if data is not None:
            order.length = len(data)
        if data is not None and len(data) <= INLINE_LIMIT:
            order.inline = bytes(data)
            self._send(order, [])
        elif data is not None:
            with _memory_file(data) as file:
                self._send(order, [file.fileno()])
        else:
            assert path is not None
            with path.open("rb") as file:
                order.length = path.stat().st_size
                self._send(order, [file.fileno()])


class JobSink:
    """Where a job's context leaves its files: with the supervisor."""

    def __init__(self, saves: Saves, job: Asking) -> None:
        self._saves = saves
        self._job = job

    def save(
        self,
        ref: str,
        *,
        data: bytes | None,
        path: Path | None,
        create: bool = False,
        into: Repository | None = None,
    ) -> SavedFile:
        """Have a file kept, as `Saves.save`."""
        return self._saves.save(self._job, ref, data, path, create, into)


def _kept(ref: str, saved: Saved) -> SavedFile:
    """Return what became of a file, or raise why it was not kept."""
    match saved.failure:
        case "auth":
            raise AuthError(saved.error)
        case "transfer":
            raise ArtifactTransferError(saved.error, "store", "upload", saved.retryable, saved.status or None)
        case "exists":
            raise ExistsError(f"`{ref}` exists")
        case "too_large":
            raise OutputTooLargeError(size_bytes=saved.size_bytes, max_bytes=saved.limit_bytes, message=saved.error)
    if saved.error:
        raise OSError(f"`{ref}` was not saved: {saved.error}")
    stored = saved.stored
    if stored is None:
        return SavedFile(saved.local_path, saved.size_bytes, saved.sha256)
    return SavedFile(
        "",
        stored.size_bytes,
        stored.sha256,
        ref=stored.ref,
        owner=stored.owner,
        mime_type=stored.mime_type,
        blake3=stored.blake3,
        media_id=stored.media_id,
    )


def _memory_file(data: bytes) -> Any:
    file = os.fdopen(os.memfd_create("gen-worker-save", os.MFD_CLOEXEC), "r+b", buffering=0)
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
    return file
