"""Functions that do nothing: what they cost is what the product costs."""

import time

import msgspec

from gen_worker import RequestContext, endpoint


class Prompt(msgspec.Struct):
    prompt: str


class Blob(msgspec.Struct):
    data: bytes


@endpoint
def echo(ctx: RequestContext, payload: Prompt) -> Prompt:
    return payload


@endpoint
async def echo_async(ctx: RequestContext, payload: Prompt) -> Prompt:
    return payload


@endpoint
def echo_bytes(ctx: RequestContext, payload: Blob) -> Blob:
    return payload


@endpoint
def hold(ctx: RequestContext, payload: Prompt) -> Prompt:
    while not ctx.cancelled:
        time.sleep(0.002)
    return payload
