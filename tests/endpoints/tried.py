"""What the test client of authors is tried on: every shape of a handler, files, models, and what goes wrong."""

import asyncio
import ctypes
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec

from gen_worker import (
    HF,
    Asset,
    Batch,
    BatchContext,
    CanceledError,
    ConversionContext,
    RequestContext,
    RetryableError,
    ValidationError,
    endpoint,
    io,
)
from gen_worker.api.types import SourceRepo


class Person(msgspec.Struct):
    name: str
    times: int = 1
    raw: bytes = b""


class Line(msgspec.Struct):
    text: str


class File(msgspec.Struct):
    asset: Asset


class Files(msgspec.Struct):
    assets: list[Asset]


class Number(msgspec.Struct):
    value: int


@endpoint
class Greeter:
    living = 0

    def setup(self) -> None:
        Greeter.living += 1

    def shutdown(self) -> None:
        Greeter.living -= 1

    def greet(self, ctx: RequestContext, payload: Person) -> Line:
        if not payload.name:
            raise ValidationError("nobody to greet")
        ctx.log(f"greeting {payload.name}", "warning")
        ctx.progress(0.5, "greeting")
        return Line(" ".join(["hello"] * payload.times + [payload.name, payload.raw.decode()]).strip())

    async def wait(self, ctx: RequestContext, payload: Person) -> Line:
        await asyncio.sleep(30)
        return Line("never")

    def poll(self, ctx: RequestContext, payload: Person) -> Line:
        while True:
            ctx.raise_if_cancelled("told to end")

    def refuse(self, ctx: RequestContext, payload: Person) -> Line:
        raise {"try again": RetryableError, "end": CanceledError}.get(payload.name, KeyError)(payload.name)

    def crash(self, ctx: RequestContext, payload: Person) -> Line:
        ctypes.string_at(0)
        return Line("never")

    def lie(self, ctx: RequestContext, payload: Person) -> Number:
        return Number(payload.name)  # type: ignore[arg-type]


@endpoint
async def count_up(ctx: RequestContext, payload: Person) -> AsyncIterator[Line]:
    for number in range(payload.times):
        yield Line(str(number))
        await asyncio.sleep(0)


@endpoint
def count_down(ctx: RequestContext, payload: Person) -> Iterator[Line]:
    for number in range(payload.times, 0, -1):
        yield Line(str(number))


@endpoint
def keep(ctx: RequestContext, payload: Person) -> File:
    return File(ctx.save_bytes(f"{payload.name}.txt", payload.name.encode()))


@endpoint
def read(ctx: RequestContext, payload: Files) -> Line:
    return Line(",".join(io.read_bytes(asset).decode() for asset in payload.assets))


@endpoint(models={"weights": HF("acme/weights"), "voice": HF("acme/voice")})
class Modelled:
    def setup(self, weights: Any, voice: Path) -> None:
        self.weights, self.voice = weights, voice

    def speak(self, ctx: RequestContext, payload: Person) -> Line:
        return Line(f"{self.weights(payload.name)} {self.voice.name} {ctx.models['weights']}")


@endpoint(model=HF("acme/weights"))
def whisper(ctx: RequestContext, payload: Person, weights: Any) -> Line:
    return Line(weights(payload.name))


@endpoint(batch=Batch(max_size=4, max_wait_ms=1.0))
def lengths(ctx: BatchContext, payloads: list[Person]) -> list[Number]:
    return [Number(len(payload.name)) for payload in payloads]


class Conversion(msgspec.Struct):
    source: SourceRepo


@endpoint(kind="conversion")
def convert(ctx: ConversionContext, payload: Conversion) -> Line:
    ctx.publish_repo_revision(destination_repo="acme/out")
    return Line(" ".join(sorted(file.name for file in Path(ctx.source_path or "").iterdir())))
