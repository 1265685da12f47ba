"""An endpoint for an orchestrator that a test plays: each function does one thing that a worker has to report.

`WIRED_FOLDER` is where it and the test meet: jobs leave what they did there and wait for files to appear.
"""

import asyncio
import ctypes
import os
import resource
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec

from gen_worker import (
    Asset,
    BatchItemDelta,
    CanceledError,
    Done,
    Error,
    FatalError,
    IncrementalTokenDelta,
    RequestContext,
    Resources,
    RetryableError,
    ValidationError,
    endpoint,
)
from gen_worker.api.errors import ArtifactTransferError, AuthError, OutputTooLargeError, ResourceError, WorkerError

FOLDER = Path(os.environ["WIRED_FOLDER"])
LIBC = ctypes.CDLL(None)
POLL_S = 0.002
HOARD: list[int] = []


class Order(msgspec.Struct):
    text: str = ""
    times: int = 0
    gate: str = ""


class Answer(msgspec.Struct):
    text: str
    pid: int


class Piece(msgspec.Struct):
    text: str
    number: int


class Source(msgspec.Struct):
    asset: Asset


class Measured(msgspec.Struct):
    path: str
    size: int
    mime_type: str


class Nested(msgspec.Struct):
    inner: list["Nested"] = []


class OutOfMemoryError(RuntimeError):
    """What a GPU library raises, by its name."""


def note(ctx: RequestContext) -> None:
    """Leave a line in `runs`: this request runs in this process."""
    with (FOLDER / "runs").open("ab", buffering=0) as runs:
        runs.write(f"{ctx.request_id} {os.getpid()}\n".encode())


def wait_for(gate: str) -> None:
    while gate and not (FOLDER / gate).exists():
        time.sleep(POLL_S)


