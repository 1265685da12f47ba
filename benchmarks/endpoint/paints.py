"""A tiny pipeline: what a crash costs a model that is resident."""

import msgspec
from diffusers import StableDiffusionXLPipeline

from gen_worker import HF, RequestContext, Resources, endpoint


class Prompt(msgspec.Struct):
    prompt: str


class Painted(msgspec.Struct):
    width: int


@endpoint(model=HF("acme/tiny-sdxl"), resources=Resources(gpu=True))
class Painter:
    def setup(self, pipeline: StableDiffusionXLPipeline) -> None:
        self.pipeline = pipeline

    def paint(self, ctx: RequestContext, payload: Prompt) -> Painted:
        made = self.pipeline(payload.prompt, width=64, height=64, num_inference_steps=2, generator=ctx.generator(0))
        return Painted(made.images[0].width)
