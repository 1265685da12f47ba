"""The same nothing behind an import that takes seconds: what the zygote is for."""

import msgspec
import torch

from gen_worker import RequestContext, endpoint


class Prompt(msgspec.Struct):
    prompt: str


@endpoint
def echo(ctx: RequestContext, payload: Prompt) -> Prompt:
    return Prompt(payload.prompt if torch is not None else "")
