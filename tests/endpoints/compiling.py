"""An endpoint that compiles its model when it is first called."""

import os
import time

import msgspec
import torch

from gen_worker import RequestContext, endpoint


class Nothing(msgspec.Struct):
    pass


class Ran(msgspec.Struct):
    total: float
    seconds: float
    pid: int
    hits: int
    misses: int


def wave(value: torch.Tensor) -> torch.Tensor:
    return (value.sin() * 2 + value.cos().exp()).relu().sum()


compiled = torch.compile(wave)


@endpoint
def run(ctx: RequestContext, payload: Nothing) -> Ran:
    from torch._dynamo.utils import counters

    began = time.monotonic()
    total = float(compiled(torch.linspace(0, 1, 512)))
    found = {name: count for kind in counters.values() for name, count in kind.items()}
    hits = found.get("fxgraph_cache_hit", 0) + found.get("autograd_cache_hit", 0)
    misses = found.get("fxgraph_cache_miss", 0) + found.get("autograd_cache_miss", 0)
    return Ran(total, time.monotonic() - began, os.getpid(), hits, misses)
