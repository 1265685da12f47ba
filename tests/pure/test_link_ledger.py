"""One request runs once at a time and each attempt is answered once, whatever the orchestrator sends how often."""

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from hypothesis.strategies import integers, sampled_from

from gen_worker.wire.scheduler import JobResult, JobStatus, RunJob
from gen_worker_supervisor.link.ledger import DOUBTED_S, REMEMBERED, REMEMBERED_BYTES, Coming, Ledger


def run(request_id: str = "a", attempt: int = 1) -> RunJob:
    return RunJob(request_id=request_id, attempt=attempt, function_name="f")


def result(request_id: str = "a", attempt: int = 1, inline: bytes = b"") -> JobResult:
    return JobResult(request_id=request_id, attempt=attempt, status=JobStatus.OK, inline=inline)


def test_the_same_attempt_is_new_only_once() -> None:
    ledger = Ledger()
    assert ledger.coming("a", 1) is Coming.NEW
    ledger.accept(run(), 0.0)
    assert ledger.coming("a", 1) is Coming.HELD


def test_an_ended_attempt_is_answered_with_its_result() -> None:
    ledger = Ledger()
    ledger.leave(ledger.accept(run(), 0.0))
    ledger.end(result())
    assert ledger.coming("a", 1) is Coming.ENDED
    assert ledger.result("a", 1) == result()


@pytest.mark.promise(18)
def test_a_lower_attempt_is_stale_and_a_higher_one_fences() -> None:
    ledger = Ledger()
    ledger.accept(run(attempt=3), 0.0)
    assert ledger.coming("a", 2) is Coming.STALE
    assert ledger.coming("a", 4) is Coming.FENCES


def test_a_lower_attempt_than_an_ended_one_is_stale() -> None:
    ledger = Ledger()
    ledger.leave(ledger.accept(run(attempt=3), 0.0))
    ledger.end(result(attempt=3))
    assert ledger.coming("a", 2) is Coming.STALE
    assert ledger.coming("a", 4) is Coming.NEW


def test_a_fenced_attempt_ends_silently_and_the_next_one_begins_after_it() -> None:
    ledger = Ledger()
    first = ledger.accept(run(), 0.0)
    assert ledger.fence(run(attempt=2), 1.0) is first
    assert first.silent
    assert ledger.find("a", 1) is None
    assert ledger.find("a", 2) is not None
    following = ledger.leave(first)
    assert following is not None
    assert following.run.attempt == 2
    assert ledger.coming("a", 2) is Coming.HELD


def test_an_attempt_that_was_answered_while_it_waited_is_not_run() -> None:
    ledger = Ledger()
    ledger.accept(run(), 0.0)
    ledger.fence(run(attempt=2), 1.0)
    waiting = ledger.find("a", 2)
    assert waiting is not None
    ledger.leave(waiting)
    ledger.end(result(attempt=2))
    assert ledger.coming("a", 2) is Coming.ENDED
    assert ledger.coming("a", 1) is Coming.STALE  # it runs on, silently
    assert ledger.coming("a", 3) is Coming.FENCES


def test_an_orchestrator_is_told_of_all_that_another_worker_must_not_run() -> None:
    ledger = Ledger()
    first = ledger.accept(run("a"), 0.0)
    ledger.fence(run("a", 2), 0.0)
    ledger.leave(ledger.accept(run("b"), 0.0))
    ledger.end(result("b"))
    assert [(job.request_id, job.attempt) for job in ledger.in_flight(0.0)] == [("a", 2), ("b", 1)]
    ledger.leave(first)
    ledger.written(result("b"), 5.0)
    assert [(job.request_id, job.attempt) for job in ledger.in_flight(5.0 + DOUBTED_S)] == [("a", 2)]


