"""A drained device ends what it has begun and gets nothing more; what only it could run is given back."""

import pytest

from gen_worker.wire.messages import Load, Recall
from gen_worker_supervisor.core.actions import Action, Note
from gen_worker_supervisor.core.drains import at_work
from gen_worker_supervisor.core.evidence import MemoryReading
from gen_worker_supervisor.core.happenings import DeviceDrainAsked, MemoryRead, RestartAsked
from gen_worker_supervisor.core.phases import Phase
from gen_worker_supervisor.core.state import LEASED_AHEAD, unloaded
from tests.pure.host import Host, function, held_by, sent

GIB = 1 << 30
REASON = "every device for it is drained by an operator"


def drain(made: Host, index: int = 0, *, undo: bool = False) -> list[Action]:
    return made.happens(DeviceDrainAsked(made.fleet.devices[index], undo))


def test_a_drained_device_is_given_no_job_and_another_one_is() -> None:
    made = Host(devices=2)
    drain(made)
    first, second = made.submit(), made.submit()
    assert held_by(first) is made.child(1)
    assert second.waiting
    made.starts(first)
    made.done(first)
    assert held_by(second) is made.child(1)


def test_what_runs_there_ends_and_what_has_not_begun_goes_elsewhere_in_its_place() -> None:
    made = Host(devices=1)
    made.fleet.functions["f"].ran(0.001)  # so quick that jobs are leased ahead
    running = made.started()
    ahead = made.submit()
    assert len(made.child().leased) == 2 <= LEASED_AHEAD
    actions = made.happens(DeviceDrainAsked(made.fleet.devices[0]))
    assert [each.job for each in sent(actions, Recall)] == [ahead.number]
    assert at_work(made.fleet.devices[0]) == [running, ahead]
    made.returns(ahead)
    assert made.answer(ahead).kind == "unavailable"
    made.done(running)
    assert made.answer(running).kind is None
    assert at_work(made.fleet.devices[0]) == []


def test_jobs_that_only_drained_devices_could_run_are_given_back_and_new_ones_refused() -> None:
    made = Host(devices=2)
    busy = [made.started() for _ in range(2)]
    waiting = made.submit()
    drain(made, 0)
    assert waiting.waiting
    drain(made, 1)
    for job in (waiting, made.submit()):
        outcome = made.answer(job)
        assert (outcome.kind, outcome.retryable) == ("unavailable", True)
        assert REASON in outcome.message
    assert all(made.unanswered(job) for job in busy)


def test_a_job_for_one_device_is_given_back_when_that_is_drained() -> None:
    made = Host(devices=2)
    made.started()
    device = made.fleet.devices[0]
    bound = made.fleet.on_device(made.fleet.functions["f"], device)
    waiting = made.submit(function=bound)
    drain(made)
    assert "`cpu:0` is drained" in made.answer(waiting).message
    assert made.unanswered(made.submit())


def test_after_an_undrain_it_serves_at_once() -> None:
    made = Host(devices=1)
    drain(made)
    drain(made)  # a second time changes nothing
    assert made.answer(made.submit()).kind == "unavailable"
    told = [each.message for each in drain(made, undo=True) if isinstance(each, Note)]
    assert told == ["an operator lets it have jobs again"]
    assert held_by(made.submit()) is made.child()


def test_the_next_child_of_a_drained_device_gets_no_job_either() -> None:
    made = Host(devices=2)
    running = made.started()
    home = held_by(running).device
    drain(made, made.fleet.devices.index(home))
    made.dies(held_by(running))
    made.boot(home)
    assert home.drained
    assert held_by(running).device is not home  # it runs once more


@pytest.mark.parametrize("room", [True, False], ids=["beside the one before", "after it"])
def test_a_child_that_is_replaced_leaves_its_device_drained(room: bool) -> None:
    made = Host(devices=1)
    if room:
        made.happens(MemoryRead(MemoryReading(made.now, GIB, 64 * GIB, "host", {})))
    drain(made)
    made.happens(RestartAsked(made.fleet.devices[0]))
    assert made.fleet.devices[0].drained
    assert made.answer(made.submit()).kind == "unavailable"


def test_what_is_loaded_stays_and_an_eager_fleet_goes_on_to_load() -> None:
    made = Host(function(instance="m"), devices=1, eager=True, up=False)
    drain(made)
    made.boot()
    child = made.child()
    assert child.loading == "m"
    made.loaded(child)
    assert unloaded(made.fleet, child) == []
    assert child.phase is Phase.READY


def test_no_model_is_loaded_on_a_drained_device_for_a_job() -> None:
    made = Host(function(instance="m"), devices=2)
    drain(made)
    made.submit()
    assert made.child(0).loading is None
    assert made.child(1).loading == "m"
    assert len(sent(made.actions, Load)) == 1


def test_a_suspect_does_not_keep_a_drained_device_free() -> None:
    made = Host(devices=1)
    running = made.started()
    suspect = made.submit()
    suspect.alone = True
    made.happens()
    assert made.child().reserved is suspect
    drain(made)
    assert made.child().reserved is None
    assert made.answer(suspect).kind == "unavailable"
    made.done(running)
    drain(made, undo=True)
    assert held_by(made.submit()) is made.child()


def test_jobs_that_wait_for_their_files_are_given_back_too() -> None:
    made = Host(devices=1)
    job = made.submit()
    held = made.submit()
    made.fleet.dequeue(held)
    made.fleet.park(held)
    drain(made)
    assert made.answer(held).kind == "unavailable"
    assert made.unanswered(job)


def test_what_an_orchestrator_wants_loaded_goes_to_a_drained_device_only_where_all_are() -> None:
    made = Host(function(instance="m"), devices=2)
    drain(made, 0)
    made.fleet.loads["m"] = ""
    made.happens()
    assert [made.child(index).loading for index in range(2)] == [None, "m"]
    made = Host(function(instance="m"), devices=1)
    drain(made)
    made.fleet.loads["m"] = ""
    made.happens()
    assert made.child().loading == "m"


def test_what_only_a_drained_device_could_load_is_refused_until_it_is_there_again() -> None:
    made = Host(function(instance="m"), devices=2)
    drain(made, 0)
    job = made.submit()
    made.load_fails(made.child(1), "out_of_memory")
    assert made.answer(job).kind == "out_of_memory"
    assert made.answer(made.submit()).retryable
    drain(made, 0, undo=True)
    again = made.submit()
    made.loaded(made.child(0))
    assert held_by(again) is made.child(0)


def test_what_a_drained_device_has_loaded_keeps_nobody_waiting_whose_device_cannot_load_it() -> None:
    made = Host(function(instance="m"), devices=2)
    first = made.submit()
    made.loaded(made.child(0))
    made.starts(first)
    made.done(first)
    drain(made, 0)
    job = made.submit()
    for _ in range(3):
        made.load_fails(made.child(1))
    assert not made.unanswered(job)
    drain(made, 0, undo=True)
    assert held_by(made.submit()) is made.child(0)
