"""In which order the waiting jobs of a function are served."""

import gc
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gen_worker_supervisor.core.queues import AGEING_S, Queue

numbers = count(1)


@dataclass(eq=False)
class Waiter:
    tenant: str = ""
    priority: int = 0
    submitted: float = 0.0
    waiting: bool = False
    number: int = field(default_factory=lambda: next(numbers))


def filled(*waiters: Waiter) -> Queue[Waiter]:
    queue: Queue[Waiter] = Queue()
    for waiter in waiters:
        queue.push(waiter)
    return queue


def served(queue: Queue[Waiter], number: int | None = None, now: float = 0.0) -> list[Waiter]:
    """Serve so many, or all."""
    order: list[Waiter] = []
    for _ in range(len(queue) if number is None else number):
        order.append(queue.first(now))
        queue.serve(order[-1], now)
    return order


def names(waiters: Sequence[Waiter]) -> str:
    return "".join(waiter.tenant for waiter in waiters)


def test_who_came_first_is_served_first() -> None:
    waiters = [Waiter() for _ in range(5)]
    assert served(filled(*waiters)) == waiters


def test_a_higher_priority_is_served_first() -> None:
    low, high, lowest, highest = (Waiter(priority=each) for each in (0, 5, -100, 100))
    assert served(filled(low, high, lowest, highest)) == [highest, high, low, lowest]


@pytest.mark.promise(34)
def test_another_tenants_flood_delays_a_tenants_first_job_by_one_job() -> None:
    queue = filled(*(Waiter("a") for _ in range(10_000)))
    served(queue, 3)
    late = Waiter("b")
    queue.push(late)
    assert late in served(queue, 2)


def test_tenants_take_turns_and_each_is_served_in_its_order() -> None:
    waiters = [Waiter(each) for each in "aaaabbc"]
    order = served(filled(*waiters))
    assert names(order) == "abcabaa"
    assert [each for each in order if each.tenant == "a"] == waiters[:4]


def test_a_tenant_that_comes_back_at_once_takes_no_more_turns_than_the_others() -> None:
    queue = filled(*(Waiter("a") for _ in range(10)))
    order = []
    for _ in range(6):
        queue.push(Waiter("b"))
        order += served(queue, 2)
    assert names(order) == "ab" * 6


def test_a_job_whose_child_was_lost_is_its_tenants_first_again_and_its_turn_comes_again() -> None:
    queue = filled(*(Waiter(each) for each in "aabbcc"))
    taken = served(queue, 4)
    assert names(taken) == "abca"
    for waiter in reversed(taken):
        queue.push(waiter, front=True)
    assert served(queue, 4) == taken


def test_a_canceled_job_costs_its_tenant_no_turn() -> None:
    first, second, other = Waiter("a"), Waiter("a"), Waiter("b")
    queue = filled(first, second, other)
    queue.drop(first)
    assert served(queue) == [second, other]


def test_a_low_priority_that_was_not_served_for_long_is_served_once() -> None:
    queue = filled(Waiter(priority=0), Waiter(priority=0), *(Waiter(priority=2) for _ in range(500)))
    order = [served(queue, 1, now=tenth / 10)[0].priority for tenth in range(450)]
    (first, second) = (tenth / 10 for tenth, priority in enumerate(order) if not priority)
    assert first == pytest.approx(2 * AGEING_S, abs=0.3)
    assert second == pytest.approx(first + 2 * AGEING_S, abs=0.3), "its age has begun anew"


def test_what_is_listed_is_in_the_order_in_which_it_is_served() -> None:
    queue = filled(*(Waiter(tenant, priority) for tenant in "aaabbc" for priority in (0, 1)))
    listed = list(queue)
    assert served(queue) == listed


def test_canceled_jobs_behind_a_waiting_one_are_not_kept() -> None:
    queue = filled(Waiter())
    seen = []
    for _ in range(1000):
        waiter = Waiter()
        seen.append(weakref.ref(waiter))
        queue.push(waiter)
        queue.drop(waiter)
    del waiter
    gc.collect()
    assert sum(each() is not None for each in seen) < 200


@pytest.mark.parametrize("tenants", [1, 10_000])
def test_ten_thousand_jobs_cost_a_few_microseconds_each_whoever_they_are_of(tenants: int) -> None:
    waiters = [Waiter(str(each % tenants)) for each in range(10_000)]
    began = time.perf_counter()
    queue = filled(*waiters)
    for waiter in waiters[2_000:8_000]:
        queue.drop(waiter)
    assert len(served(queue)) == 4_000
    assert time.perf_counter() - began < 0.5


class Queues(RuleBasedStateMachine):
    """A queue beside a list that is searched for whoever is next."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: Queue[Waiter] = Queue()
        self.now = 0.0
        self.waiting: list[Waiter] = []
        self.turns: dict[int, list[str]] = {}  # of the tenants that wait, by priority
        self.since: dict[int, float] = {}
        self.served: list[Waiter] = []

    def add(self, waiter: Waiter, at: int) -> None:
        """Note who waits now: `at` 0 is the front."""
        turns = self.turns.setdefault(waiter.priority, [])
        if not turns:
            self.since[waiter.priority] = waiter.submitted
        if waiter.tenant in turns and not at:
            turns.remove(waiter.tenant)
        if waiter.tenant not in turns:
            turns.insert(at, waiter.tenant)
        self.waiting.insert(at, waiter)

    @rule(tenant=st.sampled_from("abc"), priority=st.sampled_from((-1, 0, 3)))
    def comes(self, tenant: str, priority: int) -> None:
        waiter = Waiter(tenant, priority, self.now)
        self.queue.push(waiter)
        self.add(waiter, 10**6)

    @rule(seconds=st.floats(0.0, 30.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.served)
    @rule(index=st.integers(0, 100))
    def comes_again(self, index: int) -> None:
        waiter = self.served.pop(index % len(self.served))
        self.queue.push(waiter, front=True)
        self.add(waiter, 0)

    @precondition(lambda self: self.waiting)
    @rule()
    def is_served(self) -> None:
        waiter = self.expected()
        assert self.queue.first(self.now) is waiter
        self.queue.serve(waiter, self.now)
        self.turns[waiter.priority].remove(waiter.tenant)
        self.turns[waiter.priority].append(waiter.tenant)
        self.since[waiter.priority] = self.now
        self.left(waiter)
        self.served.append(waiter)

    @precondition(lambda self: self.waiting)
    @rule(index=st.integers(0, 100))
    def is_canceled(self, index: int) -> None:
        waiter = self.waiting[index % len(self.waiting)]
        self.queue.drop(waiter)
        self.left(waiter)

    def left(self, waiter: Waiter) -> None:
        self.waiting.remove(waiter)
        if not any((each.tenant, each.priority) == (waiter.tenant, waiter.priority) for each in self.waiting):
            self.turns[waiter.priority].remove(waiter.tenant)

    def expected(self) -> Waiter:
        there = {waiter.priority for waiter in self.waiting}
        priority = max(there, key=lambda each: (each + (self.now - self.since[each]) / AGEING_S, each))
        tenant = self.turns[priority][0]
        return next(each for each in self.waiting if (each.tenant, each.priority) == (tenant, priority))

    @invariant()
    def it_holds_who_waits(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert {waiter.number for waiter in self.queue} == {waiter.number for waiter in self.waiting}
        assert all(waiter.waiting for waiter in self.waiting)
        assert not any(waiter.waiting for waiter in self.served)


TestQueues = Queues.TestCase
TestQueues.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