@endpoint
def echo(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    return Answer(payload.text, os.getpid())


@endpoint(resources=Resources(gpu=True))
def on_device(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    if payload.gate:
        wait_for(payload.gate)
    return Answer(payload.text, os.getpid())


@endpoint
def read_depth(ctx: RequestContext, payload: Nested) -> Answer:
    return Answer("shallow", os.getpid())


@endpoint
def gated(ctx: RequestContext, payload: Order) -> Answer:
    """Wait for the gate, deaf to everything else."""
    note(ctx)
    wait_for(payload.gate)
    return Answer(payload.text, os.getpid())


@endpoint
def take_memory(ctx: RequestContext, payload: Order) -> Answer:
    """Take `times` MiB and wait for the gate with them."""
    note(ctx)
    taken = bytearray(b"x") * (payload.times << 20)
    wait_for(payload.gate)
    return Answer(str(len(taken)), os.getpid())


@endpoint
def polite(ctx: RequestContext, payload: Order) -> Answer:
    """Wait to be cancelled."""
    note(ctx)
    while not ctx.cancelled:
        time.sleep(POLL_S)
    ctx.log("cancelled")
    ctx.raise_if_cancelled()
    return Answer(payload.text, os.getpid())


@endpoint
async def polite_async(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    await asyncio.Event().wait()
    return Answer(payload.text, os.getpid())


@endpoint
def hang(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    LIBC.sleep(100_000)
    return Answer(payload.text, os.getpid())


@endpoint
async def gated_async(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    while not (FOLDER / payload.gate).exists():  # noqa: ASYNC110 - the test that opens it is another process
        await asyncio.sleep(POLL_S)
    return Answer(payload.text, os.getpid())


@endpoint
def burn(ctx: RequestContext, payload: Order) -> Answer:
    """Take memory and time that can be measured: `times` MiB, a tenth of a second."""
    note(ctx)
    taken = bytearray(b"x") * (payload.times << 20)
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        pass
    return Answer(str(len(taken)), os.getpid())


@endpoint
def steps(ctx: RequestContext, payload: Order) -> Answer:
    """Report `times` steps and as many log lines as fast as they come."""
    note(ctx)
    for number in range(payload.times):
        ctx.progress((number + 1) / payload.times, stage=payload.text)
        ctx.log(f"step {number}")
    wait_for(payload.gate)
    return Answer(payload.text, os.getpid())


@endpoint
def stream(
    ctx: RequestContext, payload: Order
) -> Iterator[IncrementalTokenDelta | BatchItemDelta | Piece | Done | Error]:
    """Yield one item of each kind, then end as `text` says."""
    note(ctx)
    yield IncrementalTokenDelta(text="grüße")
    yield BatchItemDelta(index=1, total=2, item_id="second", chunk=b"\x00\xff", content_type="image/png")
    yield Piece("piece", 3)
    wait_for(payload.gate)
    match payload.text:
        case "done":
            yield Done()
            yield Piece("never", 4)
        case "error":
            yield Error(message="no more items today")
        case "raise":
            raise ValidationError("a bad item")
        case "wrong":
            yield "no piece"  # type: ignore[misc]
        case "die":
            ctypes.string_at(0)


@endpoint
async def ticks(ctx: RequestContext, payload: Order) -> AsyncIterator[Piece]:
    """Yield `times` pieces, for ever where that is 0."""
    note(ctx)
    number = 0
    while number < payload.times or not payload.times:
        number += 1
        yield Piece(payload.text, number)
        await asyncio.sleep(0)


@endpoint
def die(ctx: RequestContext, payload: Order) -> Answer:
    note(ctx)
    wait_for(payload.gate)
    match payload.text:
        case "SIGSEGV":
            ctypes.string_at(0)
        case "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()
        case _:
            os._exit(7)
    return Answer("alive", os.getpid())


@endpoint
def hoard(ctx: RequestContext, payload: Order) -> Answer:
    """Leave this process no descriptor until it is to `give back`."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if payload.text == "give back":
        while HOARD:
            os.close(HOARD.pop())
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
        return Answer("", os.getpid())
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    try:
        while True:
            HOARD.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        return Answer(os.strerror(error.errno or 0), os.getpid())


@endpoint
def fail(ctx: RequestContext, payload: Order) -> Answer:
    """Raise what `text` names."""
    errors: dict[str, Callable[[], Exception]] = {
        "validation": lambda: ValidationError("too many steps: 900"),
        "value": lambda: ValueError("steps must be > 0"),
        "retryable": lambda: RetryableError("try again later"),
        "canceled": lambda: CanceledError("enough"),
        "fatal": lambda: FatalError("the weights are broken"),
        "resource": lambda: ResourceError("no disk"),
        "auth": lambda: AuthError("not allowed"),
        "worker": lambda: WorkerError("the worker"),
        "too_large": lambda: OutputTooLargeError(size_bytes=9, max_bytes=8),
        "transfer": lambda: ArtifactTransferError("store gone", provider="store", phase="upload", retryable=True),
        "transfer_final": lambda: ArtifactTransferError("store gone", provider="store", phase="upload"),
        "oom": lambda: OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        "other": lambda: KeyError("seed"),
        "lines": lambda: RuntimeError("the first line\nthe second line"),
        "long": lambda: ValidationError("x" * 5000),
        "secret": lambda: RuntimeError("GET https://store/x?X-Amz-Signature=abc123secret: Bearer eyJtopsecret refused"),
    }
    raise errors[payload.text]()


@endpoint
def repeat(ctx: RequestContext, payload: Order) -> Answer:
    return Answer(payload.text * payload.times, os.getpid())


@endpoint
def save(ctx: RequestContext, payload: Order) -> Asset:
    note(ctx)
    return ctx.save_bytes(payload.text, b"x" * payload.times)


@endpoint
def measure(ctx: RequestContext, payload: Source) -> Measured:
    note(ctx)
    path = Path(os.fspath(payload.asset))
    return Measured(str(path), path.stat().st_size, payload.asset.mime_type or "")


@endpoint(resources=Resources(libraries=("no_such_library_anywhere",)))
def ungranted(ctx: RequestContext, payload: Order) -> Answer:
    return Answer(payload.text, os.getpid())


@endpoint
class Prepared:
    """Ready once `WIRED_SETUP` appears, where that names a gate; broken where it says so."""

    def setup(self) -> None:
        how = os.environ.get("WIRED_SETUP", "")
        if how == "broken" and not (FOLDER / "mended").exists():
            raise LookupError("no weights today")
        if how not in ("", "broken"):
            wait_for(how)

    def prepared(self, ctx: RequestContext, payload: Order) -> Answer:
        note(ctx)
        return Answer(payload.text, os.getpid())
