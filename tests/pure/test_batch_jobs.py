"""The jobs of one batch in a child, from their frames to theirs."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from gen_worker import Batch, BatchContext, ValidationError, endpoint
from gen_worker.discovery.specs import specs_of
from gen_worker.wire.channel import Channel
from gen_worker.wire.messages import Done, Encoding, Failed, Order, Report, Started, Submit
from gen_worker.wire.page import PageWriter, create_page
from gen_worker_child.executor import Executor
from gen_worker_child.job import Job
from gen_worker_child.jobs import Jobs
from gen_worker_child.lines import MarkedStreams


class Word(msgspec.Struct):
    text: str


class Answer(msgspec.Struct):
    text: str


CALLS: list[list[str]] = []


@endpoint(batch=Batch(max_size=8, max_wait_ms=0))
def shout(ctx: BatchContext, payloads: list[Word]) -> list[Answer | Exception]:
    CALLS.append([payload.text for payload in payloads])
    return [
        ValidationError("say please") if payload.text == "refuse" else Answer(payload.text.upper())
        for payload in payloads
    ]


class Told(Executor):
    """An executor that says what it encodes before it does."""

    on_encode: Callable[[Any], None] = staticmethod(lambda value: None)

    def encode(self, value: Any, encoding: Encoding) -> bytes:
        self.on_encode(value)
        return super().encode(value, encoding)


class Child:
    """The jobs of a child, with the test in the place of its threads and of its supervisor."""

    def __init__(self, ours: socket.socket, theirs: socket.socket, page: PageWriter) -> None:
        self._channel: Channel[Order] = Channel(ours, generation=1, receives=Order)
        self._supervisor: Channel[Report] = Channel(theirs, generation=1, receives=Report)
        self.executor = Told(specs_of(shout))
        self.jobs = Jobs(self._channel, self.executor, page, MarkedStreams())

    def run(self, *payloads: dict[str, Any]) -> dict[int, Done | Failed]:
        """Run jobs that came together, numbered from 1; return how each has ended, once."""
        CALLS.clear()
        orders = [
            Submit(number, "shout", f"r{number}", msgspec.json.encode(payload), "json")
            for number, payload in enumerate(payloads, start=1)
        ]
        taken = [self.jobs.submit(order, []) for order in orders]
        for job in taken:
            assert isinstance(job, Job)
            self.jobs.run(job)
        return self._endings()

    def _endings(self) -> dict[int, Done | Failed]:
        found: dict[int, Done | Failed] = {}
        with suppress(BlockingIOError):
            while (received := self._supervisor.receive(wait=False)) is not None:
                report, _ = received
                assert isinstance(report, Started | Done | Failed)
                if not isinstance(report, Started):
                    assert report.job not in found, "it has ended twice"
                    found[report.job] = report
        return found


@pytest.fixture
def child() -> Iterator[Child]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    descriptor = create_page()
    page = PageWriter(descriptor)
    os.close(descriptor)
    with ours, theirs:
        made = Child(ours, theirs, page)
        yield made
        made.executor.shutdown(lambda error: None)


def outputs(endings: dict[int, Done | Failed]) -> dict[int, str]:
    return {
        number: msgspec.json.decode(ending.body)["text"]
        for number, ending in endings.items()
        if isinstance(ending, Done) and isinstance(ending.body, bytes)
    }


def test_what_ran_together_is_counted_without_who_was_refused_before_the_call(child: Child) -> None:
    endings = child.run({"text": "a"}, {"text": 5}, {"text": "refuse"}, {"text": "b"})
    assert CALLS == [["a", "refuse", "b"]]
    assert {number: ending.together for number, ending in endings.items()} == {1: 3, 2: 1, 3: 3, 4: 3}


def test_when_all_are_refused_there_is_no_call(child: Child) -> None:
    endings = child.run({"text": 5}, {})
    assert CALLS == []
    assert {number: ending.together for number, ending in endings.items()} == {1: 1, 2: 1}


@pytest.mark.parametrize("during", ["A", "B", "C"])
def test_an_interrupt_while_outputs_are_encoded_ends_its_job_alone(child: Child, during: str) -> None:
    """Rung 2 is aimed at the second of three: whichever output is just being encoded, the others have theirs."""

    def interrupt(value: Any) -> None:
        if isinstance(value, Answer) and value.text == during:
            child.executor.on_encode = lambda value: None
            child.jobs.cancel(2)
            child.jobs.interrupt(2, threading.get_ident())

    child.executor.on_encode = interrupt
    endings = child.run({"text": "a"}, {"text": "b"}, {"text": "c"})
    ending = endings[2]
    if during == "C":  # it was done when it was asked to end
        assert isinstance(ending, Done)
    else:
        assert isinstance(ending, Failed)
        assert (ending.kind, ending.message) == ("canceled", "canceled")
    assert outputs({number: endings[number] for number in (1, 3)}) == {1: "A", 3: "C"}
    assert CALLS[0] == ["a", "b", "c"]
    assert len(endings) == 3


def test_who_has_an_output_before_the_interrupt_is_not_run_again(child: Child) -> None:
    def interrupt(value: Any) -> None:
        if value.text == "B":
            child.executor.on_encode = lambda value: None
            child.jobs.cancel(2)
            child.jobs.interrupt(2, threading.get_ident())

    child.executor.on_encode = interrupt
    endings = child.run({"text": "a"}, {"text": "b"}, {"text": "c"})
    assert CALLS == [["a", "b", "c"], ["c"]]
    assert outputs(endings) == {1: "A", 3: "C"}
