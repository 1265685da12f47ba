"""Functions for one GPU, for two and for four: they compute nothing there, so they run on those that are not there."""

import os
import time
from pathlib import Path

import msgspec

from gen_worker import RequestContext, Resources, endpoint

FOLDER = Path(os.environ["FAULTY_FOLDER"])


class Order(msgspec.Struct):
    gate: str = ""


class Place(msgspec.Struct):
    text: str
    gpus: int
    pid: int


def here(ctx: RequestContext, payload: Order) -> Place:
    """Say which GPUs this is, once the gate is open."""
    with (FOLDER / "runs").open("ab", buffering=0) as runs:
        runs.write(f"{ctx.request_id} {os.getpid()}\n".encode())
    while payload.gate and not (FOLDER / payload.gate).exists():
        time.sleep(0.002)
    return Place(os.environ["CUDA_VISIBLE_DEVICES"], int(os.environ["GEN_WORKER_GPU_COUNT"]), os.getpid())


@endpoint(resources=Resources(gpu=True))
def single(ctx: RequestContext, payload: Order) -> Place:
    """Run on one GPU."""
    return here(ctx, payload)


@endpoint(resources=Resources(gpu_count=2))
def double(ctx: RequestContext, payload: Order) -> Place:
    """Run on two GPUs."""
    return here(ctx, payload)


@endpoint(resources=Resources(gpu_count=8))
def eightfold(ctx: RequestContext, payload: Order) -> Place:
    """Run on more GPUs than a small host has."""
    return here(ctx, payload)
