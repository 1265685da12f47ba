"""The files that jobs save, where their orchestrator has a store for them: each becomes an upload of its job.

An upload lives no longer than its job. Never reads a file: that is for the fetcher.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from gen_worker.outputs import safe_ref
from gen_worker.wire.channel import close_all
from gen_worker.wire.fetching import Destination, Uploaded, UploadFailed
from gen_worker.wire.messages import Save, Saved
from gen_worker_supervisor.files.uploads import Uploads

TEXT_CHARS = 1024
OF_ONE_JOB = 64  # files that are on their way at once: each holds up to two descriptors of this process
TOO_MANY = f"a job saves at most {OF_ONE_JOB} files at once"
JOB_ENDED = "the job has ended"


class _Waiting(NamedTuple):
    """A child that waits for the end of an upload."""

    order: Save
    answer: Callable[[Saved], None]


class Storing:
    """The uploads of all jobs that live."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self._waiting: dict[int, dict[int, _Waiting]] = {}  # by the job's number, by the upload's

    def save(
        self, order: Save, destination: Destination, descriptors: list[int], answer: Callable[[Saved], None]
    ) -> None:
        """Store a job's file and pass `answer` what became of it, once; takes the descriptors over."""
        try:
            ref = safe_ref(order.ref)
            if len(self._waiting.get(order.job, ())) >= OF_ONE_JOB:
                raise ValueError(TOO_MANY)
            fd = _content(order, descriptors)
        except (OSError, ValueError) as error:
            close_all(descriptors)
            answer(Saved(order.job, order.token, error=str(error)[:TEXT_CHARS]))
            return
        number = -1

        def ended(report: Uploaded | UploadFailed) -> None:
            of_job = self._waiting.get(order.job, {})
            if of_job.pop(number, None) is None:
                return  # its job has ended
            if not of_job:
                del self._waiting[order.job]
            answer(saved(order, report))

        if order.repo:
            destination = msgspec.structs.replace(destination, repo=order.repo, opening=order.opening)
        number = self._uploads.upload(destination, ref, fd, order.length, "", ended, create=order.create)
        self._waiting.setdefault(order.job, {})[number] = _Waiting(order, answer)

    def forget(self, job: int) -> None:
        """A job has ended: nobody reads what it saves from now on."""
        for number, (order, answer) in self._waiting.pop(job, {}).items():
            self._uploads.abort(number)
            answer(Saved(order.job, order.token, error=JOB_ENDED))


def saved(order: Save, report: Uploaded | UploadFailed) -> Saved:
    """Return what a child is told of the end of an upload."""
    job, token = order.job, order.token
    if isinstance(report, Uploaded):
        stored = report.stored
        return Saved(job, token, "", stored.size_bytes, stored.sha256, stored=stored)
    return Saved(
        job,
        token,
        size_bytes=order.length,
        error=report.message[:TEXT_CHARS],
        failure="transfer" if report.kind == "canceled" else report.kind,
        retryable=report.retryable,
        limit_bytes=report.limit_bytes,
        status=report.status,
    )


def _content(order: Save, descriptors: list[int]) -> int:
    """Return a descriptor with what is saved; empties the list where it is taken from there."""
    if order.inline is None:
        if len(descriptors) != 1:
            raise ValueError("the content is not a file")
        return descriptors.pop()
    close_all(descriptors)
    descriptors.clear()
    if order.length != len(order.inline):
        raise ValueError(f"the content has {len(order.inline)} bytes, not {order.length}")
    fd = os.memfd_create("gen-worker-save", os.MFD_CLOEXEC)
    try:
        os.pwrite(fd, order.inline, 0)
    except OSError:
        os.close(fd)
        raise
    return fd
