"""Jobs, and a set-up, that break the CUDA context of their child as torch's exceptions tell it."""

import os
from pathlib import Path

import msgspec

from gen_worker import RequestContext, endpoint

ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later"


class AcceleratorError(RuntimeError):
    """As torch's."""


class Order(msgspec.Struct):
    hidden: bool = False


class Answer(msgspec.Struct):
    pid: int


@endpoint
def spoil(ctx: RequestContext, payload: Order) -> Answer:
    if payload.hidden:
        try:
            raise AcceleratorError(ILLEGAL)
        except RuntimeError as error:
            raise ValueError("could not paint") from error
    raise AcceleratorError(ILLEGAL)


@endpoint
def who(ctx: RequestContext, payload: Order) -> Answer:
    return Answer(os.getpid())


@endpoint
class Unlucky:
    def setup(self) -> None:
        mark = Path(os.environ["FAULTY_FOLDER"]) / "tried"
        if not mark.exists():
            mark.touch()
            raise AcceleratorError(ILLEGAL)

    def lucky(self, ctx: RequestContext, payload: Order) -> Answer:
        return Answer(os.getpid())
