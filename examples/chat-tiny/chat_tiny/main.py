"""Messages in, text out piece by piece, while the model says it."""

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from transformers import AutoModelForCausalLM, AutoTokenizer

from gen_worker import (
    HF,
    Done,
    IncrementalTokenDelta,
    RequestContext,
    Resources,
    ValidationError,
    endpoint,
    iter_transformers_text_deltas,
)

MODEL = HF("acme/tiny-chat")


class Message(msgspec.Struct):
    content: str
    role: Literal["system", "user", "assistant"] = "user"


class Conversation(msgspec.Struct):
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 64
    seed: int = 0


@endpoint(models={"model": MODEL, "tokenizer": MODEL}, resources=Resources(gpu=True))
class ChatTiny:
    def setup(self, model: AutoModelForCausalLM, tokenizer: AutoTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    def chat(self, ctx: RequestContext, payload: Conversation) -> Iterator[IncrementalTokenDelta | Done]:
        import torch

        prompt = self.tokenizer(prompt_of(payload.messages), return_tensors="pt").to(ctx.device)
        if prompt["input_ids"].shape[1] + payload.max_tokens > self.model.config.max_position_embeddings:
            raise ValidationError(f"the conversation is too long: {prompt['input_ids'].shape[1]} tokens")
        torch.manual_seed(payload.seed)
        generation = {**prompt, "max_new_tokens": payload.max_tokens, "do_sample": True}
        for text in iter_transformers_text_deltas(
            model=self.model,
            tokenizer=self.tokenizer,
            generation_kwargs=generation,
            cancel_checker=lambda: ctx.cancelled,
            decode_kwargs={"skip_special_tokens": True},
        ):
            yield IncrementalTokenDelta(text=text)
        yield Done()


def prompt_of(messages: list[Message]) -> str:
    """Write a conversation as the model was taught to read it; a real model's tokenizer has `apply_chat_template`."""
    return "".join(f"{each.role}: {each.content}\n" for each in messages) + "assistant: "
