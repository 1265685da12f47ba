"""A function that goes on in steps until it is canceled: something to look at."""

import time

import msgspec

from gen_worker import RequestContext, endpoint

STEPS = 50


class Prompt(msgspec.Struct):
    prompt: str


@endpoint
def work(ctx: RequestContext, payload: Prompt) -> Prompt:
    step = 0
    while not ctx.cancelled:
        step += 1
        ctx.progress(step % STEPS / STEPS, stage=f"step {step % STEPS}/{STEPS}")
        time.sleep(0.25)
    return payload