def test_a_result_written_a_moment_before_the_connection_was_lost_is_sent_again() -> None:
    ledger = Ledger()
    ledger.end(result())
    ledger.written(result(), 10.0)
    assert list(ledger.unshipped(10.0 + DOUBTED_S / 2)) == [result()]
    assert list(ledger.unshipped(10.0 + DOUBTED_S)) == []
    assert ledger.all_shipped()


@pytest.mark.promise(17)
def test_so_many_ended_attempts_are_remembered() -> None:
    ledger = Ledger()
    for number in range(REMEMBERED + 10):
        ledger.end(result(f"r{number}"))
        ledger.written(result(f"r{number}"), 0.0)
    assert ledger.coming("r9", 1) is Coming.NEW
    assert ledger.coming("r10", 1) is Coming.ENDED


def test_a_result_that_was_not_shipped_is_never_forgotten() -> None:
    ledger = Ledger()
    for number in range(2 * REMEMBERED):
        ledger.end(result(f"r{number}"))
    assert len(list(ledger.unshipped(0.0))) == 2 * REMEMBERED


def test_an_attempt_that_is_ended_twice_is_remembered_once() -> None:
    ledger = Ledger()
    ledger.end(result())
    ledger.written(result(), 0.0)
    ledger.end(result())
    assert list(ledger.unshipped(1000.0)) == [result()]
    ledger.written(result(), 1000.0)
    assert list(ledger.unshipped(2000.0)) == []


def test_long_outputs_are_let_go_before_their_attempts_are_forgotten() -> None:
    ledger = Ledger()
    long = bytes(REMEMBERED_BYTES // 2)
    for name in "abc":
        ledger.end(result(name, inline=long))
        ledger.written(result(name), 0.0)
    assert ledger.coming("a", 1) is Coming.ENDED
    assert ledger.result("a", 1) is None
    assert ledger.result("c", 1) is not None


class AnyOrder(RuleBasedStateMachine):
    """An orchestrator that sends what it likes, and a worker that ends what it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.begun: list[tuple[str, int]] = []
        self.answered: list[tuple[str, int]] = []

    @rule(request_id=sampled_from("ab"), attempt=integers(1, 4))
    def send(self, request_id: str, attempt: int) -> None:
        coming = self.ledger.coming(request_id, attempt)
        if coming is Coming.NEW:
            self.ledger.accept(run(request_id, attempt), 0.0)
            self.begun.append((request_id, attempt))
        elif coming is Coming.FENCES:
            passed = self.ledger.waiting.get(request_id)
            if passed is not None:
                self.ledger.leave(passed)
            self.ledger.fence(run(request_id, attempt), 0.0)

    @rule(request_id=sampled_from("ab"))
    def cancel_the_waiting(self, request_id: str) -> None:
        waiting = self.ledger.waiting.get(request_id)
        if waiting is not None:
            self.ledger.leave(waiting)
            self.ledger.end(result(request_id, waiting.run.attempt))
            self.answered.append((request_id, waiting.run.attempt))

    @rule(request_id=sampled_from("ab"))
    def finish(self, request_id: str) -> None:
        held = self.ledger.held.get(request_id)
        if held is None:
            return
        following = self.ledger.leave(held)
        if not held.silent:
            self.ledger.end(result(request_id, held.run.attempt))
            self.answered.append((request_id, held.run.attempt))
        if following is not None:
            self.begun.append((request_id, following.run.attempt))

    @invariant()
    def each_attempt_begins_and_is_answered_at_most_once(self) -> None:
        assert len(set(self.begun)) == len(self.begun)
        assert len(set(self.answered)) == len(self.answered)

    @invariant()
    def attempts_only_rise(self) -> None:
        for name in "ab":
            attempts = [attempt for request_id, attempt in self.begun if request_id == name]
            assert attempts == sorted(attempts)

    @invariant()
    def what_was_answered_is_not_held(self) -> None:
        held = {*self.ledger.held.values(), *self.ledger.waiting.values()}
        assert not {(each.run.request_id, each.run.attempt) for each in held} & set(self.answered)


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAnyOrder = AnyOrder.TestCase
