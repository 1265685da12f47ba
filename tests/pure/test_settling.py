"""A GPU whose child has died gets its next one when the memory is back; one that its driver gives up gets none."""

import signal

import pytest

from gen_worker.wire.messages import ErrorDetail
from gen_worker_supervisor.core.actions import Action, LookAtGpus, Note
from gen_worker_supervisor.core.evidence import GpuReading
from gen_worker_supervisor.core.fates import BACKOFF_LIMIT_S, SETTLE_S
from gen_worker_supervisor.core.happenings import DeviceFault, GpusRead, Misbehaved
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.phases import Health, JobState, Phase
from gen_worker_supervisor.core.settling import SPARE_BYTES
from gen_worker_supervisor.core.state import Death, Device
from tests.pure.host import Host, finishes, function, runs, signals, spawned

MIB, GIB = 1 << 20, 1 << 30
BASELINE = 300 * MIB


def gpu(index: int = 0, *, budget: int = 0) -> Device:
    """A GPU of 24 GiB, measured before its first child."""
    return Device(
        f"cuda:{index}", "cuda", index=index, vram_total=24 * GIB, vram_used=BASELINE, vram_baseline=BASELINE,
        budget_bytes=budget,
    )  # fmt: skip


def gpus(count: int = 1) -> Host:
    """A host with GPUs, each with a child that is ready."""
    return Host(function(gpu=True), devices=[gpu(index) for index in range(count)])


def uses(host: Host, used: int, index: int = 0) -> list[Action]:
    """Have the driver say what is in use of a GPU."""
    return host.happens(GpusRead([GpuReading(f"cuda:{index}", used, 24 * GIB)]))


def faults(host: Host, reason: str = "XID 79: the GPU has fallen off the bus", *, fatal: bool = True) -> list[Action]:
    """Have the driver report something of the first GPU."""
    return host.happens(DeviceFault("cuda:0", reason, fatal))


def notes(actions: list[Action]) -> list[str]:
    """Return what is written to the log."""
    return [action.message for action in actions if isinstance(action, Note)]


# --- the memory comes back --------------------------------------------------------------------------------------------


def test_the_next_child_waits_until_the_dead_ones_memory_is_back() -> None:
    host = gpus()
    died = host.dies(host.child())
    assert any(isinstance(action, LookAtGpus) for action in died)
    assert host.child().phase is Phase.SETTLING
    assert spawned(uses(host, BASELINE + 2 * GIB)) == []
    (following,) = spawned(uses(host, BASELINE + SPARE_BYTES))
    assert (following.generation, host.fleet.devices[0].health) == (2, Health.OK)


def test_a_device_that_nobody_measures_gets_its_next_child_at_once() -> None:
    host = Host()
    assert len(spawned(host.dies(host.child()))) == 1


def test_what_was_read_before_the_death_ends_no_wait() -> None:
    host = gpus()
    host.dies(host.child())
    assert host.fleet.devices[0].vram_used is None
    assert spawned(host.passes(SETTLE_S - 0.1)) == []


def test_memory_that_does_not_come_back_in_time_is_named_and_the_next_child_starts_with_less() -> None:
    host = Host(function(gpu=True), devices=[gpu(budget=20 * GIB)])
    host.dies(host.child())
    uses(host, BASELINE + 2 * GIB)
    over = host.passes(SETTLE_S)
    device = host.fleet.devices[0]
    assert len(spawned(over)) == 1
    assert (device.health, device.unattributed, device.allowed_bytes) == (Health.DIRTY, 2 * GIB, 18 * GIB)
    assert device.reason == "2048 MiB of its memory are in use and no child has them"
    assert notes(over)[0] == f"10 s after the child's death {device.reason}"


def test_a_dirty_device_is_clean_again_when_the_memory_comes_back_though_a_child_lives_on_it() -> None:
    host = gpus()
    host.dies(host.child())
    uses(host, BASELINE + 2 * GIB)
    host.passes(SETTLE_S)
    host.boot()
    device = host.fleet.devices[0]
    uses(host, BASELINE + 3 * GIB)  # the new child takes some
    assert (device.health, device.unattributed) == (Health.DIRTY, 2 * GIB)
    uses(host, BASELINE + 1 * GIB)
    assert (device.health, device.unattributed) == (Health.DIRTY, GIB)  # at most
    assert "the missing memory has come back" in notes(uses(host, BASELINE))
    assert (device.health, device.unattributed, device.reason) == (Health.OK, 0, "")


