"""The handlers, called directly."""

import asyncio
from pathlib import Path

import pytest
from marco_polo.main import Call, MarcoPolo, Swim

from gen_worker import CanceledError, RequestContext, ValidationError
from gen_worker.api.context import CancelFlag
from gen_worker.discovery import collect, import_main, load_project_config


def test_marco_is_answered_with_polo() -> None:
    assert MarcoPolo().marco_polo(RequestContext(request_id="test"), Call("Marco")).text == "polo"


def test_anything_else_is_the_callers_mistake() -> None:
    with pytest.raises(ValidationError, match="say `marco`, not `hello`"):
        MarcoPolo().marco_polo(RequestContext(request_id="test"), Call("hello"))


def test_a_slow_answer_tells_how_far_it_is() -> None:
    events: list[dict[str, object]] = []
    ctx = RequestContext(request_id="test", emitter=events.append)
    assert asyncio.run(MarcoPolo().marco_polo_slow(ctx, Swim("marco", seconds=0.15))).text == "polo"
    assert {event["type"] for event in events} == {"request.progress"}


def test_a_slow_answer_can_be_cancelled() -> None:
    cancel = CancelFlag()
    ctx = RequestContext(request_id="test", cancel=cancel, emitter=lambda event: cancel.set())
    with pytest.raises(CanceledError):
        asyncio.run(MarcoPolo().marco_polo_slow(ctx, Swim("marco")))


def test_the_stream_grows_letter_by_letter() -> None:
    async def chunks() -> list[str]:
        ctx = RequestContext(request_id="test")
        return [chunk.text async for chunk in MarcoPolo().marco_polo_stream(ctx, Call("marco"))]

    assert asyncio.run(chunks()) == ["p", "po", "pol", "polo"]


def test_the_postcard_is_a_file(tmp_path: Path) -> None:
    ctx = RequestContext(request_id="test", local_output_dir=tmp_path)
    card = MarcoPolo().marco_polo_postcard(ctx, Call("marco")).card
    assert Path(card) == tmp_path / "postcards" / "test.svg"
    assert ">polo<" in Path(card).read_text()


def test_the_project_declares_four_functions() -> None:
    project = load_project_config(Path(__file__).parents[1])
    assert {spec.name: spec.shape for spec in collect(import_main(project.main, [str(project.root)]))} == {
        "marco-polo": "sync",
        "marco-polo-postcard": "sync",
        "marco-polo-slow": "async",
        "marco-polo-stream": "async_generator",
    }
