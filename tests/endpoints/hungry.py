"""A pipeline whose jobs say how much room they need, beside one that is in the way."""

import os
import threading
from collections.abc import AsyncIterator

import msgspec
from diffusers import StableDiffusionPipeline

from gen_worker import HF, RequestContext, Resources, endpoint
from gen_worker.models.placement import rung_of


class OutOfMemoryError(RuntimeError):
    """As torch's: known by its name."""


class Wish(msgspec.Struct):
    enough: str = "off"
    """The rung from which on there is room; `never`: on none."""


class Made(msgspec.Struct):
    rung: str
    calls: int
    """Of the handler, for this job."""

    pid: int


@endpoint(model=HF("acme/small"), resources=Resources(gpu=True))
class Hungry:
    def setup(self, pipeline: StableDiffusionPipeline) -> None:
        self.pipeline = pipeline
        self.calls: dict[str, int] = {}

    def eat(self, ctx: RequestContext, payload: Wish) -> Made:
        calls = self.calls[ctx.request_id] = self.calls.get(ctx.request_id, 0) + 1
        rung = str(rung_of(self.pipeline))
        rungs = ["off", "vae_only", "layerwise_fp8", "model_offload", "group_offload", "never"]
        if rungs.index(rung) < rungs.index(payload.enough):
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return Made(rung, calls, os.getpid())


@endpoint(model=HF("acme/other"), resources=Resources(gpu=True))
class Other:
    def setup(self, pipeline: StableDiffusionPipeline) -> None:
        self.pipeline = pipeline

    def rest(self, ctx: RequestContext, payload: Wish) -> Made:
        return Made(str(rung_of(self.pipeline)), 1, os.getpid())

    async def shutdown(self) -> None:
        self.pipeline = None


@endpoint(model=HF("acme/third"), resources=Resources(gpu=True))
class Third:
    def setup(self, pipeline: StableDiffusionPipeline) -> None:
        self.thread = threading.current_thread()

    def wait(self, ctx: RequestContext, payload: Wish) -> Made:
        return Made("off", 1, os.getpid())

    def shutdown(self) -> None:
        same = threading.current_thread() is self.thread
        print(f"shut down where it was set up: {same}", flush=True)


class _Asynchronous:
    def setup(self, pipeline: StableDiffusionPipeline) -> None:
        self.calls: dict[str, int] = {}

    def _count(self, ctx: RequestContext) -> Made:
        calls = self.calls[ctx.request_id] = self.calls.get(ctx.request_id, 0) + 1
        if calls <= 2:  # there is room when what was kept for later, and then everybody else, has gone
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return Made("off", calls, os.getpid())


@endpoint(model=HF("acme/small"), resources=Resources(gpu=True))
class OnTheDevice(_Asynchronous):
    async def sip(self, ctx: RequestContext, payload: Wish) -> Made:
        return self._count(ctx)

    async def drink(self, ctx: RequestContext, payload: Wish) -> AsyncIterator[Made]:
        yield self._count(ctx)


@endpoint(model=HF("acme/small"))
class OnTheLoop(_Asynchronous):
    async def nibble(self, ctx: RequestContext, payload: Wish) -> Made:
        return self._count(ctx)
