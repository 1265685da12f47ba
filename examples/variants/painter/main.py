"""One handler, three functions: the same model in two precisions, and one that needs a larger device."""

import msgspec
from diffusers import StableDiffusionPipeline

from gen_worker import HF, ImageAsset, RequestContext, Resources, endpoint


class Prompt(msgspec.Struct):
    prompt: str
    seed: int = 0


class Picture(msgspec.Struct):
    image: ImageAsset
    dtype: str


@endpoint(
    resources=Resources(gpu=True),
    variants={
        "paint": HF("acme/tiny-sd15", dtype="bf16"),
        "paint-exactly": HF("acme/tiny-sd15", dtype="fp32"),
        "paint-large": (HF("acme/large-sd15"), Resources(vram_gb=24)),
    },
)
class Painter:
    def setup(self, pipeline: StableDiffusionPipeline) -> None:
        self.pipeline = pipeline

    def paint(self, ctx: RequestContext, payload: Prompt) -> Picture:
        made = self.pipeline(
            payload.prompt, width=64, height=64, num_inference_steps=2, generator=ctx.generator(payload.seed)
        )
        return Picture(ctx.save_image(made.images[0], format="png"), str(self.pipeline.dtype).removeprefix("torch."))
