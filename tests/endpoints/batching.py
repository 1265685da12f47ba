"""An endpoint whose functions take batches; what a payload says decides what becomes of its place in one.

`FAULTY_FOLDER` is where it and the test meet.
"""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from gen_worker import Batch, BatchContext, RequestContext, RetryableError, ValidationError, endpoint

FOLDER = Path(os.environ["FAULTY_FOLDER"])
POLL_S = 0.002


class Word(msgspec.Struct):
    text: str
    gate: str = ""


class Answer(msgspec.Struct):
    text: str
    together: int
    pid: int = 0


def note(ctx: BatchContext) -> None:
    """Leave a line in `runs` for each request, and one in `calls` for the call."""
    names = [request.request_id for request in ctx.requests]
    with (FOLDER / "runs").open("ab", buffering=0) as runs:
        runs.write("".join(f"{name} {os.getpid()}\n" for name in names).encode())
    with (FOLDER / "calls").open("ab", buffering=0) as calls:
        calls.write(f"{len(names)}\n".encode())


def answers(ctx: BatchContext, payloads: Sequence[Word]) -> list[Answer | Exception]:
    note(ctx)
    for payload in payloads:
        while payload.gate and not (FOLDER / payload.gate).exists() and not ctx.cancelled:
            time.sleep(POLL_S)
        while payload.text == "linger" and len(payloads) == 1 and not (FOLDER / "lingered").exists():
            time.sleep(POLL_S)
        if payload.text == "raise":
            raise RuntimeError("nobody expected this word")
        if payload.text == "die":
            os.kill(os.getpid(), signal.SIGKILL)
    made: list[Answer | Exception] = []
    for request, payload in zip(ctx.requests, payloads, strict=True):
        if payload.text == "refuse":
            made.append(ValidationError("say please"))
        elif payload.text == "later":
            made.append(RetryableError("not today"))
        elif payload.text == "odd":
            made.append(None)  # type: ignore[arg-type]
        elif payload.text == "save":
            request.save_bytes(f"{request.request_id}.txt", request.request_id.encode())
            made.append(Answer("saved", len(payloads)))
        else:
            made.append(Answer(payload.text.upper(), len(payloads), os.getpid()))
    return made


@endpoint(batch=Batch(max_size=8, max_wait_ms=30))
def shout(ctx: BatchContext, payloads: list[Word]) -> list[Answer | Exception]:
    ctx.progress(0.5, "shouting")
    return answers(ctx, payloads)


@endpoint(batch=Batch(max_size=4, max_wait_ms=30))
class Choir:
    def setup(self) -> None:
        self.calls = 0

    async def sing(self, ctx: BatchContext, payloads: list[Word]) -> list[Answer]:
        note(ctx)
        self.calls += 1
        while any(payload.gate and not (FOLDER / payload.gate).exists() for payload in payloads):  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        return [Answer(payload.text.upper(), len(payloads)) for payload in payloads]


@endpoint(batch=Batch(max_size=8, max_wait_ms=30))
def miscount(ctx: RequestContext, payloads: list[Word]) -> list[Answer]:
    return [Answer(payload.text, 1) for payload in payloads[1:]]


@endpoint
def alone(ctx: RequestContext, payload: Word) -> Answer:
    return Answer(payload.text, 1)
