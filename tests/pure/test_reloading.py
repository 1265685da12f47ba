"""Changed code takes over on all devices at once when children of it are ready, or not at all."""

from gen_worker.wire.messages import Hello, Load, Ready
from gen_worker_supervisor.core.actions import TakeCode
from gen_worker_supervisor.core.evidence import MemoryReading
from gen_worker_supervisor.core.happenings import CodeChanged, MemoryRead, Reported, Spawned
from gen_worker_supervisor.core.phases import JobState
from gen_worker_supervisor.core.state import Child, Function
from tests.pure.host import CREDITS, Host, function, sent

GIB = 1 << 30
PLENTY = MemoryReading(0.0, GIB, 64 * GIB, "host", {})
LITTLE = MemoryReading(0.0, 64 * GIB - 1, 64 * GIB, "host", {})


def host(*functions: Function, devices: int = 1, memory: MemoryReading = PLENTY) -> Host:
    made = Host(*functions, devices=devices)
    made.happens(MemoryRead(memory))
    for index in range(devices):
        made.child(index).rss = GIB
    return made


def changes(made: Host, *functions: Function) -> None:
    made.happens(CodeChanged(1, [each.surveyed for each in functions]))


def boots(made: Host, child: Child) -> None:
    pid = 100 + child.generation
    made.happens(Spawned(child, pid), Reported(child, Hello(pid)))
    made.happens(Reported(child, Ready(list(made.fleet.functions), CREDITS, 7)))


def coming(made: Host, index: int = 0) -> Child:
    found = made.fleet.devices[index].coming
    assert found is not None
    return found


def taken(made: Host) -> list[bool]:
    return [action.taken for action in made.actions if isinstance(action, TakeCode)]


def test_the_changed_code_takes_over_when_a_child_of_it_is_ready_on_every_device() -> None:
    made = host(function("f"), devices=2)
    changes(made, function("f"), function("g"))
    boots(made, coming(made, 0))
    assert taken(made) == []
    assert set(made.fleet.functions) == {"f"}
    boots(made, second := coming(made, 1))
    assert taken(made) == [True]
    assert set(made.fleet.functions) == {"f", "g"}
    assert made.child(1) is second
    assert made.fleet.next_code is None


def test_a_child_of_the_changed_code_sets_up_what_the_present_one_has_first() -> None:
    made = host(function("f", instance="m"))
    job = made.submit()
    made.loaded(made.child())
    made.starts(job)
    made.done(job)
    changes(made, function("f", instance="m"))
    boots(made, new := coming(made))
    assert new.loading == "m"
    assert sent(made.loaded(new), Load) == []
    assert made.child() is new
    assert taken(made) == [True]


def test_what_runs_ends_where_it_runs_and_what_waits_goes_to_the_changed_code() -> None:
    made = host(function("f"))
    old = made.child()
    running, waiting = made.started(), made.submit()
    changes(made, function("f", vram_gb=None, batch=0, shape="generator"))
    boots(made, new := coming(made))
    assert taken(made) == [True]
    assert running.child is old
    made.done(running)
    assert waiting.child is new
    assert waiting.function is made.fleet.functions["f"]


def test_what_waits_for_a_function_that_was_taken_out_is_told_so() -> None:
    made = host(function("f"), function("g"))
    running, waiting = made.started(), made.submit()
    changes(made, function("g"))
    boots(made, coming(made))
    (told,) = made.answers[waiting.number]
    assert told.kind == "not_found"
    made.done(running)
    assert running.state is JobState.OK


def test_a_child_of_the_changed_code_whose_predecessor_dies_takes_no_job_before_its_code_is_served() -> None:
    made = host(function("f"), devices=2)
    changes(made, function("f"), function("g"))
    boots(made, first := coming(made, 0))
    made.dies(made.child(0))
    assert made.child(0) is first
    jobs = [made.submit() for _ in range(3)]
    assert {job.child for job in jobs if job.child is not None} == {made.child(1)}
    boots(made, coming(made, 1))
    assert taken(made) == [True]
    assert any(job.child is first for job in jobs)


def test_where_there_is_no_room_for_two_a_child_that_comes_after_a_death_waits_for_its_code() -> None:
    made = host(function("f"), devices=2)
    made.child(0).rss = 1 << 50
    changes(made, function("f"), function("g"))
    made.dies(made.child(0))
    job = made.submit()
    assert job.child is made.child(1)
    boots(made, coming(made, 1))
    assert taken(made) == [], "the one that comes after the death is not ready"
    boots(made, made.child(0))
    assert taken(made) == [True]


def test_code_whose_child_dies_changes_nothing() -> None:
    made = host(function("f"), devices=2)
    changes(made, function("g"))
    boots(made, coming(made, 0))
    made.dies(coming(made, 1))
    assert taken(made) == [False]
    assert set(made.fleet.functions) == {"f"}
    assert made.fleet.devices[0].coming is None
    assert made.started().child is made.child(0)


def test_code_whose_setup_fails_changes_nothing() -> None:
    made = host(function("f", instance="m"))
    job = made.submit()
    made.loaded(made.child())
    made.starts(job)
    made.done(job)
    old = made.child()
    changes(made, function("f", instance="m"), function("g"))
    boots(made, new := coming(made))
    made.load_fails(new)
    assert taken(made) == [False]
    assert made.child() is old
    assert set(made.fleet.functions) == {"f"}


def test_where_there_is_no_room_for_two_the_present_child_goes_first() -> None:
    made = host(function("f"), memory=LITTLE)
    changes(made, function("f"), function("g"))
    assert taken(made) == [True]
    assert made.child().retiring
    assert set(made.fleet.functions) == {"f", "g"}


def test_a_change_while_another_is_on_its_way_is_the_one_that_counts() -> None:
    made = host(function("f"))
    changes(made, function("g"))
    first = coming(made)
    made.happens(CodeChanged(2, [function("h").surveyed]))
    second = coming(made)
    assert second is not first
    assert first.killed
    boots(made, second)
    assert set(made.fleet.functions) == {"h"}
