"""The endpoint, served by the installed command."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gen_worker.client import JobError

pytestmark = pytest.mark.process


@pytest.fixture
def server(serve: Callable[..., Any]) -> Iterator[Any]:
    with serve(Path(__file__).parents[1]) as running:
        yield running


def test_marco_is_answered_and_anything_else_is_the_callers_mistake(server: Any) -> None:
    answered = server.invoke("marco-polo", "text=marco")
    assert (answered.returncode, json.loads(answered.stdout)) == (0, {"text": "polo"})
    refused = server.invoke("marco-polo", "text=hello")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "say `marco`, not `hello`" in refused.stderr


def test_a_slow_answer_tells_how_far_it_is(server: Any) -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    with server.client() as client:
        answer = client.call(
            "marco-polo-slow",
            {"text": "marco", "seconds": 0.4},
            on_event=lambda kind, value: told.append((kind, value)),
        )
    assert answer == {"text": "polo"}
    assert {kind for kind, _ in told} == {"progress"}
    shares = [value["progress"] for _, value in told]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] < 1
    assert {value["stage"] for _, value in told} == {"swimming"}


def test_slow_answers_do_not_wait_for_each_other(server: Any) -> None:
    with server.client() as client:
        began = time.monotonic()
        swims = [client.submit("marco-polo-slow", {"text": "marco", "seconds": 0.5}) for _ in range(20)]
        assert [swim.result(20) for swim in swims] == [{"text": "polo"}] * 20
        assert time.monotonic() - began < 20 * 0.5 / 2


def test_a_slow_answer_can_be_cancelled_and_others_go_on(server: Any) -> None:
    with server.client() as client:
        unwanted = client.submit("marco-polo-slow", {"text": "marco", "seconds": 60})
        wanted = client.submit("marco-polo-slow", {"text": "marco", "seconds": 0.5})
        assert client.cancel(unwanted.request_id, timeout_s=20)
        with pytest.raises(JobError) as canceled:
            unwanted.result(20)
        assert canceled.value.kind == "canceled"
        assert wanted.result(20) == {"text": "polo"}


def test_the_stream_grows_letter_by_letter(server: Any) -> None:
    with server.client() as client:
        assert [chunk["text"] for chunk in client.stream("marco-polo-stream", {"text": "marco"})] == list(growing())
    streamed = server.invoke("--stream", "marco-polo-stream", "text=marco")
    assert streamed.returncode == 0
    assert [text for text in growing() if f'"{text}"' not in streamed.stdout] == []


def growing() -> Iterator[str]:
    return ("polo"[:length] for length in range(1, 5))


def test_the_postcard_is_a_file_that_outlives_its_child(server: Any) -> None:
    painted = server.invoke("marco-polo-postcard", "text=marco")
    assert painted.returncode == 0
    (card,) = server.outputs.rglob("*.svg")
    assert ">polo<" in card.read_text()
    assert str(card) in painted.stdout
