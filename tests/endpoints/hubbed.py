"""Functions whose models are the platform's: an orchestrator says which files they have. Nothing heavy is imported."""

import os
import time
from pathlib import Path

import msgspec

from gen_worker import Hub, RequestContext, endpoint


class Ask(msgspec.Struct):
    wait_for: str = ""
    """A file to wait for."""


class Read(msgspec.Struct):
    text: str
    pid: int
    models: dict[str, str] = {}


def read(folder: Path, payload: Ask) -> Read:
    """Return what a model says, once the file is there."""
    while payload.wait_for and not os.path.exists(payload.wait_for):
        time.sleep(0.002)
    return Read((folder / "weights.txt").read_text(), os.getpid())


@endpoint(model=Hub("acme/first"))
class First:
    def setup(self, weights: Path) -> None:
        self.weights = weights

    def first(self, ctx: RequestContext, payload: Ask) -> Read:
        return read(self.weights, payload)


@endpoint(models={"weights": Hub("acme/second", tag="beta", flavor="fp8"), "vae": Hub("acme/vae")})
class Second:
    def setup(self, weights: Path, vae: Path) -> None:
        self.weights = weights
        self.vae = vae

    def second(self, ctx: RequestContext, payload: Ask) -> Read:
        found = read(self.weights, payload)
        return Read(f"{found.text} {read(self.vae, payload).text}", found.pid, ctx.models)


@endpoint(model=Hub("acme/broken"))
class Broken:
    def setup(self, weights: Path) -> None:
        raise ValueError("this model does not suit me")

    def broken(self, ctx: RequestContext, payload: Ask) -> Read:
        raise AssertionError("it was never set up")


@endpoint(model=Hub("acme/free").allow_override("acme/*"))
def free(ctx: RequestContext, payload: Ask, weights: Path) -> Read:
    return read(weights, payload)
