"""What the producers' contexts ask of the platform: handed to the supervisor, which has somebody ask.

No address and no token is known here. Never reads a frame itself.
"""

import itertools
import os
import queue
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import msgspec

from gen_worker.api.context import CancelFlag
from gen_worker.api.errors import CanceledError
from gen_worker.api.platform import failure_of
from gen_worker.api.types import Compute
from gen_worker.wire.channel import close_all
from gen_worker.wire.messages import INLINE_LIMIT, Call, Called, Producing
from gen_worker.wire.platform import Answer, FetchRepo, Verb, answer_of, encoded

Told = tuple[Called, list[int]]


class Asking(Protocol):
    """A job that asks."""

    number: int
    cancel: CancelFlag
    saves: "set[queue.SimpleQueue[Any]]"
    """Gets None when the job is asked to end."""


class Calls:
    """The calls of all jobs of this child."""

    def __init__(self, send: Callable[[Call, Sequence[int]], None]) -> None:
        self._send = send
        self._tokens = itertools.count(1)
        self._waiting: dict[int, queue.SimpleQueue[Told | None]] = {}

    def called(self, answer: Called, descriptors: list[int]) -> None:
        """Pass an answer on, with its descriptors; called by whichever thread reads frames."""
        waiting = self._waiting.pop(answer.token, None)
        if waiting is None:
            close_all(descriptors)  # the job was asked to end meanwhile
        else:
            waiting.put((answer, descriptors))

    def ask(self, job: Asking, verb: Verb[Any], file: int | None) -> Told:
        """Ask, and wait for the answer; raise `CanceledError` once the job shall end."""
        token = next(self._tokens)
        answer: queue.SimpleQueue[Told | None] = queue.SimpleQueue()
        self._waiting[token] = answer
        job.saves.add(answer)
        try:
            if job.cancel.is_set():  # looked at after it can be told: no cancel comes in between
                raise CanceledError("canceled")
            self._send_call(job.number, token, verb, file)
            told = answer.get()
        finally:
            job.saves.discard(answer)
            self._waiting.pop(token, None)
        if told is None:
            _close_what_came(answer)
            raise CanceledError("canceled")
        return told

    def _send_call(self, job: int, token: int, verb: Verb[Any], file: int | None) -> None:
        name, content = type(verb).__name__, encoded(verb)
        files = [] if file is None else [file]
        if len(content) <= INLINE_LIMIT:
            self._send(Call(job, token, name, content, file is not None), files)
            return
        with os.fdopen(os.memfd_create("gen-worker-call", os.MFD_CLOEXEC), "wb") as memory:
            memory.write(content)
            memory.flush()
            self._send(Call(job, token, name, b"", file is not None), [memory.fileno(), *files])


class JobPlatform:
    """The platform as one job asks it; what comes with answers is kept until `close`."""

    def __init__(self, calls: Calls, job: Asking) -> None:
        self._calls = calls
        self._job = job
        self._held: list[int] = []

    def call(self, verb: Verb[Answer], file: int | None = None) -> Answer:
        """Ask, and wait for the answer; as `gen_worker.api.platform.Platform`."""
        answer, descriptors = self._calls.ask(self._job, verb, file)
        with ExitStack() as stack:
            stack.callback(close_all, descriptors)
            if answer.failure or answer.error:
                raise failure_of(answer.failure, answer.error, retryable=answer.retryable, status=answer.status)
            content = _content(descriptors.pop(0)) if answer.attached else answer.value
            if isinstance(verb, FetchRepo):
                self._held += descriptors  # the lease
                descriptors.clear()
            return answer_of(verb, content)

    def close(self) -> None:
        """Let go of what came with answers."""
        held, self._held = self._held, []
        close_all(held)


def _content(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as memory:
        memory.seek(0)
        return memory.read()


def _close_what_came(answer: "queue.SimpleQueue[Told | None]") -> None:
    """Close what came with an answer just when its job was asked to end."""
    while not answer.empty():
        told = answer.get_nowait()
        if told is not None:
            close_all(told[1])


def producer_fields(producing: Producing | None, platform: JobPlatform, *, remote: bool) -> Mapping[str, Any]:
    """Return what the context of a producer takes beside what every context takes."""
    given = producing or Producing()
    return {
        "compute": msgspec.convert(given.compute, Compute),
        "hf_token": given.hf_token,
        "job_id": given.job_id,
        "source_path": given.source_path or None,
        "destination_info": {"ref": given.destination_repo} if given.destination_repo else None,
        "platform": platform,
        "publishes": given.publishes,
        "remote": remote,
    }
