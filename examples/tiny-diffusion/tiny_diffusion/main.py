"""A prompt in, a picture out: the binding says where the weights come from, the annotation what is made of them."""

from typing import Annotated

import msgspec
from diffusers import StableDiffusionXLPipeline

from gen_worker import HF, ImageAsset, RequestContext, Resources, endpoint


class Prompt(msgspec.Struct):
    prompt: str
    steps: Annotated[int, msgspec.Meta(ge=1, le=50)] = 4
    seed: int = 0


class Picture(msgspec.Struct):
    image: ImageAsset


@endpoint(model=HF("acme/tiny-sdxl"), resources=Resources(gpu=True))
class TinyDiffusion:
    def setup(self, pipeline: StableDiffusionXLPipeline) -> None:
        self.pipeline = pipeline  # on its device, in the dtype of its weights

    def paint(self, ctx: RequestContext, payload: Prompt) -> Picture:
        generator = ctx.generator(payload.seed)
        made = self.pipeline(
            payload.prompt, width=64, height=64, num_inference_steps=payload.steps, generator=generator
        )
        return Picture(ctx.save_image(made.images[0], format="png"))
