"""Two models that need not fit on one device together: whoever is asked gets its room, the other one makes it."""

from typing import Any

import msgspec
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from gen_worker import HF, ImageAsset, RequestContext, Resources, endpoint


class Prompt(msgspec.Struct):
    prompt: str
    seed: int = 0


class Picture(msgspec.Struct):
    image: ImageAsset


@endpoint(model=HF("acme/tiny-sd15"), resources=Resources(gpu=True))
class Draft:
    def setup(self, pipeline: StableDiffusionPipeline) -> None:
        self.pipeline = pipeline

    def draft(self, ctx: RequestContext, payload: Prompt) -> Picture:
        return painted(self.pipeline, ctx, payload)


@endpoint(model=HF("acme/tiny-sdxl"), resources=Resources(gpu=True))
class Final:
    def setup(self, pipeline: StableDiffusionXLPipeline) -> None:
        self.pipeline = pipeline

    def final(self, ctx: RequestContext, payload: Prompt) -> Picture:
        return painted(self.pipeline, ctx, payload)


def painted(pipeline: Any, ctx: RequestContext, order: Prompt) -> Picture:
    made = pipeline(order.prompt, width=64, height=64, num_inference_steps=2, generator=ctx.generator(order.seed))
    return Picture(ctx.save_image(made.images[0], format="png"))
