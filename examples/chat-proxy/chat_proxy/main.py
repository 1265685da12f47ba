"""Chat with a language model that an engine server runs: many conversations at once in one child."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec

from chat_proxy.openai import OpenAi
from gen_worker import HF, IncrementalTokenDelta, RequestContext, Resources, endpoint
from gen_worker.api.payload_constraints import Clamp
from gen_worker.runtimes.server import ServerHandle


class Message(msgspec.Struct):
    content: str
    role: Literal["system", "user", "assistant"] = "user"


class Conversation(msgspec.Struct):
    messages: list[Message]
    max_tokens: Annotated[int, Clamp(1, 4096)] = 512
    temperature: Annotated[float, Clamp(0.0, 2.0)] = 0.7


class Reply(msgspec.Struct):
    text: str
    tokens: int


@endpoint(model=HF("Qwen/Qwen3-0.6B"), runtime="vllm", resources=Resources(vram_gb=6))
class Assistant:
    engine_args = ("--max-model-len", "8192", "--served-model-name", "assistant")

    def setup(self, model: str, engine: ServerHandle) -> None:
        self.api = OpenAi(engine.base_url)

    async def chat(self, ctx: RequestContext, payload: Conversation) -> Reply:
        completion = await self.api.complete(_request(payload))
        text = completion["choices"][0]["message"]["content"]
        return Reply(text, completion["usage"]["completion_tokens"])

    async def stream(self, ctx: RequestContext, payload: Conversation) -> AsyncIterator[IncrementalTokenDelta]:
        async for event in self.api.stream(_request(payload)):
            if text := event["choices"][0]["delta"].get("content"):
                yield IncrementalTokenDelta(text=text)


def _request(payload: Conversation) -> dict[str, Any]:
    return {"model": "assistant", **msgspec.to_builtins(payload)}
