"""Who is ended when the memory is short, and what is let go of before."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker_supervisor.core.actions import Action, FreeMemory, Note
from gen_worker_supervisor.core.evidence import MemoryReading, Room
from gen_worker_supervisor.core.guard import cause_known, default_reserve, doubts, most_over, needed_bytes
from gen_worker_supervisor.core.happenings import MemoryRead, RestartAsked, Weighed
from gen_worker_supervisor.core.phases import Health, JobState, Phase
from gen_worker_supervisor.core.state import Child, Death, Device, Job
from tests.pure.host import Caller, Host, function, signals

MIB, GIB = 1 << 20, 1 << 30
LIMIT, RESERVE = 16 * GIB, GIB
USUAL = 300 * MIB
SIGKILL = 9
KILLED = Death("SIGKILL", signal="SIGKILL")


class Guarded(Host):
    """A host with a reserve, whose children were weighed when they were ready."""

    def __init__(self, devices: int = 2, reserve: int = RESERVE) -> None:
        super().__init__(function(), devices=devices)
        self.fleet.memory_reserve = reserve
        self.sizes: dict[int, int] = {}
        for device in self.fleet.devices:
            assert device.child is not None
            self.weighed(device.child)

    def weighed(self, child: Child, rss: int = USUAL) -> None:
        """Have a child weighed before its first job."""
        self.sizes[child.generation] = rss
        self.happens(Weighed(child, rss))

    def reads(self, left: int, models: int = 0) -> list[Action]:
        """Have the memory looked at."""
        self.now += 0.05
        return self.happens(MemoryRead(MemoryReading(self.now, LIMIT - left, LIMIT, "host", dict(self.sizes), models)))

    def grows(self, child: Child, by: int) -> None:
        """Have a child take more."""
        self.sizes[child.generation] += by


def running(host: Guarded) -> list[Job]:
    """Have each child run a job."""
    return [host.started(body=b"%d" % number) for number in range(len(host.fleet.devices))]


def notes(actions: list[Action]) -> list[str]:
    return [action.message for action in actions if isinstance(action, Note) and action.source == "memory"]


# --- who is ended -----------------------------------------------------------------------------------------------------


def test_with_enough_left_nothing_happens() -> None:
    host = Guarded()
    host.grows(host.child(0), 8 * GIB)
    assert host.reads(RESERVE) == []
    assert host.child(0).rss == USUAL + 8 * GIB


@pytest.mark.promise(4)
def test_the_child_that_takes_most_more_than_usual_is_ended_at_once() -> None:
    host = Guarded()
    running(host)
    leaking, other = host.child(0), host.child(1)
    host.weighed(other, 6 * GIB)  # it has large models, and takes no more than that
    host.grows(other, 80 * MIB)
    host.grows(leaking, 2 * GIB)
    actions = host.reads(RESERVE - 1)
    assert signals(actions) == [SIGKILL]
    assert (leaking.doom, other.doom) == ("host_oom", "")
    (said,) = notes(actions)
    assert said == (
        f"is short: 1024 MiB of 16.00 GiB are left (host); child {leaking.pid} of cpu:0 is ended: it takes 2.29 GiB,"
        " 2.00 GiB more than usual"
    )


def test_of_two_alike_the_one_that_runs_a_job_is_ended_then_the_one_whose_job_is_the_newest() -> None:
    host = Guarded(devices=3)
    for child in map(host.child, range(3)):
        host.grows(child, GIB)
    host.grows(host.child(2), 10 * MIB)
    host.started()
    host.passes(1)
    newest = host.started(body=b"2")
    host.reads(RESERVE - 1)
    assert [host.child(index).doom for index in range(3)].count("host_oom") == 1
    assert newest.child is not None
    assert newest.child.doom == "host_oom"


def test_one_that_does_not_matter_is_never_ended() -> None:
    host = Guarded()
    host.grows(host.child(0), 63 * MIB)
    assert signals(host.reads(RESERVE - 1)) == []


def test_a_child_that_boots_is_taken_to_be_like_the_others() -> None:
    device = Device("cpu:0", "cpu")
    ready, booting = Child(device, 1, 0.0), Child(device, 2, 0.0)
    ready.rss = ready.usual_rss = booting.rss = USUAL
    assert most_over([ready, booting]) is None
    booting.rss += 100 * MIB
    assert most_over([ready, booting]) is booting


def test_a_child_that_boots_is_taken_to_be_like_the_one_before_it_where_all_are_new() -> None:
    host = Guarded(devices=1)
    host.weighed(host.child(), 2 * GIB)
    host.dies(host.child())
    host.sizes[host.child().generation] = 1 * GIB  # it imports what the one before had imported
    assert signals(host.reads(RESERVE - 1)) == []


def test_one_whose_end_gives_back_too_little_is_not_ended_for_having_a_job() -> None:
    host = Guarded()
    host.started()
    working, other = sorted(host.fleet.children(), key=lambda child: -child.used["device"])
    host.grows(working, 30 * MIB)
    host.grows(other, 80 * MIB)
    assert signals(host.reads(RESERVE - 1)) == [SIGKILL]
    assert (working.doom, other.doom) == ("", "host_oom")


def test_what_a_child_gave_back_is_not_its_usual_size_any_more() -> None:
    host = Guarded()
    child = host.child(0)
    host.weighed(child, 4 * GIB)
    host.grows(child, -3 * GIB)
    host.reads(8 * GIB)
    host.grows(child, GIB)
    assert signals(host.reads(RESERVE - 1)) == [SIGKILL]


def test_a_child_that_is_to_replace_another_goes_first_for_nobody_needs_it_yet() -> None:
    host = Guarded(devices=1)
    host.reads(8 * GIB)  # room for two
    host.happens(RestartAsked(host.fleet.devices[0]))
    child, coming = host.child(), host.fleet.devices[0].coming
    assert coming is not None
    host.sizes[coming.generation] = 100 * MIB
    host.grows(child, 2 * GIB)
    host.reads(RESERVE - 1)
    assert (child.doom, coming.doom) == ("", "host_oom")
    host.dies(coming, KILLED)
    assert host.child() is child


def test_a_device_is_not_given_up_because_its_next_child_had_no_room_to_start() -> None:
    host = Guarded(devices=1)
    host.dies(host.child(), KILLED)
    for _ in range(5):
        host.passes(61)
        host.dies(host.child(), Death("SIGKILL", signal="SIGKILL", oom_kills=1))
    assert not host.fleet.devices[0].lost
    host.passes(61)
    host.boot()


# --- one at a time ----------------------------------------------------------------------------------------------------


def test_the_next_one_waits_until_the_first_is_gone_and_two_looks_found_too_little_again() -> None:
    host = Guarded()
    jobs = running(host)
    for child in (host.child(0), host.child(1)):
        host.grows(child, GIB)
    assert signals(host.reads(100 * MIB)) == [SIGKILL]
    for _ in range(5):
        assert signals(host.reads(100 * MIB)) == []
    dying = next(child for child in (host.child(0), host.child(1)) if child.doom)
    host.dies(dying, KILLED)
    assert signals(host.reads(100 * MIB)) == []
    assert signals(host.reads(100 * MIB)) == [SIGKILL]
    assert all(host.unanswered(job) for job in jobs)


def test_one_that_cannot_die_keeps_nobody_from_being_ended() -> None:
    host = Guarded()
    first, second = host.child(0), host.child(1)
    host.grows(first, 2 * GIB)
    host.grows(second, GIB)
    host.reads(RESERVE - 1)
    host.passes(11)
    assert first.device.health is Health.WEDGED
    assert [signals(host.reads(RESERVE - 1)) for _ in range(3)] == [[], [SIGKILL], []]
    assert second.doom == "host_oom"


def test_the_end_of_the_shortage_is_told_once_and_not_at_every_breath() -> None:
    host = Guarded()
    assert [len(notes(host.reads(RESERVE - 1))) for _ in range(4)] == [0, 1, 0, 0]
    assert notes(host.reads(RESERVE + 1)) == []
    assert notes(host.reads(RESERVE - 1)) == []
    assert notes(host.reads(RESERVE - 1)) == []
    assert notes(host.reads(2 * RESERVE)) == ["is short no more: 2.00 GiB of 16.00 GiB are left (host)"]
    assert notes(host.reads(2 * RESERVE)) == []


# --- where no child is to blame ---------------------------------------------------------------------------------------


def test_where_no_child_has_grown_models_in_host_memory_go_first_as_many_as_it_takes() -> None:
    host = Guarded()
    assert host.reads(RESERVE // 2, models=5 * GIB) == []
    actions = host.reads(RESERVE // 2, models=5 * GIB)
    assert [action.size for action in actions if isinstance(action, FreeMemory)] == [RESERVE * 3 // 4]
    assert signals(actions) == []
    assert "models in host memory are let go of" in notes(actions)[0]


def test_with_nothing_to_let_go_of_somebody_is_told_and_nobody_ended_while_some_is_left() -> None:
    host = Guarded()
    assert host.reads(RESERVE // 2) == []
    actions = host.reads(RESERVE // 2)
    assert notes(actions) == ["is short: 512 MiB of 16.00 GiB are left (host); no child takes more than usual"]
    assert signals(actions) == []


def test_with_the_last_of_it_going_the_largest_child_is_ended_as_the_kernel_would() -> None:
    host = Guarded()
    host.weighed(host.child(1), 5 * GIB)
    assert [signals(host.reads(RESERVE // 5)) for _ in range(2)] == [[], [SIGKILL]]
    assert host.child(1).doom == "host_oom"


def test_without_a_reserve_the_memory_is_only_looked_at() -> None:
    host = Guarded(reserve=0)
    host.grows(host.child(0), 8 * GIB)
    assert host.reads(0) == []
    assert host.fleet.memory is not None


# --- whatever happens ---


MOVES = st.lists(
    st.tuples(st.sampled_from(["read", "grow", "die", "boot", "pass", "start"]), st.integers(0, 2), st.integers(0, 20)),
    max_size=60,
)


@given(MOVES)
def test_whatever_happens_one_is_ended_at_a_time_and_never_for_nothing(moves: list[tuple[str, int, int]]) -> None:
    host = Guarded(devices=3)
    for what, index, amount in moves:
        child = host.child(index)
        match what:
            case "read":
                doomed = [each for each in host.fleet.children() if each.doom and each.phase is Phase.DYING]
                found = signals(host.reads(amount * GIB // 8, models=index * GIB))
                assert len(found) + len(doomed) <= 1 or host.fleet.devices[index].health is not Health.OK
                assert not found or amount < 8
            case "grow":
                host.sizes[child.generation] = host.sizes.get(child.generation, 0) + amount * 100 * MIB
            case "die" if child.killed and child.phase is Phase.DYING:
                host.dies(child, KILLED)
            case "boot" if child.phase is Phase.FORKING:
                host.weighed(host.boot(host.fleet.devices[index]))
            case "pass":
                host.passes(amount / 10)
            case "start":
                host.submit(body=b"%d" % amount)
    assert all(len(answers) == 1 for answers in host.answers.values())


# --- what is told -----------------------------------------------------------------------------------------------------


@pytest.mark.promise(4)
@pytest.mark.parametrize(("reruns", "state"), [(True, JobState.FATAL), (False, JobState.RETRYABLE)])
def test_its_job_runs_once_more_alone_or_may_be_tried_elsewhere_and_is_told_the_cause(
    reruns: bool, state: JobState
) -> None:
    host = Guarded(devices=1)
    job = host.submit(client=Caller("wire"), reruns=reruns)
    host.starts(job)
    for _ in range(2 if reruns else 1):
        child = host.child()
        host.grows(child, 2 * GIB)
        while not child.doom:
            host.reads(RESERVE - 1)
        host.dies(child, KILLED)
        if host.unanswered(job):
            host.weighed(host.boot())
            host.starts(job)
    answer = host.answer(job)
    assert (answer.state, answer.kind) == (state, "child_died")
    assert answer.detail is not None
    assert (answer.detail.cause, answer.detail.signal) == ("host_oom", "SIGKILL")


@pytest.mark.promise(4)
@pytest.mark.parametrize("reruns", [True, False])
def test_a_child_that_took_no_more_than_usual_is_ended_at_the_cost_of_nobody_who_is_to_blame(reruns: bool) -> None:
    host = Guarded(devices=1)
    job = host.submit(client=Caller("wire"), reruns=reruns)
    host.starts(job)
    births = []
    for _ in range(2 if reruns else 1):
        child = host.child()
        while not child.doom:
            host.reads(RESERVE // 5)
        host.dies(child, KILLED)
        births.append(host.fleet.devices[0].restart_at or 0.0)
        births[-1] -= host.now
        host.passes(5.0)
        if host.unanswered(job):
            host.weighed(host.boot())
            host.starts(job)
    answer = host.answer(job)
    assert (answer.state, answer.kind) == (JobState.RETRYABLE, "child_died")
    assert answer.detail is not None
    assert (answer.detail.cause, answer.detail.signal) == ("host_oom", "SIGKILL")
    assert "no more memory than usual" in answer.message
    assert host.fleet.blame.listed(host.now) == []
    assert births == sorted(births)  # each is left more time, for the next one would be ended, too
    assert births[0] > 0.5


def test_a_kill_of_the_kernels_is_known_by_its_counter_and_nobody_elses_is_taken_for_one() -> None:
    child = Child(Device("cpu:0", "cpu"), 1, 0.0)
    counted = Death("SIGKILL", signal="SIGKILL", oom_kills=1)
    assert cause_known(child, counted).cause == "host_oom"
    assert cause_known(child, KILLED).cause == "SIGKILL"
    assert cause_known(child, Death("SIGSEGV", signal="SIGSEGV", oom_kills=1)).cause == "SIGSEGV"
    child.killed = True  # by the ladder
    assert cause_known(child, counted).cause == "SIGKILL"


# --- before anything runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "reserve"),
    [(512 * MIB, 128 * MIB), (2 * GIB, 256 * MIB), (16 * GIB, 16 * GIB * 4 // 100), (512 * GIB, 2 * GIB)],
)
def test_a_share_of_the_memory_stays_free(limit: int, reserve: int) -> None:
    assert default_reserve(limit) == reserve


def test_a_start_says_what_a_kernel_would_do_to_all_and_what_is_too_little() -> None:
    enough, little = Room("cgroup v2", 4 * GIB, 0), Room("cgroup v2", 600 * MIB, 0)
    assert doubts(enough, 256 * MIB, needed_bytes(["torch"]), []) == []
    (small,) = doubts(little, 150 * MIB, needed_bytes(["torch"]), [])
    assert small == (
        "the memory's limit is 600 MiB (cgroup v2), of which 150 MiB stay free: a supervisor and one child take"
        " 640 MiB; hint: give it more memory"
    )
    assert doubts(little, 150 * MIB, needed_bytes([]), []) == []
    (group,) = doubts(enough, 0, needed_bytes([]), [Path("/sys/fs/cgroup")])
    assert "ends everything in `/sys/fs/cgroup` at once" in group
    assert "`singleProcessOOMKill`" in group
    assert "`GEN_WORKER_MEMORY_RESERVE`" in group
