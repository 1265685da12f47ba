"""A child that works is replaced by one that is ready first; where there is no room for two it goes first."""

import pytest

from gen_worker.wire.messages import Drain, Hello, Load, LoadFailed, Ready, Recall, Unload
from gen_worker_supervisor.core.actions import Note, Signal
from gen_worker_supervisor.core.evidence import MemoryReading
from gen_worker_supervisor.core.happenings import MemoryRead, Misbehaved, Reported, RestartAsked, Spawned, UnloadAsked
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.phases import Health, JobState, Phase
from gen_worker_supervisor.core.replacing import WARM_JOBS
from gen_worker_supervisor.core.state import Child, Recycling
from gen_worker_supervisor.core.steps import REPLACE_AGAIN_S
from tests.pure.host import CREDITS, Host, function, sent, signals, spawned

GIB = 1 << 30
PLENTY = MemoryReading(0.0, GIB, 64 * GIB, "host", {})
LITTLE = MemoryReading(0.0, 64 * GIB - 1, 64 * GIB, "host", {})


def host(recycling: Recycling | None = None, memory: MemoryReading = PLENTY, devices: int = 1) -> Host:
    made = Host(function(instance="m"), devices=devices)
    made.fleet.recycling = recycling or Recycling()
    made.happens(MemoryRead(memory))
    for index in range(devices):
        made.child(index).rss = GIB
    return made


def warm(made: Host) -> None:
    job = made.submit()
    made.loaded(made.child())
    made.starts(job)
    made.done(job)


def boots(made: Host, child: Child) -> None:
    pid = 100 + child.generation
    made.happens(Spawned(child, pid), Reported(child, Hello(pid)))
    made.happens(Reported(child, Ready(list(made.fleet.functions), CREDITS, 7)))


def health(made: Host, index: int = 0) -> Health:
    return made.fleet.devices[index].health


def coming(made: Host, index: int = 0) -> Child:
    found = made.fleet.devices[index].coming
    assert found is not None
    return found


def test_after_so_many_jobs_the_next_child_boots_and_loads_while_the_old_one_works() -> None:
    made = host(Recycling(jobs=2))
    warm(made)
    old = made.child()
    made.done(made.started())
    new = coming(made)
    assert old.serving
    busy = made.started()
    assert busy.child is old
    boots(made, new)
    assert sent(made.loaded(new), Load) == []
    assert made.child() is new
    waiting = made.submit()
    assert waiting.state is JobState.QUEUED  # a job runs on the device: never two
    made.done(busy)
    assert waiting.child is new
    made.starts(waiting)
    made.done(waiting)
    assert old.phase is Phase.DRAINING
    assert made.submit().child is new
    made.dies(old)
    assert made.fleet.devices[0].leaving == []
    assert made.fleet.devices[0].restarts == 1


def test_while_the_old_child_ends_its_job_nothing_more_is_given_to_it() -> None:
    made = host(Recycling(jobs=1))
    job = made.submit()
    old = made.child()
    made.loaded(old)
    made.starts(job)
    made.done(job)
    busy = made.started()
    boots(made, coming(made))
    made.loaded(coming(made))
    waiting = made.submit()
    assert waiting.state is JobState.QUEUED
    made.done(busy)
    assert waiting.child is made.child()
    assert made.child() is not old


def test_where_there_is_no_room_for_two_the_old_child_goes_first() -> None:
    made = host(Recycling(jobs=1), LITTLE)
    warm(made)
    old = made.child()
    assert made.fleet.devices[0].coming is None
    assert old.phase is Phase.DRAINING
    assert spawned(made.dies(old)) == [made.child()]


def test_a_memory_that_nobody_has_measured_has_no_room_for_two() -> None:
    made = Host(function())
    made.fleet.recycling = Recycling(jobs=1)
    made.done(made.started())
    assert made.child().phase is Phase.DRAINING


def test_a_child_whose_memory_has_grown_is_replaced_and_its_first_jobs_do_not_count() -> None:
    made = host(Recycling(growth_bytes=GIB))
    warm(made)
    made.child().rss = 3 * GIB  # what its first jobs make of it
    for _ in range(WARM_JOBS):
        made.done(made.started())
    made.child().rss = 4 * GIB
    made.done(made.started())
    assert made.fleet.devices[0].coming is None
    made.child().rss = 4 * GIB + 1
    made.done(made.started())
    assert coming(made)