def test_memory_that_is_known_to_be_missing_is_not_waited_for_again() -> None:
    host = gpus()
    host.dies(host.child())
    uses(host, BASELINE + 2 * GIB)
    host.passes(SETTLE_S)
    host.boot()
    job = host.started()
    host.done(job)
    host.dies(host.child())
    assert len(spawned(uses(host, BASELINE + 2 * GIB))) == 1
    assert host.fleet.devices[0].health is Health.DIRTY


def test_of_a_gpu_that_its_driver_does_not_tell_of_nothing_is_known_and_nothing_has_come_back() -> None:
    host = gpus()
    device = host.fleet.devices[0]
    host.dies(host.child())
    uses(host, BASELINE + 2 * GIB)
    host.passes(SETTLE_S)
    assert device.health is Health.DIRTY
    assert notes(host.happens(GpusRead([], ["cuda:0"]))) == []
    assert (device.vram_used, device.busy, device.health, device.unattributed) == (None, None, Health.DIRTY, 2 * GIB)


def test_the_baseline_falls_and_never_creeps_up_by_what_children_leave() -> None:
    host = gpus()
    device = host.fleet.devices[0]
    uses(host, BASELINE - 100 * MIB)
    assert device.vram_baseline == BASELINE - 100 * MIB
    for _ in range(3):
        uses(host, BASELINE + 8 * GIB)
    assert device.vram_baseline == BASELINE - 100 * MIB


def test_a_driver_that_says_nothing_delays_one_child_and_no_other() -> None:
    host = gpus()
    host.dies(host.child())
    assert len(spawned(host.passes(SETTLE_S))) == 1
    host.boot()
    job = host.started()
    host.done(job)
    assert len(spawned(host.dies(host.child()))) == 1
    assert host.fleet.devices[0].health is Health.OK


def test_a_driver_that_was_silent_at_a_death_is_believed_again_when_it_speaks() -> None:
    host = gpus()
    device = host.fleet.devices[0]
    host.dies(host.child())
    uses(host, BASELINE + 2 * GIB)
    host.passes(SETTLE_S)
    host.boot()
    host.happens(GpusRead([], ["cuda:0"]))
    host.dies(host.child())
    host.passes(SETTLE_S)
    host.boot()
    assert device.health is Health.DIRTY
    uses(host, BASELINE)
    assert (device.health, device.unattributed) == (Health.OK, 0)
    host.dies(host.child())
    assert host.child().phase is Phase.SETTLING


def test_a_pause_after_several_deaths_is_kept_when_the_memory_is_back_before() -> None:
    host = gpus()
    host.dies(host.child())
    uses(host, BASELINE)
    host.boot()
    host.dies(host.child())
    assert spawned(uses(host, BASELINE)) == []
    assert host.child().phase is Phase.BACKOFF
    assert len(spawned(host.passes(1.0))) == 1


def test_a_drain_waits_for_no_memory() -> None:
    host = gpus()
    host.dies(host.child())
    assert finishes(host.drains()) == [0]


# --- a child that cannot be ended -------------------------------------------------------------------------------------


@pytest.mark.promise(8)
def test_the_job_of_a_child_that_cannot_be_ended_is_answered_once_and_runs_nowhere_else() -> None:
    host = gpus(2)
    job = host.started()
    stuck = job.child
    assert stuck is not None
    assert signals(host.happens(Misbehaved(stuck, "garbage"))) == [signal.SIGKILL]
    host.passes(10.0)
    outcome = host.answer(job)
    assert (outcome.state, outcome.retryable) == (JobState.RETRYABLE, True)
    assert outcome.detail is not None
    assert outcome.detail.cause == "unkillable"
    assert (stuck.device.health, stuck.device.reason) == (Health.WEDGED, "child 101 is not dead 10 s after SIGKILL")
    other = host.submit()
    assert other.child is not stuck
    host.passes(20.0)
    assert stuck.device.health is Health.RETIRED
    assert host.unanswered(other)


