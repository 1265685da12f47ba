"""The functions, called in the test's own process as `gen-worker run` calls them."""

import pytest
from marco_polo.main import Call, MarcoPolo, Swim

from gen_worker import CanceledError, ValidationError
from gen_worker.testing import Client


def test_marco_is_answered_with_polo(gen_worker_client: Client) -> None:
    assert gen_worker_client.run(MarcoPolo.marco_polo, Call("Marco")).output.text == "polo"


def test_anything_else_is_the_callers_mistake(gen_worker_client: Client) -> None:
    with pytest.raises(ValidationError, match="say `marco`, not `hello`"):
        gen_worker_client.run("marco-polo", text="hello")


def test_a_slow_answer_tells_how_far_it_is(gen_worker_client: Client) -> None:
    result = gen_worker_client.run(MarcoPolo.marco_polo_slow, Swim("marco", seconds=0.15))
    assert result.output.text == "polo"
    assert result.progress


def test_a_slow_answer_can_be_cancelled(gen_worker_client: Client) -> None:
    job = gen_worker_client.submit(MarcoPolo.marco_polo_slow, Swim("marco"))
    job.cancel()
    with pytest.raises(CanceledError):
        job.result(timeout_s=10)


def test_the_stream_grows_letter_by_letter(gen_worker_client: Client) -> None:
    chunks = gen_worker_client.stream("marco-polo-stream", text="marco")
    assert [chunk.text for chunk in chunks] == ["p", "po", "pol", "polo"]


def test_the_postcard_is_a_file(gen_worker_client: Client) -> None:
    result = gen_worker_client.run(MarcoPolo.marco_polo_postcard, Call("marco"))
    card = result.files[f"postcards/{result.request_id}.svg"]
    assert result.output.card.local_path == str(card)
    assert ">polo<" in card.read_text()


def test_the_project_declares_four_functions(gen_worker_client: Client) -> None:
    assert gen_worker_client.functions == ["marco-polo", "marco-polo-postcard", "marco-polo-slow", "marco-polo-stream"]