def test_a_child_is_replaced_at_its_age_even_where_it_does_nothing() -> None:
    made = host()
    made.fleet.recycling = Recycling(age_s=3600.0)
    made.dies(made.child())
    made.boot()
    made.child().rss = GIB
    made.passes(3599.0)
    assert made.fleet.devices[0].coming is None
    made.passes(2.0)
    boots(made, coming(made))
    assert made.fleet.devices[0].coming is None


def test_one_child_is_replaced_at_a_time() -> None:
    made = host(Recycling(jobs=1), devices=2)
    jobs = [made.submit(), made.submit()]
    for index in range(2):
        made.fleet.devices[index].child.loaded.add("m")  # type: ignore[union-attr]
    made.happens()
    while any(job.child is None for job in jobs):
        made.loaded(next(child for child in (made.child(0), made.child(1)) if child.loading))
    for job in jobs:
        made.starts(job)
        made.done(job)
    assert sum(device.coming is not None for device in made.fleet.devices) == 1


def test_a_next_child_that_dies_before_it_is_ready_costs_nothing_and_is_not_tried_again_at_once() -> None:
    made = host(Recycling(jobs=1))
    warm(made)
    old, new = made.child(), coming(made)
    made.dies(new)
    assert made.child() is old
    assert old.serving
    made.done(made.started())
    assert made.fleet.devices[0].coming is None
    made.passes(REPLACE_AGAIN_S)
    made.done(made.started())
    assert coming(made)


def test_a_next_child_that_cannot_load_is_ended_and_the_old_one_serves_on() -> None:
    made = host(Recycling(jobs=1))
    warm(made)
    old, new = made.child(), coming(made)
    boots(made, new)
    actions = made.reports(new, LoadFailed("m", "no", [], "setup", broken=True))
    assert [action.child for action in actions if isinstance(action, Signal)] == [new]
    assert not any("is replaced" in action.message for action in actions if isinstance(action, Note))
    assert made.fleet.functions["f"].unavailable is None
    assert made.fleet.instance("m").failures == 0
    assert made.child() is old
    assert made.submit().child is old
    made.dies(new)
    assert made.fleet.devices[0].leaving == []


def test_a_next_child_for_whose_models_the_device_has_no_room_comes_after_the_old_one() -> None:
    made = host(Recycling(jobs=1))
    warm(made)
    old, new = made.child(), coming(made)
    boots(made, new)
    made.reports(new, LoadFailed("m", "no room", [], "out_of_memory"))
    assert old.phase is Phase.DRAINING
    assert spawned(made.dies(old)) == [made.child()]


def test_an_old_child_that_dies_while_the_next_one_comes_is_followed_by_that_one() -> None:
    made = host(Recycling(jobs=1))
    warm(made)
    old, new = made.child(), coming(made)
    job = made.started()
    assert spawned(made.dies(old)) == []
    assert made.child() is new
    boots(made, new)
    made.loaded(new)
    assert job.child is new


def test_a_drain_ends_the_child_that_comes_and_the_one_that_leaves_too() -> None:
    made = host(Recycling(jobs=1))
    warm(made)
    new = coming(made)
    boots(made, new)
    made.drains()
    assert len(sent(made.actions, Drain)) == 2
    made.dies(made.child())
    assert not made.fleet.finished
    made.dies(new)
    assert made.fleet.finished


def test_an_operator_has_a_child_replaced_without_a_job_lost() -> None:
    made = host()
    warm(made)
    old, busy = made.child(), made.started()
    made.happens(RestartAsked(made.fleet.devices[0]))
    boots(made, coming(made))
    made.loaded(coming(made))
    made.done(busy)
    assert made.answer(busy).kind is None
    assert made.child() is not old


