"""What the supervisor knows of the things that jobs ask their platforms: nothing of a job that has ended."""

import os
import sys
from collections.abc import Sequence
from typing import Any, cast

import pytest

from gen_worker.wire.fetching import Abort, CallPlatform, Destination, EndPlatform, PlatformAnswered
from gen_worker.wire.messages import Call, Called
from gen_worker_supervisor.files.platform import PlatformCalls


class Fetcher:
    """Keeps the orders that a fetcher would get."""

    def __init__(self) -> None:
        self.asked_for = 0
        self.orders: list[Any] = []

    def __call__(self) -> Any:
        self.asked_for += 1
        return self

    def send(self, order: object, descriptors: Sequence[int] = ()) -> None:
        """Take an order."""
        self.orders.append(order)

    def last(self, kind: type) -> Any:
        """Return the last order of a kind."""
        return next(order for order in reversed(self.orders) if isinstance(order, kind))


@pytest.fixture
def fetcher() -> Fetcher:
    return Fetcher()


@pytest.fixture
def calls(fetcher: Fetcher) -> PlatformCalls:
    return PlatformCalls(cast(Any, fetcher))


def destination(request_id: str = "one") -> Destination:
    return Destination("https://hub.example", "job-token", request_id, 1)


def ask(calls: PlatformCalls, whose: Destination | None, job: int = 7) -> list[Called]:
    """Have a job ask something; return where the answer will be."""
    answers: list[Called] = []
    calls.call(Call(job, 1, "read_repo_metadata", b"{}"), whose, [], lambda answer, _: answers.append(answer))
    return answers


def test_a_job_that_asked_nothing_costs_nothing_at_its_end(calls: PlatformCalls, fetcher: Fetcher) -> None:
    calls.forget(7)
    assert (fetcher.asked_for, fetcher.orders) == (0, [])


def test_nothing_is_kept_of_a_job_that_only_asked(calls: PlatformCalls, fetcher: Fetcher) -> None:
    """Its destination, which holds its token, is let go, although it has begun nothing."""
    whose = destination()
    before = sys.getrefcount(whose)
    answers = ask(calls, whose)
    calls.on_report(PlatformAnswered(fetcher.last(CallPlatform).number), [])
    assert [answer.job for answer in answers] == [7]
    calls.forget(7)
    fetcher.orders.clear()
    assert sys.getrefcount(whose) == before
    calls.forget(7)
    assert fetcher.orders == []


def test_many_jobs_that_only_ask_leave_nothing(calls: PlatformCalls, fetcher: Fetcher) -> None:
    whose = destination()
    before = sys.getrefcount(whose)
    for job in range(1000):
        ask(calls, whose, job)
        calls.on_report(PlatformAnswered(fetcher.last(CallPlatform).number), [])
        calls.forget(job)
    fetcher.orders.clear()
    assert sys.getrefcount(whose) == before


def test_what_a_job_began_is_given_up_at_its_end_once(calls: PlatformCalls, fetcher: Fetcher) -> None:
    for begin in (lambda: ask(calls, destination()), lambda: calls.begins(7, destination())):
        fetcher.orders.clear()
        begin()
        calls.forget(7)
        calls.forget(7)
        assert [order for order in fetcher.orders if isinstance(order, EndPlatform)] == [EndPlatform(destination())]


def test_a_job_that_ends_while_it_asks_is_answered_and_its_call_aborted(calls: PlatformCalls, fetcher: Fetcher) -> None:
    answers = ask(calls, destination())
    others = ask(calls, destination("two"), job=8)
    number = fetcher.orders[0].number
    calls.forget(7)
    assert Abort(number, "call") in fetcher.orders
    assert [(answer.error, answer.failure) for answer in answers] == [("the job has ended", "canceled")]
    calls.on_report(PlatformAnswered(number), [])
    assert (len(answers), others) == (1, [])


def test_a_job_of_no_platform_asks_the_local_one_and_ends_nothing_there(calls: PlatformCalls, fetcher: Fetcher) -> None:
    calls.local = Destination("", "", "serve", 0)
    ask(calls, None)
    assert fetcher.last(CallPlatform).destination.request_id == "serve-7"
    calls.forget(7)
    assert not [order for order in fetcher.orders if isinstance(order, EndPlatform)]


def test_a_call_that_is_refused_at_once_leaves_no_descriptor_and_no_trace(
    calls: PlatformCalls, fetcher: Fetcher
) -> None:
    reading, writing = os.pipe()
    whose = destination()
    before = sys.getrefcount(whose)
    answers: list[Called] = []
    refused = Call(7, 1, "put", b"{}", has_file=False)
    calls.call(refused, whose, [reading, writing], lambda answer, _: answers.append(answer))
    assert answers[0].failure == "invalid"
    for descriptor in (reading, writing):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    assert (sys.getrefcount(whose), fetcher.orders) == (before, [])
