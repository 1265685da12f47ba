"""The handler, called directly, against an Acme of the test's own."""

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from api_proxy.main import Acme, Answer, Question
from fake_acme import FakeAcme

from gen_worker import RequestContext, RetryableError, ValidationError
from gen_worker.api import AuthError
from gen_worker.api.errors import classify
from gen_worker.discovery import collect, import_main, load_project_config

KEY = "acme-secret-1"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("ACME_API_KEY", KEY)
    return monkeypatch


def ask_all(environment: pytest.MonkeyPatch, questions: Sequence[Question], wait_for: int = 1) -> list[Any]:
    """Start an Acme, ask it everything at once, and return the answers and exceptions."""

    async def ask() -> list[Any]:
        async with await FakeAcme(KEY, wait_for).serve() as server:
            environment.setenv("ACME_API_URL", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            proxy = Acme()
            proxy.setup()
            contexts = [RequestContext(request_id=f"test-{number}") for number in range(len(questions))]
            asked = [proxy.ask(ctx, question) for ctx, question in zip(contexts, questions, strict=True)]
            return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(ask())


def test_a_question_is_answered(environment: pytest.MonkeyPatch) -> None:
    (answer,) = ask_all(environment, [Question("Will it rain")])
    assert answer == Answer("Will it rain? Certainly.", in_flight=1)


def test_a_hundred_questions_are_asked_at_once(environment: pytest.MonkeyPatch) -> None:
    answers = ask_all(environment, [Question(f"question {number}") for number in range(100)], wait_for=100)
    assert [answer.text for answer in answers] == [f"question {number}? Certainly." for number in range(100)]
    assert max(answer.in_flight for answer in answers) == 100


@pytest.mark.parametrize(
    ("question", "error", "says"),
    [
        (Question("slow", timeout_s=0.05), RetryableError, "did not answer within 0.05 s"),
        (Question("busy"), RetryableError, "busy: 503"),
        (Question(""), ValidationError, "refused the question: .*ask something"),
    ],
)
def test_what_goes_wrong_is_said_in_the_right_words(
    environment: pytest.MonkeyPatch, question: Question, error: type[Exception], says: str
) -> None:
    (raised,) = ask_all(environment, [question])
    with pytest.raises(error, match=says):
        raise raised


def test_a_time_out_is_worth_another_try(environment: pytest.MonkeyPatch) -> None:
    (raised,) = ask_all(environment, [Question("slow", timeout_s=0.05)])
    assert classify(raised) == ("retryable", "Acme did not answer within 0.05 s", True)


def test_a_service_that_is_down_is_worth_another_try(environment: pytest.MonkeyPatch) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        environment.setenv("ACME_API_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        proxy = Acme()
        proxy.setup()
        with pytest.raises(RetryableError, match="cannot be reached"):
            asyncio.run(proxy.ask(RequestContext(request_id="test"), Question("hello")))


def test_a_refused_key_is_named_but_never_shown(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ACME_API_KEY", "acme-secret-2")
    (raised,) = ask_all(environment, [Question("hello")])
    assert isinstance(raised, AuthError)
    assert "secret" not in str(raised)


def test_without_a_key_the_endpoint_is_not_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACME_API_KEY", raising=False)
    with pytest.raises(AuthError, match="`ACME_API_KEY` is not set"):
        Acme().setup()


def test_many_requests_share_a_child() -> None:
    project = load_project_config(Path(__file__).parents[1])
    (spec,) = collect(import_main(project.main, [str(project.root)]))
    assert (spec.name, spec.lane) == ("ask", "loop")