def test_a_job_that_comes_back_when_nothing_can_run_it_any_more_is_told_so() -> None:
    made = Host(function(shape="async", lane="loop"), devices=2)
    made.happens(MemoryRead(PLENTY))
    device = made.fleet.devices[0]
    job = made.submit(function=made.fleet.on_device(made.fleet.functions["f"], device))
    made.starts(job)
    made.happens(RestartAsked(device))
    boots(made, coming(made))
    while device.given_up is None:
        made.dies(made.child())
        made.passes(61.0)
    assert made.unanswered(job)
    (old,) = device.leaving
    made.dies(old)
    assert made.answer(job).kind == "unavailable"


def test_jobs_of_a_child_that_leaves_are_told_when_the_last_device_is_lost() -> None:
    made = Host(function(shape="async", lane="loop"))
    made.happens(MemoryRead(PLENTY))
    job = made.started()
    made.happens(RestartAsked(made.fleet.devices[0]))
    boots(made, coming(made))
    while not made.fleet.finished:
        made.dies(made.child())
        made.passes(61.0)
    assert made.answer(job).kind == "unavailable"


@pytest.mark.promise(2)
def test_a_job_that_kills_the_child_that_is_being_replaced_puts_no_third_at_risk() -> None:
    made = host()
    job = made.submit()
    made.loaded(made.child())
    made.starts(job)
    made.happens(RestartAsked(made.fleet.devices[0]))
    old, new = made.child(), coming(made)
    boots(made, new)
    made.loaded(new)
    made.dies(old)
    assert job.child is new
    made.starts(job)
    made.dies(new)
    assert made.answer(job).kind == "child_died"
    assert not made.answer(job).retryable


def test_an_operator_in_haste_has_its_jobs_ended_by_the_ladder() -> None:
    made = host()
    warm(made)
    old, busy = made.child(), made.started()
    waiting = made.submit()
    actions = made.happens(RestartAsked(made.fleet.devices[0], at_once=True))
    assert busy.ending is not None
    assert busy.ending.reason is Reason.RESTART
    assert signals(actions + made.passes(2.0))
    made.dies(old)
    assert made.answer(busy).kind is not None
    assert made.unanswered(waiting)
    made.boot()
    made.loaded(made.child())
    assert waiting.child is made.child()


def test_an_operator_ends_the_wait_of_a_device_whose_children_die() -> None:
    made = host()
    for _ in range(2):
        made.dies(made.child())
        if made.child().phase is Phase.FORKING:
            made.boot()
    assert made.child().phase is Phase.BACKOFF
    assert spawned(made.happens(RestartAsked(made.fleet.devices[0]))) == [made.child()]


def test_the_next_wait_of_such_a_device_is_as_long_as_if_nobody_had_ended_one() -> None:
    made = host()
    device = made.fleet.devices[0]
    for _ in range(4):
        made.dies(made.child())
        if made.child().phase is Phase.BACKOFF:
            made.happens(RestartAsked(device))
        made.boot()
    made.dies(made.child())
    assert device.restart_at is not None
    put_off_s = device.restart_at - made.now
    assert put_off_s > 5.0
    assert spawned(made.passes(put_off_s - 0.01)) == []
    assert spawned(made.passes(0.02)) == [made.child()]


@pytest.mark.parametrize("at_once", [False, True])
def test_nothing_is_replaced_while_the_supervisor_goes(at_once: bool) -> None:
    made = host()
    made.drains(within_s=None)
    assert made.happens(RestartAsked(made.fleet.devices[0], at_once)) == []


def test_it_is_said_why_a_child_is_replaced() -> None:
    made = host(Recycling(jobs=1))
    warm(made)
    assert "it has done 1 job" in "".join(each.message for each in made.actions if isinstance(each, Note))


def test_an_old_child_that_cannot_be_ended_costs_its_device_as_if_it_had_its_place_still() -> None:
    made = host(Recycling(jobs=1), devices=2)
    warm(made)
    index = next(index for index in range(2) if made.fleet.devices[index].coming is not None)
    device = made.fleet.devices[index]
    old, new = made.child(index), coming(made, index)
    boots(made, new)
    made.loaded(new)
    assert made.child(index) is new
    made.passes(16.0)  # it is drained, told to end, killed, and there it is
    assert device.health is Health.WEDGED
    assert made.child(index) is old
    made.dies(new)
    assert spawned(made.passes(30.0)) == []
    assert health(made, index) is Health.RETIRED
    made.drains()
    made.dies(made.child(1 - index))
    assert made.fleet.finished


