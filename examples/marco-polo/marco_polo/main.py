"""Every shape of handler, without a model: sync, async, streaming, and one that saves a file."""

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec

from gen_worker import Asset, RequestContext, ValidationError, endpoint


class Call(msgspec.Struct):
    text: str


class Swim(msgspec.Struct):
    text: str
    seconds: float = 15.0


class Answer(msgspec.Struct):
    text: str


class Postcard(msgspec.Struct):
    card: Asset


@endpoint
class MarcoPolo:
    def marco_polo(self, ctx: RequestContext, payload: Call) -> Answer:
        answer = reply(payload.text)
        time.sleep(0.3)
        return Answer(answer)

    async def marco_polo_slow(self, ctx: RequestContext, payload: Swim) -> Answer:
        answer = reply(payload.text)
        ends_at = time.monotonic() + payload.seconds
        while (left := ends_at - time.monotonic()) > 0:
            ctx.raise_if_cancelled()
            ctx.progress(1 - left / payload.seconds, "swimming")
            await asyncio.sleep(min(left, 0.1))
        return Answer(answer)

    async def marco_polo_stream(self, ctx: RequestContext, payload: Call) -> AsyncIterator[Answer]:
        answer = reply(payload.text)
        for length in range(1, len(answer) + 1):
            ctx.raise_if_cancelled()
            yield Answer(answer[:length])
            await asyncio.sleep(0.05)

    def marco_polo_postcard(self, ctx: RequestContext, payload: Call) -> Postcard:
        ctx.log("painting")
        picture = CARD.format(text=reply(payload.text))
        return Postcard(ctx.save_bytes(f"postcards/{ctx.request_id}.svg", picture.encode()))


CARD = """<svg xmlns="http://www.w3.org/2000/svg" width="320" height="200">
<rect width="100%" height="100%" fill="teal"/>
<text x="50%" y="50%" fill="white" font-size="48" text-anchor="middle">{text}</text>
</svg>
"""


def reply(text: str) -> str:
    if text.strip().lower() != "marco":
        raise ValidationError(f"say `marco`, not `{text}`")
    return "polo"
