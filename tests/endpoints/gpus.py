"""Plain functions that want a GPU: they compute nothing there, so they run on those that are not there, too."""

import os
import time
from pathlib import Path

import msgspec

from gen_worker import RequestContext, Resources, endpoint

FOLDER = Path(os.environ["FAULTY_FOLDER"])


class Order(msgspec.Struct):
    gate: str = ""
    error: str = ""


class Place(msgspec.Struct):
    text: str


def note(ctx: RequestContext) -> None:
    """Leave a line in `runs`: this request runs in this process."""
    with (FOLDER / "runs").open("ab", buffering=0) as runs:
        runs.write(f"{ctx.request_id} {os.getpid()}\n".encode())


@endpoint(resources=Resources(gpu=True))
def where(ctx: RequestContext, payload: Order) -> Place:
    """Say which GPU this is, once the gate is open."""
    note(ctx)
    while payload.gate and not (FOLDER / payload.gate).exists():
        time.sleep(0.002)
    if payload.error:
        raise RuntimeError(payload.error)
    return Place(os.environ["CUDA_VISIBLE_DEVICES"])


@endpoint(resources=Resources(gpu=True))
def die(ctx: RequestContext, payload: Order) -> Place:
    """End the child."""
    note(ctx)
    os.abort()


@endpoint
def plain(ctx: RequestContext, payload: Order) -> Place:
    """Need no GPU."""
    note(ctx)
    return Place(os.environ["CUDA_VISIBLE_DEVICES"])