def test_a_job_that_hangs_in_the_kernel_beside_a_new_child_keeps_the_device_from_everyone() -> None:
    made = host(Recycling(jobs=1))
    warm(made)
    busy, new = made.started(), coming(made)
    boots(made, new)
    made.loaded(new)
    waiting = made.submit()
    made.ends(busy, Reason.KILL, at_once=True)
    made.passes(12.0)
    assert health(made) is Health.WEDGED
    assert waiting.state is JobState.QUEUED
    made.dies(new)


@pytest.mark.parametrize("deaths", [1, 2])
def test_so_does_one_beside_a_new_child_that_died(deaths: int) -> None:
    made = host(Recycling(jobs=1))
    warm(made)
    busy, new = made.started(), coming(made)
    boots(made, new)
    made.loaded(new)
    made.ends(busy, Reason.KILL, at_once=True)
    made.passes(11.0)
    for _ in range(deaths):
        made.dies(made.child())
        if made.child().phase is Phase.FORKING:
            made.boot()
    made.passes(1.0)
    assert health(made) is Health.WEDGED
    assert made.child() is busy.child


def test_the_death_of_a_child_that_left_does_not_free_a_device_that_another_holds() -> None:
    made = host(Recycling(jobs=1))
    warm(made)
    old, new = made.child(), coming(made)
    made.ends(made.started(), Reason.KILL, at_once=True)
    made.passes(12.0)
    assert health(made) is Health.WEDGED
    made.dies(new)
    assert health(made) is Health.WEDGED
    made.dies(old)
    assert health(made) is Health.OK


@pytest.mark.promise(2)
def test_a_job_that_must_be_alone_waits_for_the_last_one_of_the_child_before() -> None:
    made = Host(function(), function("g", shape="async", lane="loop"))
    made.happens(MemoryRead(PLENTY))
    busy = made.started()
    made.happens(RestartAsked(made.fleet.devices[0]))
    boots(made, coming(made))
    first, suspect = made.submit("g", b"a"), made.submit("g", b"b")
    made.starts(first, suspect)
    made.dies(made.child())
    made.boot()
    assert suspect.alone
    assert (first.child, suspect.child) == (None, None)
    made.done(busy)
    assert [job.child for job in (first, suspect)].count(made.child()) == 1


def test_no_job_is_taken_back_for_a_child_whose_device_is_held_by_the_one_before() -> None:
    made = Host(function(), devices=2)
    made.happens(MemoryRead(PLENTY))
    function_of = made.fleet.functions["f"]
    for _ in range(8):
        made.done(made.started(), run_s=0.001)
    busy = made.submit(function=made.fleet.on_device(function_of, made.fleet.devices[0]))
    made.starts(busy)
    made.happens(RestartAsked(made.fleet.devices[0]))
    boots(made, coming(made))
    jobs = [made.submit() for _ in range(8)]
    assert {job.child for job in jobs} == {made.child(1)}
    assert sent(made.passes(1.0), Recall) == []
    assert sent(made.done(busy), Recall)


def test_a_child_that_is_killed_keeps_its_place_until_it_is_dead() -> None:
    made = host(Recycling(jobs=1))
    warm(made)
    old, new = made.child(), coming(made)
    boots(made, new)
    made.happens(Misbehaved(old, "rubbish"))
    made.loaded(new)
    assert made.child() is old
    made.dies(old)
    assert made.child() is new


def test_nothing_is_loaded_beside_the_last_job_of_the_child_before() -> None:
    made = Host(function(), function("other", instance="o"))
    made.fleet.recycling = Recycling(jobs=1)
    made.happens(MemoryRead(PLENTY))
    made.done(made.started())
    busy = made.started()
    boots(made, coming(made))
    waiting = made.submit("other")
    assert made.child().loading is None
    made.done(busy)
    assert made.child().loading == "o"
    made.loaded(made.child())
    assert waiting.child is made.child()