def test_a_wedged_device_whose_child_dies_after_all_settles_first() -> None:
    host = gpus()
    job = host.started()
    host.ends(job, Reason.KILL, at_once=True)
    host.passes(12.0)
    device = host.fleet.devices[0]
    assert device.health is Health.WEDGED
    host.dies(host.child())
    assert (device.health, device.reason, host.child().phase) == (Health.OK, "", Phase.SETTLING)
    assert len(spawned(uses(host, BASELINE))) == 1


# --- what the driver reports ------------------------------------------------------------------------------------------


def test_a_gpu_that_its_driver_gives_up_is_retired_at_once_and_its_job_told_so() -> None:
    host = gpus(2)
    job = host.started()
    waiting = [host.submit(), host.submit()]
    child = host.child()
    assert job.child is child
    found = faults(host)
    device = host.fleet.devices[0]
    assert (device.health, device.reason) == (Health.RETIRED, "XID 79: the GPU has fallen off the bus")
    assert signals(found) == [signal.SIGKILL]
    outcome = host.answer(job)
    assert (outcome.state, outcome.retryable) == (JobState.RETRYABLE, True)
    assert outcome.message == "its GPU is lost: XID 79: the GPU has fallen off the bus"
    assert outcome.detail == ErrorDetail(cause="device_lost")
    assert spawned(host.dies(child)) == []
    assert all(host.unanswered(each) for each in waiting)  # the other GPU runs them


def test_jobs_that_had_not_begun_on_a_lost_gpu_run_elsewhere() -> None:
    host = gpus(2)
    host.submit()
    leased = host.child().leased
    (job,) = leased.values()
    assert runs(faults(host)) == [] or job.child is not host.child(0)
    assert host.unanswered(job)


def test_the_last_gpu_that_is_lost_ends_the_supervisor() -> None:
    host = gpus()
    assert finishes(faults(host)) == [1]


@pytest.mark.parametrize("then", ["nothing", "death", "again", "late"])
def test_a_lost_gpu_stays_lost(then: str) -> None:
    host = gpus(2)
    child = host.child()
    faults(host)
    if then == "death":
        host.dies(child)
    elif then == "again":
        assert faults(host) == []
    elif then == "late":
        host.passes(60.0)
        host.dies(child, Death("SIGKILL", signal="SIGKILL"))
        uses(host, BASELINE)
    assert host.fleet.devices[0].health is Health.RETIRED
    assert host.child().generation == child.generation


def test_a_gpu_that_is_lost_while_its_next_child_is_put_off_gets_none() -> None:
    host = Host(function(gpu=True), devices=[Device(f"cuda:{index}", "cuda", index=index) for index in (0, 1)])
    host.dies(host.child())
    host.dies(host.boot())
    assert host.child().phase is Phase.BACKOFF
    faults(host)
    assert spawned(host.passes(BACKOFF_LIMIT_S)) == []
    jobs = [host.submit(), host.submit()]
    assert [job.child for job in jobs] == [host.child(1), None]


def test_a_gpu_may_be_lost_while_its_memory_settles_or_is_missing() -> None:
    for dirty in (False, True):
        host = gpus(2)
        host.dies(host.child())
        uses(host, BASELINE + GIB)
        host.passes(SETTLE_S if dirty else 1.0)
        faults(host)
        assert spawned(uses(host, BASELINE) + host.passes(60.0)) == []
        assert host.fleet.devices[0].health is Health.RETIRED


def test_what_spoils_only_a_context_is_noted_and_the_job_it_ends_names_it() -> None:
    host = gpus()
    job = host.started()
    assert notes(faults(host, "XID 31: GPU memory page fault", fatal=False)) == ["XID 31: GPU memory page fault"]
    host.fails(job, cause="cuda_error")
    assert host.answer(job).message == "no (XID 31: GPU memory page fault)"
    assert host.fleet.devices[0].health is Health.OK


def test_a_fault_of_long_ago_is_not_what_a_job_fails_of() -> None:
    host = gpus()
    faults(host, "XID 31: GPU memory page fault", fatal=False)
    host.passes(6.0)
    job = host.started()
    host.fails(job, cause="cuda_error")
    assert host.answer(job).message == "no"
