"""Two tiny pipelines, each with a class of its own."""

import os

import msgspec
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from gen_worker import HF, RequestContext, Resources, endpoint


class Prompt(msgspec.Struct):
    prompt: str = "a cat"
    steps: int = 1


class Made(msgspec.Struct):
    latents: list[float]
    """Some of them; the weights, the prompt and the seed determine them."""

    pid: int


def made(ctx: RequestContext, pipeline: object, payload: Prompt) -> Made:
    """Return what a pipeline makes of a prompt."""
    latents = pipeline(  # type: ignore[operator]
        payload.prompt,
        width=64,
        height=64,
        num_inference_steps=payload.steps,
        generator=ctx.generator(0),
        output_type="latent",
    ).images
    return Made(latents.flatten()[:32].tolist(), os.getpid())


@endpoint(model=HF("acme/small"), resources=Resources(gpu=True))
class Small:
    def setup(self, pipeline: StableDiffusionPipeline) -> None:
        self.pipeline = pipeline

    def small(self, ctx: RequestContext, payload: Prompt) -> Made:
        return made(ctx, self.pipeline, payload)


@endpoint(model=HF("acme/xl"), resources=Resources(gpu=True))
class Large:
    def setup(self, pipeline: StableDiffusionXLPipeline) -> None:
        self.pipeline = pipeline

    def xl(self, ctx: RequestContext, payload: Prompt) -> Made:
        return made(ctx, self.pipeline, payload)


@endpoint(model=HF("acme/xl"), resources=Resources(gpu=True))
class Mistaken:
    def setup(self, pipeline: StableDiffusionPipeline) -> None:
        raise AssertionError("it cannot come this far")

    def mistaken(self, ctx: RequestContext, payload: Prompt) -> Made:
        raise AssertionError("it cannot come this far")