def test_an_operator_in_haste_has_the_jobs_of_the_child_before_ended_too() -> None:
    made = host()
    warm(made)
    busy = made.started()
    made.happens(RestartAsked(made.fleet.devices[0]))
    boots(made, coming(made))
    made.loaded(coming(made))
    made.happens(RestartAsked(made.fleet.devices[0], at_once=True))
    assert busy.ending is not None


def test_however_many_jobs_come_while_another_child_is_replaced_nothing_piles_up() -> None:
    made = host(Recycling(jobs=1), devices=2)
    warm(made)
    timers = len(made.fleet.timers)
    for _ in range(50):
        made.done(made.started())
    assert len(made.fleet.timers) < timers + 10


def test_a_child_is_not_recycled_while_the_other_devices_have_none() -> None:
    made = host(Recycling(jobs=1), LITTLE, devices=2)
    made.dies(made.child(0))
    warm_child = made.child(1)
    job = made.submit()
    made.loaded(warm_child)
    made.starts(job)
    made.done(job)
    assert warm_child.serving
    made.boot(made.fleet.devices[0])
    made.done(made.started())
    assert [device.child.phase for device in made.fleet.devices if device.child].count(Phase.DRAINING) == 1


def test_a_next_child_that_dies_while_it_loads_is_no_failed_load() -> None:
    made = host(Recycling(jobs=1))
    warm(made)
    new = coming(made)
    boots(made, new)
    assert new.loading == "m"
    made.dies(new)
    assert made.fleet.instance("m").failures == 0
    assert made.fleet.devices[0].coming is None


def test_every_child_is_replaced_at_its_age_one_after_the_other() -> None:
    made = host(devices=2)
    made.fleet.recycling = Recycling(age_s=100.0)
    for index in range(2):
        made.dies(made.child(index))
        made.boot(made.fleet.devices[index])
    made.passes(101.0)
    first = next(index for index in range(2) if made.fleet.devices[index].coming is not None)
    assert made.fleet.devices[1 - first].coming is None
    boots(made, coming(made, first))
    made.passes(6.0)
    assert coming(made, 1 - first)


def test_a_child_that_comes_gets_no_place_on_a_device_whose_child_cannot_be_ended() -> None:
    made = host(Recycling(jobs=1))
    warm(made)
    old, new = made.child(), coming(made)
    made.ends(made.started(), Reason.KILL, at_once=True)
    made.passes(12.0)
    assert health(made) is Health.WEDGED
    assert made.fleet.devices[0].coming is None
    made.passes(30.0)
    assert health(made) is Health.RETIRED
    made.dies(new)
    assert made.child() is old


def test_what_was_unloaded_while_a_child_came_is_not_brought_back_by_it() -> None:
    made = host(Recycling(jobs=1))
    warm(made)
    busy = made.started()
    new = coming(made)
    boots(made, new)
    made.happens(UnloadAsked(frozenset({"m"})))
    actions = made.loaded(new)
    assert made.fleet.resting == {"m"}
    assert made.child() is new
    assert sent(actions, Unload)
    assert "m" not in new.loaded
    made.done(busy)


def test_jobs_of_the_loop_do_not_wait_for_a_job_that_holds_the_device() -> None:
    made = Host(function(), function("g", shape="async", lane="loop"))
    made.fleet.recycling = Recycling(jobs=1)
    made.happens(MemoryRead(PLENTY))
    made.done(made.started())
    old, busy = made.child(), made.started()
    boots(made, coming(made))
    job = made.submit("g")
    assert job.child is made.child()
    assert job.child is not old
    assert busy.child is old


def test_of_two_children_of_a_device_that_cannot_be_ended_none_keeps_a_job() -> None:
    made = host(Recycling(jobs=1))
    first = made.child()
    warm(made)
    second = coming(made)
    job = made.started()  # in the child that leaves, before the next one is there
    boots(made, second)
    made.loaded(second)
    assert first.device.leaving == [first]
    made.happens(Misbehaved(second, "nonsense"))
    made.passes(1.0)
    made.happens(Misbehaved(first, "nonsense"))
    made.passes(60)
    assert not first.leased
    assert not made.unanswered(job)
