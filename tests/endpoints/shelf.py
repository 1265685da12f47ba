"""Functions that need models and only read their files: nothing heavy is imported."""

import os
from pathlib import Path

import msgspec

from gen_worker import HF, RequestContext, Resources, endpoint


class Ask(msgspec.Struct):
    wait_for: str = ""
    """A file to wait for."""


class Read(msgspec.Struct):
    text: str
    pid: int
    setups: int


def read(folder: Path | str) -> str:
    """Return what a model says."""
    return (Path(folder) / "weights.txt").read_text()


@endpoint(model=HF("acme/first"))
class First:
    def setup(self, weights: Path) -> None:
        assert isinstance(weights, Path)
        self.weights = weights
        self.setups = 1

    def first(self, ctx: RequestContext, payload: Ask) -> Read:
        while payload.wait_for and not os.path.exists(payload.wait_for):
            ctx.raise_if_cancelled()
        return Read(read(self.weights), os.getpid(), self.setups)


@endpoint(model=HF("acme/second"))
class Second:
    def setup(self, weights: str) -> None:
        assert isinstance(weights, str)
        self.weights = weights

    def second(self, ctx: RequestContext, payload: Ask) -> Read:
        return Read(read(self.weights), os.getpid(), 1)


@endpoint(models={"weights": HF("acme/first")})
class Same:
    def setup(self, weights: str) -> None:
        self.weights = weights

    def same(self, ctx: RequestContext, payload: Ask) -> Read:
        return Read(read(self.weights), os.getpid(), 1)


@endpoint(model=HF("acme/first").allow_override("acme/*"))
def either(ctx: RequestContext, payload: Ask, weights: Path) -> Read:
    """A function endpoint, whose model a request may replace."""
    return Read(f"{ctx.models['weights']}: {read(weights)}", os.getpid(), 1)


@endpoint(model=HF("acme/first"))
class Bare:
    """A class without `setup()`: its model goes to its handler."""

    async def bare(self, ctx: RequestContext, payload: Ask, weights: str) -> Read:
        return Read(read(weights), os.getpid(), 1)


@endpoint(model=HF("acme/gated"))
class Gated:
    def setup(self, weights: Path) -> None:
        raise AssertionError("it cannot come this far")

    def gated(self, ctx: RequestContext, payload: Ask) -> Read:
        raise AssertionError("it cannot come this far")


@endpoint(model=HF("acme/first"), resources=Resources(gpu=True, vram_gb=24))
class Large:
    def setup(self, weights: Path) -> None:
        self.weights = weights

    def large(self, ctx: RequestContext, payload: Ask) -> Read:
        return Read(read(self.weights), os.getpid(), 1)
