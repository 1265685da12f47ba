"""What type checkers see of an author's code: every line here is right, or says with which error it is not.

`make check` reads it as it reads everything; an `ignore` that nothing needs is an error, too.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, assert_type

import msgspec

import gen_worker.client
import gen_worker.testing
import gen_worker.trainer
from gen_worker import (
    HF,
    Asset,
    Civitai,
    ConversionContext,
    Hub,
    ImageAsset,
    RequestContext,
    Resources,
    endpoint,
    io,
)
from gen_worker.api import Binding, Tensors
from gen_worker.earlier.context import ActionContext
from gen_worker.testing import Client, FakeModel, Result, fake_model


class Question(msgspec.Struct):
    text: str


class Answer(msgspec.Struct):
    text: str
    image: ImageAsset | None = None


# --- the decorator leaves what it marks as it is ----------------------------------------------------------------------


@endpoint
def ask(ctx: RequestContext, payload: Question) -> Answer:
    return Answer(payload.text)


@endpoint(name="ask-again", resources=Resources(gpu=True, vram_gb=8))
async def again(ctx: RequestContext, payload: Question) -> Answer:
    return Answer(payload.text)


@endpoint
def stream(ctx: RequestContext, payload: Question) -> Iterator[Answer]:
    yield Answer(payload.text)


@endpoint
async def drip(ctx: RequestContext, payload: Question) -> AsyncIterator[Answer]:
    yield Answer(payload.text)


@endpoint(models={"weights": HF("acme/weights"), "style": Civitai("1")}, kind="inference")
class Painter:
    def setup(self, weights: str, style: Path) -> None:
        self.weights = weights

    def paint(self, ctx: RequestContext, payload: Question) -> Answer:
        return Answer(self.weights)


@endpoint(kind="conversion")
def convert(ctx: ConversionContext, payload: Question) -> Answer:
    assert_type(ctx.mktemp(), Path)
    assert_type(ctx.save_checkpoint("a", "a.safetensors"), Tensors)
    return Answer(str(ctx.source_path))


question = Question("why?")
context = RequestContext(request_id="r")
assert_type(ask(context, question), Answer)
assert_type(Painter(), Painter)
assert_type(Painter().paint(context, question), Answer)
assert_type(list(stream(context, question)), list[Answer])

endpoint(kind="inferense")  # type: ignore[call-overload]
endpoint(model="acme/weights")  # type: ignore[call-overload]
endpoint(runtime="tgi")  # type: ignore[call-overload]
endpoint(resources={"gpu": True})  # type: ignore[call-overload]
ask(question, context)  # type: ignore[arg-type]
Painter().paint(context)  # type: ignore[call-arg]


# --- bindings ---------------------------------------------------------------------------------------------------------

bindings: Sequence[Binding] = [HF("acme/weights", dtype="fp16"), Hub("acme/weights", tag="test"), Civitai("1")]
assert_type(HF("acme/weights").allow_override(), HF)
HF("acme/weights", dtype=16)  # type: ignore[arg-type]
HF("acme/weights", slot="weights")  # type: ignore[call-arg]


# --- contexts ---------------------------------------------------------------------------------------------------------


def members(ctx: RequestContext) -> None:
    assert_type(ctx.request_id, str)
    assert_type(ctx.deadline, float | None)
    assert_type(ctx.time_remaining(), float | None)
    assert_type(ctx.cancelled, bool)
    assert_type(ctx.models, dict[str, str])
    assert_type(ctx.save_bytes("a.bin", b""), Asset)
    assert_type(ctx.save_image(object()), ImageAsset)
    assert_type(io.read_bytes(ctx.save_file("a", "b")), bytes)
    ctx.cancelled = True  # type: ignore[misc]
    ctx.log("hello", level="loud")  # type: ignore[arg-type]
    ctx.save_bytes("a", "text")  # type: ignore[arg-type]


# --- the test client --------------------------------------------------------------------------------------------------


def results(client: Client) -> None:
    assert_type(client.run(ask, question), Result[Answer])
    assert_type(client.run(again, text="why?").output, Answer)
    assert_type(client.run(stream, question).output, list[Answer])
    assert_type(client.run(drip, question).output, list[Answer])
    assert_type(client.run(Painter.paint, question).output.text, str)
    assert_type(client.run("ask", {"text": "why?"}).output, Any)
    assert_type(client.run(ask, question).files["a.png"].read_bytes(), bytes)
    client.run(ask, question, timeout_s="1")  # type: ignore[call-overload]
    client.run(3)  # type: ignore[call-overload]


def stand_ins() -> Callable[..., Any]:
    fake = fake_model(lambda prompt: prompt)
    assert_type(fake, FakeModel)
    with Client(Painter, models={"weights": "/weights", "style": fake}) as client:
        assert_type(client, Client)
    Client(Painter, models=["weights"])  # type: ignore[arg-type]
    return fake


# --- clients of a server ----------------------------------------------------------------------------------------------


def calls(client: gen_worker.client.Client) -> Answer:
    assert_type(client.call("ask", question), Any)
    assert_type(next(client.stream("stream", question)), Any)
    assert_type(client.call("ask", question, type=Answer, timeout_s=1), Answer)
    assert_type(client.call("ask", question, type=dict[str, str]), dict[str, str])
    assert_type(list(client.stream("stream", question, type=Answer)), list[Answer])
    client.call("ask", question, type=Answer, timeout="1")  # type: ignore[call-overload]
    client.stream("stream", question, tenant=3)  # type: ignore[call-overload]
    return client.call("ask", {"text": "why?"}, type=Answer)


async def async_calls(client: gen_worker.client.AsyncClient) -> Answer:
    assert_type(await client.call("ask", question), Any)
    assert_type([item async for item in client.stream("stream", question, type=Answer)], list[Answer])
    return await client.call("ask", question, type=Answer, tenant="ada")


# --- a misspelt name is none ------------------------------------------------------------------------------------------

misspelt = (
    gen_worker.RequestContxt,  # type: ignore[attr-defined]
    gen_worker.client.Clinet,  # type: ignore[attr-defined]
    gen_worker.testing.Clinet,  # type: ignore[attr-defined]
    gen_worker.trainer.TrainerPlugn,  # type: ignore[attr-defined]
)
assert_type(gen_worker.__version__, str)
assert_type(gen_worker.ActionContext, type[ActionContext])
