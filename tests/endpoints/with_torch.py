"""An endpoint that needs torch, as most do."""

import os

import msgspec
import torch

from gen_worker import RequestContext, endpoint


class Size(msgspec.Struct):
    rows: int = 64


class Sum(msgspec.Struct):
    value: float
    pid: int
    threads: int


@endpoint
def multiply(ctx: RequestContext, payload: Size) -> Sum:
    ones = torch.ones(payload.rows, payload.rows)
    return Sum(float((ones @ ones).sum()), os.getpid(), torch.get_num_threads())
