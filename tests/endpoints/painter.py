"""An endpoint for the commands that authors type: files in and out, progress, streams, and every way to end badly."""

import ctypes
import os
import signal
import time
from collections.abc import Iterator

import msgspec

from gen_worker import Asset, RequestContext, ValidationError, endpoint

PNG = b"\x89PNG\r\n\x1a\n"


class Words(msgspec.Struct):
    text: str = ""
    times: int = 1


class Line(msgspec.Struct):
    text: str


class Look(msgspec.Struct):
    image: Asset


class Picture(msgspec.Struct):
    image: bytes


class Kept(msgspec.Struct):
    image: Asset


@endpoint
def greet(ctx: RequestContext, payload: Words) -> Line:
    return Line(" ".join(["hello"] * payload.times + [payload.text]))


@endpoint
def look(ctx: RequestContext, payload: Look) -> Line:
    with open(payload.image, "rb") as file:
        return Line(f"{payload.image.ref} {payload.image.mime_type} {len(file.read())}")


@endpoint
def paint(ctx: RequestContext, payload: Words) -> Picture:
    return Picture(PNG + payload.text.encode())


@endpoint
def paint_all(ctx: RequestContext, payload: Words) -> Iterator[Picture]:
    for number in range(payload.times):
        yield Picture(PNG + str(number).encode())


@endpoint
def keep(ctx: RequestContext, payload: Words) -> Kept:
    return Kept(ctx.save_bytes("kept/cat.png", PNG))


@endpoint
def work(ctx: RequestContext, payload: Words) -> Line:
    print("printed by the author")
    ctx.log("at work")
    ctx.progress(0.5, stage="denoise")
    ctx.progress(2.0, stage="done")
    return Line("worked")


@endpoint
def wait(ctx: RequestContext, payload: Words) -> Line:
    ctx.log("waiting")
    while True:
        ctx.raise_if_cancelled()
        time.sleep(0.01)


@endpoint
def stuck(ctx: RequestContext, payload: Words) -> Line:
    ctx.log("waiting")
    while True:
        time.sleep(0.01)


@endpoint
def native(ctx: RequestContext, payload: Words) -> Line:
    """Wait in native code that no signal ends: this thread takes none."""
    libc = ctypes.CDLL(None)
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    ctx.log("waiting")
    libc.sleep(60)
    return Line("")


@endpoint
def refuse(ctx: RequestContext, payload: Words) -> Line:
    raise ValidationError("say please")


@endpoint
def leave(ctx: RequestContext, payload: Words) -> Line:
    os._exit(7)
