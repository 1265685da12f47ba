"""What becomes of jobs, children and devices, told as stories on the pure core."""

import signal
import time

import pytest

from gen_worker.wire.messages import (
    Cancel,
    Done,
    Drain,
    Event,
    Failed,
    Hello,
    ImportFailed,
    Interrupt,
    Item,
    Lane,
    Loaded,
    LoadFailed,
    Ready,
    Recall,
    Region,
    Report,
    Returned,
    Started,
)
from gen_worker_supervisor.core.actions import Answer, Deliver, Discard, Note, Spawn
from gen_worker_supervisor.core.fates import BOOT_LIMIT_S
from gen_worker_supervisor.core.happenings import Began, Misbehaved, Reported, RestartAsked, Spawned
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.phases import Health, JobState, Phase
from gen_worker_supervisor.core.state import TIMERS_KEPT, Child, Death, Device, Job
from gen_worker_supervisor.core.verdicts import UNAVAILABLE_S
from tests.pure.host import (
    CREDITS,
    KILLED,
    Host,
    finishes,
    function,
    held_by,
    runs,
    sent,
    signals,
    spawned,
)

SEGV = Death(
    "SIGSEGV", signal="SIGSEGV", stack=('File "main.py", line 3 in f',), printed=((1, "oh"), (2, "ah"), (0, ""))
)


def loop_host() -> Host:
    """A host whose function runs many at once in a child."""
    return Host(function("loop", shape="async", lane="loop"))


def fast_host(devices: int = 1) -> Host:
    """A host whose function is known to be fast, so that its jobs are leased ahead."""
    host = Host(devices=devices)
    host.done(host.started(), run_s=0.001)
    return host


# --- the fate of a job when its child dies ----------------------------------------------------------------------------


def test_a_queued_job_does_not_notice_a_death() -> None:
    host = Host()
    host.started()
    waiting = host.submit()
    host.dies(host.child())
    assert waiting.state is JobState.QUEUED
    assert waiting.deaths == 0


def test_jobs_that_had_not_started_are_queued_again_at_the_front_in_order_and_uncharged() -> None:
    host = fast_host()
    running = host.started()
    leased = [host.submit(), host.submit()]
    late = [host.submit() for _ in range(20)][-1]
    assert [job.state for job in leased] == [JobState.LEASED] * 2
    host.dies(host.child())
    queue = list(host.fleet.functions["f"].queue)
    assert queue[:3] == [running, *leased]
    assert queue[-1] is late
    assert [job.deaths for job in (running, *leased)] == [1, 0, 0]
    assert not any(job.alone for job in leased)


def test_a_started_job_runs_once_more_alone() -> None:
    host = Host(devices=2)
    guilty = host.started()
    host.dies(held_by(guilty))
    assert guilty.alone
    assert guilty.state is JobState.LEASED, "the other child was idle"
    child = held_by(guilty)
    host.starts(guilty)
    other = host.submit()
    assert other.state is JobState.QUEUED, "nothing shares the child with it"
    host.done(guilty)
    assert host.answer(guilty).state is JobState.OK
    assert other.child is child


def test_a_job_that_kills_its_second_child_is_answered_with_the_cause() -> None:
    host = Host(devices=2)
    guilty = host.started()
    host.dies(held_by(guilty), SEGV)
    host.starts(guilty)
    host.dies(held_by(guilty), SEGV)
    answer = host.answer(guilty)
    assert (answer.state, answer.kind, answer.retryable) == (JobState.FATAL, "child_died", False)
    assert answer.detail is not None
    assert (answer.detail.cause, answer.detail.signal) == ("SIGSEGV", "SIGSEGV")
    assert (answer.detail.stack, answer.detail.stderr) == (list(SEGV.stack), ["oh"])


@pytest.mark.promise(2)
def test_a_payload_that_killed_two_children_never_meets_a_third() -> None:
    host = Host(devices=3)
    guilty = host.started(body=b"bad")
    for _ in range(2):
        host.dies(held_by(guilty), SEGV)
        if not guilty.ended:
            host.starts(guilty)
    again = host.submit(body=b"bad")
    answer = host.answer(again)
    assert (answer.state, answer.kind) == (JobState.FATAL, "quarantined")
    assert answer.detail is not None
    assert (answer.detail.cause, answer.detail.stack) == ("SIGSEGV", list(SEGV.stack))
    assert host.submit(body=b"good").state is JobState.LEASED


def test_a_rerun_that_succeeds_clears_its_payload() -> None:
    host = Host(devices=2)
    job = host.started(body=b"p")
    host.dies(held_by(job))
    host.starts(job)
    host.done(job)
    again = host.started(body=b"p")
    host.dies(held_by(again))
    assert host.unanswered(host.submit(body=b"p")), "one death since is no second one"


def test_several_started_jobs_each_run_alone_before_one_is_blamed() -> None:
    host = loop_host()
    jobs = [host.submit("loop", bytes([n])) for n in range(3)]
    host.starts(*jobs)
    host.dies(host.child())
    assert [job.deaths for job in jobs] == [1, 1, 1]
    assert not host.fleet.blame.suspects("loop", host.now), "nobody knows who it was"
    host.boot()
    order: list[Job] = []
    while remaining := [job for job in jobs if not job.ended]:
        (alone,) = [job for job in remaining if job.state is JobState.LEASED]
        assert list(host.child().leased.values()) == [alone]
        host.starts(alone)
        host.done(alone)
        order.append(alone)
    assert order == jobs


def test_a_stream_that_had_begun_ends_retryable_and_says_so() -> None:
    host = Host(function("f", shape="generator"))
    job = host.started(stream=True)
    host.item(job)
    assert job.state is JobState.EMITTED
    host.dies(host.child())
    answer = host.answer(job)
    assert (answer.state, answer.kind, answer.retryable) == (JobState.RETRYABLE, "retryable", True)
    assert "part of the stream had left" in answer.message


def test_a_buffered_stream_has_emitted_nothing_and_runs_again() -> None:
    host = Host(function("f", shape="generator"), devices=2)
    job = host.started(stream=False)
    host.item(job)
    host.dies(held_by(job))
    assert host.unanswered(job)
    assert job.alone


def test_a_log_line_of_a_stream_does_not_count_as_an_item() -> None:
    host = Host(function("f", shape="generator"), devices=2)
    job = host.started(stream=True)
    host.reports(held_by(job), Event(job.number, "log", b"{}"))
    host.dies(held_by(job))
    assert host.unanswered(job)


@pytest.mark.promise(48)
def test_a_result_that_was_read_before_the_death_is_the_result() -> None:
    host = Host()
    job = host.started()
    host.done(job)
    host.dies(host.child(), SEGV)
    assert host.answer(job).state is JobState.OK
    assert not host.fleet.blame.suspects("f", host.now)


@pytest.mark.parametrize(
    ("reason", "seconds", "state", "kind", "cause"),
    [
        (Reason.KILL, 6.3, JobState.CANCELED, "killed", "killed"),
        (Reason.CANCEL, 31.3, JobState.CANCELED, "canceled", "cancel"),
        (Reason.DISCONNECT, 31.3, JobState.CANCELED, "canceled", "disconnect"),
        (Reason.DEADLINE, 6.3, JobState.FATAL, "deadline", "deadline"),
        (Reason.DRAIN, 11.3, JobState.RETRYABLE, "draining", "drain"),
    ],
)
def test_a_job_that_the_ladder_ended_is_never_rerun(
    reason: Reason, seconds: float, state: JobState, kind: str, cause: str
) -> None:
    host = Host(devices=2)
    job = host.started()
    host.ends(job, reason)
    host.passes(seconds + 0.01)
    host.dies(held_by(job), SEGV)
    answer = host.answer(job)
    assert (answer.state, answer.kind) == (state, kind)
    assert answer.detail is not None
    assert (answer.detail.cause, answer.detail.rung) == (cause, 5)
    assert answer.detail.stack == list(SEGV.stack)
    assert not host.fleet.blame.suspects("f", host.now), "we killed it"


def test_bystanders_of_a_killed_child_run_again_uncharged_and_not_alone() -> None:
    host = loop_host()
    hung, bystander, waiting = (host.submit("loop") for _ in range(3))
    host.starts(hung, bystander)
    host.ends(hung, Reason.KILL, at_once=True)
    host.passes(2)
    host.dies(host.child(), KILLED)
    assert host.answer(hung).kind == "killed"
    host.boot()
    for job in (bystander, waiting):
        assert job.state is JobState.LEASED
        assert (job.deaths, job.alone) == (0, False)
    assert not host.fleet.blame.suspects("loop", host.now)


def test_a_killed_childs_replacement_comes_without_a_pause() -> None:
    host = Host()
    for _ in range(4):
        job = host.started()
        host.ends(job, Reason.KILL, at_once=True)
        host.passes(2)
        assert len(spawned(host.dies(host.child()))) == 1
        host.boot()


# --- what is read of a status page ------------------------------------------------------------------------------------


def test_a_job_that_the_status_page_names_has_started() -> None:
    host = Host(devices=2)
    job = host.submit()
    host.happens(Began(held_by(job), job.number, host.now))
    host.dies(held_by(job))
    assert job.alone


@pytest.mark.parametrize("since", [float("nan"), float("inf"), -1e300, 1e300])
def test_whatever_time_a_child_writes_on_its_page_no_timer_is_upset(since: float) -> None:
    host = fast_host(devices=2)
    job = host.submit()
    for _ in range(4):
        host.submit()
    host.happens(Began(held_by(job), job.number, since))
    assert job.started == host.now
    host.passes(1.0)
    assert all(at == at for at, _, _ in host.fleet.timers)


def test_a_status_page_that_names_nobodys_job_changes_nothing() -> None:
    host = Host()
    host.happens(Began(host.child(), 99, host.now))
    assert host.child().phase is Phase.READY


# --- cancel, kill and deadline ----------------------------------------------------------------------------------------


def test_a_queued_job_is_cancelled_at_once() -> None:
    host = Host()
    host.started()
    waiting = host.submit()
    host.ends(waiting)
    assert host.answer(waiting).kind == "canceled"
    assert host.fleet.queued == 0


@pytest.mark.promise(49)
def test_a_cancel_before_the_start_is_not_lost() -> None:
    host = fast_host()
    host.started()
    leased = host.submit()
    assert [frame.job for frame in sent(host.ends(leased), Cancel)] == [leased.number]
    assert host.unanswered(leased), "the child may have started it meanwhile"
    host.returns(leased)
    assert host.answer(leased).kind == "canceled"


def test_a_cancel_that_meets_the_end_leaves_the_result() -> None:
    host = Host()
    job = host.started()
    host.ends(job)
    host.done(job)
    assert host.answer(job).state is JobState.OK


def test_the_first_end_of_a_job_counts_and_what_comes_later_is_dropped() -> None:
    host = Host()
    job = host.started()
    child = held_by(job)
    host.done(job)
    host.ends(job, Reason.KILL, at_once=True)
    host.dies(child)
    assert host.answer(job).state is JobState.OK


def test_what_a_job_returns_is_welcome_yet_where_only_its_worker_wants_it_to_end() -> None:
    host = Host()
    job = host.started()
    assert sent(host.ends(job, Reason.DRAIN), Cancel) == [Cancel(job.number, unheard=False)]


def test_a_running_job_climbs_the_ladder() -> None:
    host = Host()
    job = host.started()
    assert sent(host.ends(job, Reason.KILL), Cancel) == [Cancel(job.number, unheard=True)]
    assert sent(host.passes(4.0), Interrupt) == [Interrupt(job.number)]
    assert signals(host.passes(1.0)) == [signal.SIGUSR2]
    assert host.child().phase is Phase.SUSPECT
    assert signals(host.passes(0.3)) == [signal.SIGTERM]
    assert host.child().phase is Phase.DYING
    assert signals(host.passes(1.0)) == [signal.SIGKILL]


def test_a_kill_at_once_needs_no_frame_from_the_child() -> None:
    host = Host()
    job = host.started()
    assert signals(host.ends(job, Reason.KILL, at_once=True)) == [signal.SIGUSR2]
    assert signals(host.passes(1.3)) == [signal.SIGTERM, signal.SIGKILL]


def test_a_job_behind_a_hung_one_is_ended_without_harm_to_that() -> None:
    host = fast_host()
    hung = host.started()
    child = held_by(hung)
    leased = host.submit()
    host.ends(leased, Reason.KILL, at_once=True)
    assert host.answer(leased).kind == "killed"
    assert signals(host.passes(10)) == []
    host.done(hung)
    assert host.answer(hung).state is JobState.OK
    host.reports(child, Returned(leased.number))
    assert host.child() is child
    assert child.phase is Phase.READY


@pytest.mark.parametrize("reason", list(Reason))
def test_a_job_that_ended_while_it_was_leased_may_still_be_given_back(reason: Reason) -> None:
    host = fast_host()
    hung = host.started()
    child = held_by(hung)
    leased = host.submit()
    host.ends(leased, reason)
    host.passes(31)
    assert leased.ended
    assert signals(host.reports(child, Returned(leased.number))) == []
    assert child.phase is Phase.BUSY


@pytest.mark.promise(6)
def test_a_deadline_counts_the_time_in_the_queue() -> None:
    host = Host()
    host.started()
    waiting = host.submit(timeout_s=3.0)
    host.passes(2.9)
    assert host.unanswered(waiting)
    host.passes(0.1)
    answer = host.answer(waiting)
    assert (answer.state, answer.kind, answer.message) == (JobState.FATAL, "deadline", "deadline exceeded")


def test_a_result_after_the_deadline_is_too_late() -> None:
    host = Host()
    job = host.submit(timeout_s=3.0)
    host.starts(job)
    host.passes(3.5)
    actions = host.reports(held_by(job), Done(job.number, Region(1, 5), 3.4))
    assert host.answer(job).kind == "deadline"
    assert [action.region for action in actions if isinstance(action, Discard)] == [Region(1, 5)]


def test_a_job_that_has_ended_is_not_kept_for_the_sake_of_its_deadline() -> None:
    host = Host()
    job = host.submit(timeout_s=3600.0)
    host.starts(job)
    host.done(job)
    assert all(subject is not job for _, _, (_, subject) in host.fleet.timers)


@pytest.mark.parametrize("seconds", [4.2, 5.1])
def test_a_child_whose_job_needed_rung_2_or_more_is_replaced_after_it(seconds: float) -> None:
    host = Host()
    job = host.started()
    host.ends(job, Reason.KILL)
    host.passes(seconds)
    assert sent(host.fails(job, "canceled"), Drain) == [Drain()]
    assert host.answer(job).kind == "killed"
    assert host.child().phase is Phase.DRAINING
    assert len(spawned(host.dies(host.child(), Death("exit code 0", exit_code=0)))) == 1


def test_a_child_whose_job_ended_when_asked_stays() -> None:
    host = Host()
    job = host.started()
    host.ends(job, Reason.KILL)
    assert sent(host.fails(job, "canceled"), Drain) == []
    assert host.child().phase is Phase.READY


def test_a_child_that_ignores_sigterm_dies_even_when_its_job_ends_meanwhile() -> None:
    host = Host()
    job = host.started()
    host.ends(job, Reason.KILL)
    assert signals(host.passes(5.3)) == [signal.SIGUSR2, signal.SIGTERM]
    host.done(job)
    assert signals(host.passes(1.0)) == [signal.SIGKILL]


def test_a_cuda_error_costs_its_child_but_nobody_elses_job() -> None:
    host = fast_host()
    guilty = host.started()
    leased = host.submit()
    actions = host.fails(guilty, cause="cuda_error")
    assert host.answer(guilty).kind == "user_exception"
    assert sent(actions, Recall) == [Recall(leased.number)]
    assert sent(host.returns(leased), Drain) == [Drain()]
    host.dies(host.child(), Death("exit code 0", exit_code=0))
    host.boot()
    assert leased.state is JobState.LEASED


def test_a_child_that_is_to_be_replaced_goes_even_when_its_last_job_is_given_back_cancelled() -> None:
    host = fast_host()
    guilty = host.started()
    leased = host.submit()
    host.ends(leased)
    host.fails(guilty, cause="cuda_error")
    assert sent(host.returns(leased), Drain) == [Drain()]


# --- the unkillable ---------------------------------------------------------------------------------------------------


def unkillable(host: Host) -> Job:
    """Return a job whose child has been sent a SIGKILL just now."""
    job = host.started()
    host.ends(job, Reason.KILL, at_once=True)
    host.passes(1.3)
    return job


@pytest.mark.promise(8)
def test_a_child_that_a_sigkill_does_not_end_wedges_its_device_and_then_retires_it() -> None:
    host = Host(devices=2)
    job = unkillable(host)
    seen: list[tuple[Health, bool]] = []
    for seconds in (9.9, 0.2, 19.7, 0.4):
        host.passes(seconds)
        seen.append((host.fleet.devices[0].health, host.unanswered(job)))
    assert seen == [(Health.OK, True), (Health.WEDGED, False), (Health.WEDGED, False), (Health.RETIRED, False)]
    assert host.answer(job).kind == "killed"
    assert len(spawned(host.actions)) == 2, "no second child on it"
    assert host.submit().child is host.child(1)


def test_a_wedged_device_is_well_again_when_its_child_dies_after_all() -> None:
    host = Host()
    unkillable(host)
    host.passes(15)
    assert len(spawned(host.dies(host.child()))) == 1
    assert host.fleet.devices[0].health is Health.OK
    host.boot()
    assert host.submit().state is JobState.LEASED


def test_two_kills_of_one_child_do_not_retire_its_device_early() -> None:
    host = loop_host()
    jobs = [host.submit("loop"), host.submit("loop")]
    host.starts(*jobs)
    for job in jobs:
        host.ends(job, Reason.KILL, at_once=True)
        host.passes(0.2)
    host.passes(12)
    states = [host.fleet.devices[0].health]
    host.passes(15)
    states.append(host.fleet.devices[0].health)
    assert states == [Health.WEDGED, Health.WEDGED]


@pytest.mark.promise(8)
def test_a_retired_device_takes_its_functions_with_it_for_good() -> None:
    gpu = Device("cuda:0", "cuda", takes_cpu_functions=False)
    cpu = Device("cpu:0", "cpu", takes_gpu_functions=False)
    host = Host(function("draw", gpu=True), function("call"), devices=[gpu, cpu])
    job = host.started("draw")
    host.ends(job, Reason.KILL, at_once=True)
    waiting = host.submit("draw")
    host.passes(35)
    assert gpu.health is Health.RETIRED
    assert host.answer(waiting).kind == "unavailable"
    host.passes(UNAVAILABLE_S + 60)
    late = host.answer(host.submit("draw"))
    assert (late.kind, late.retryable) == ("unavailable", True)
    assert "cuda:0 is retired" in late.message
    assert host.submit("call").state is JobState.LEASED
    assert finishes(host.actions) == []


def test_when_all_devices_are_retired_the_supervisor_ends_with_1() -> None:
    host = Host()
    unkillable(host)
    assert finishes(host.passes(31)) == [1]


def test_a_retired_devices_child_that_dies_at_last_is_not_replaced() -> None:
    host = Host(devices=2)
    unkillable(host)
    child = host.child(0)
    host.passes(31)
    assert spawned(host.dies(child)) == []


# --- the start and its failures ---------------------------------------------------------------------------------------


@pytest.mark.promise(3)
def test_three_deaths_before_it_is_ready_and_a_device_is_given_up() -> None:
    host = Host(devices=2, up=False)
    host.boot(host.fleet.devices[1])
    for pause in (0.0, 1.0):
        host.reports(host.child(), Hello(1), ImportFailed("no module `x`", ["line"]))
        host.dies(host.child(), Death("exit code 3", exit_code=3))
        host.passes(pause)
        assert host.child().phase is Phase.FORKING
    host.reports(host.child(), Hello(1), ImportFailed("no module `x`", ["line"]))
    assert spawned(host.dies(host.child(), Death("exit code 3", exit_code=3))) == []
    assert host.fleet.devices[0].given_up == "no module `x`"
    assert spawned(host.passes(100)) == []
    assert host.submit().child is host.child(1), "the other device serves on"
    assert finishes(host.actions) == []


def test_when_all_devices_are_given_up_jobs_are_told_why_and_the_supervisor_ends_with_1() -> None:
    host = Host(up=False)
    waiting = host.submit()
    for _ in range(3):
        host.dies(host.child(), Death("exit code 3", exit_code=3))
        host.passes(2)
    answer = host.answer(waiting)
    assert (answer.kind, answer.retryable) == ("unavailable", True)
    assert "exit code 3" in answer.message
    assert finishes(host.actions) == [1]


@pytest.mark.promise(3)
def test_the_pause_between_deaths_grows_and_a_good_job_resets_it() -> None:
    host = Host()
    pauses = []
    for _ in range(4):
        host.dies(host.child())
        before = host.now
        while host.child().phase is not Phase.FORKING:
            host.passes(0.1)
        pauses.append(host.now - before)
        host.boot()
    assert [round(pause) for pause in pauses] == [0, 1, 2, 4]
    host.done(host.started())
    assert len(spawned(host.dies(host.child()))) == 1


def test_a_child_that_is_never_ready_is_killed() -> None:
    host = Host(up=False)
    assert signals(host.passes(BOOT_LIMIT_S)) == [signal.SIGKILL]


@pytest.mark.parametrize("credits", [{}, {"device": 1}, {"device": -1, "loop": 64}, {"device": 1, "loop": 10**9}])
def test_a_child_that_grants_credits_that_make_no_sense_is_not_believed(credits: dict[Lane, int]) -> None:
    host = Host(up=False)
    child = host.child()
    host.happens(Spawned(child, 7), Reported(child, Hello(7)))
    assert signals(host.reports(child, Ready(["f"], credits, 7))) == [signal.SIGKILL]
    assert host.submit().state is JobState.QUEUED


def test_a_dead_child_is_left_in_peace_however_young_it_died() -> None:
    host = Host()
    host.dies(host.child())
    host.boot()
    assert host.passes(BOOT_LIMIT_S + 1) == []


def test_a_child_is_replaced_on_its_device_and_nowhere_else() -> None:
    host = Host(devices=3)
    others = [host.child(0), host.child(2)]
    (new,) = spawned(host.dies(host.child(1)))
    assert new.device is host.fleet.devices[1]
    assert [host.child(0), host.child(2)] == others


# --- setting up -------------------------------------------------------------------------------------------------------


def test_an_instance_is_set_up_once_in_a_child() -> None:
    host = Host(function("a", instance="C"), function("b", instance="C"))
    first = host.submit("a")
    assert host.child().loading == "C"
    assert first.state is JobState.QUEUED
    assert runs(host.loaded(host.child())) == [first]
    host.starts(first)
    host.done(first)
    assert host.submit("b").state is JobState.LEASED


def test_a_death_while_setting_up_charges_no_job() -> None:
    host = Host(function("a", instance="C"))
    job = host.submit("a", b"p")
    host.dies(host.child(), SEGV)
    host.boot()
    host.loaded(host.child())
    assert (job.state, job.deaths, job.alone) == (JobState.LEASED, 0, False)
    assert not host.fleet.blame.suspects("a", host.now)


@pytest.mark.parametrize("deadly", [False, True])
def test_a_function_that_cannot_be_set_up_is_unavailable_after_three_tries(deadly: bool) -> None:
    host = Host(function("a", instance="C"), function("b"))
    waiting = [host.submit("a"), host.submit("a")]
    for _ in range(3):
        assert all(host.unanswered(job) for job in waiting)
        if deadly:
            host.dies(host.child(), SEGV)
            host.passes(5)
            host.boot()
        else:
            host.load_fails(host.child())
    for job in waiting:
        answer = host.answer(job)
        assert (answer.state, answer.kind, answer.retryable) == (JobState.RETRYABLE, "unavailable", True)
        assert answer.detail is not None
        assert answer.detail.stack
    assert host.answer(host.submit("a")).kind == "unavailable"
    assert host.submit("b").state is JobState.LEASED


def test_an_unavailable_function_is_tried_again_after_its_pause() -> None:
    host = Host(function("a", instance="C"))
    host.submit("a")
    for _ in range(3):
        host.load_fails(host.child())
    host.passes(UNAVAILABLE_S)
    job = host.submit("a")
    assert host.unanswered(job)
    host.loaded(host.child())
    assert job.state is JobState.LEASED


# --- admission --------------------------------------------------------------------------------------------------------


def test_a_job_beyond_the_queues_limit_is_told_that_all_are_busy() -> None:
    host = Host(max_queued=2)
    host.started()
    accepted = [host.submit(), host.submit()]
    answer = host.answer(host.submit())
    assert (answer.state, answer.kind, answer.retryable) == (JobState.RETRYABLE, "busy", True)
    assert all(host.unanswered(job) for job in accepted)


@pytest.mark.promise(34)
def test_ten_thousand_jobs_queue_and_any_of_them_is_cancelled_in_no_time() -> None:
    host = Host()
    host.started()
    jobs = [host.submit() for _ in range(10_000)]
    assert host.answer(host.submit()).kind == "busy"
    began = time.process_time()
    for job in jobs[5_000:6_000]:
        host.ends(job)
    assert time.process_time() - began < 1.0, "a thousand cancels, each promised within 50 ms"
    assert host.fleet.queued == 9_000


def test_a_payload_over_the_limit_is_refused_with_the_limit_and_its_variable() -> None:
    host = Host()
    host.fleet.max_input_bytes = 10
    answer = host.answer(host.submit(body=b"x" * 11))
    assert (answer.state, answer.kind) == (JobState.INVALID, "invalid")
    assert answer.message == "the input has 11 bytes, the limit is 10 (`WORKER_MAX_INPUT_BYTES`)"


@pytest.mark.parametrize("body", [b"x" * 11, Region(3, 11)])
def test_an_output_over_the_limit_is_refused_and_its_memory_given_back(body: bytes | Region) -> None:
    host = Host()
    host.fleet.max_output_bytes = 10
    actions = host.done(host.started(), body)
    (outcome,) = [action.outcome for action in actions if isinstance(action, Answer)]
    assert outcome.kind == "invalid"
    assert "WORKER_MAX_OUTPUT_BYTES" in outcome.message
    assert [action.region for action in actions if isinstance(action, Discard)] == (
        [body] if type(body) is Region else []
    )


def test_a_function_that_no_device_can_hold_is_unavailable() -> None:
    small = Device("cuda:0", "cuda", vram_total=8 << 30)
    host = Host(function(gpu=True, vram_gb=24), devices=[small])
    answer = host.answer(host.submit())
    assert answer.kind == "unavailable"
    assert "insufficient_vram: it declares 24 GB, the largest device here may take 8 GB" in answer.message


# --- drain ------------------------------------------------------------------------------------------------------------


def test_a_drain_ends_jobs_then_children_then_the_supervisor() -> None:
    host = Host(devices=2)
    jobs = [host.started(), host.started()]
    waiting = host.submit()
    actions = host.drains()
    assert host.answer(waiting).kind == "draining"
    assert sorted(frame.job for frame in sent(actions, Cancel)) == [job.number for job in jobs]
    children = [host.child(0), host.child(1)]
    for job in jobs:
        assert sent(host.fails(job, "canceled"), Drain) == [Drain()]
        assert host.answer(job).kind == "draining"
    assert finishes(host.dies(children[0], Death("exit code 0", exit_code=0))) == []
    assert finishes(host.dies(children[1], Death("exit code 0", exit_code=0))) == [0]
    assert not any(isinstance(action, Note) and action.level == "error" for action in host.actions)


def test_a_drain_takes_no_new_jobs() -> None:
    host = Host()
    host.done(host.started())
    host.drains()
    answer = host.answer(host.submit())
    assert (answer.kind, answer.retryable) == ("draining", True)


def test_a_drain_ends_children_whose_jobs_were_only_leased() -> None:
    host = fast_host()
    running = host.started()
    leased = host.submit()
    host.drains()
    host.fails(running, "canceled")
    assert sent(host.returns(leased), Drain) == [Drain()]
    assert host.answer(leased).kind == "draining"


@pytest.mark.parametrize("said", [[], [Hello(1)]])
def test_a_drain_while_a_child_boots_lets_it_come_and_go(said: list[Report]) -> None:
    host = Host(up=False)
    host.reports(host.child(), *said)
    assert sent(host.drains(), Drain) == [Drain()]
    rest: list[Report] = [Hello(1), Ready(["f"], CREDITS, 1)]
    assert signals(host.reports(host.child(), *rest[len(said) :])) == []
    assert finishes(host.dies(host.child(), Death("exit code 0", exit_code=0))) == [0]


def test_a_child_that_does_not_go_when_drained_is_ended() -> None:
    host = Host()
    host.drains()
    assert signals(host.passes(5.0)) == [signal.SIGTERM]
    assert signals(host.passes(1.0)) == [signal.SIGKILL]


def notes_of_deaths(host: Host) -> list[str]:
    return [action.message for action in host.actions if isinstance(action, Note) and action.level == "error"]


@pytest.mark.parametrize(("up", "told"), [(False, 0), (True, 1)])
def test_a_child_that_is_ended_for_a_drain_is_no_death_where_it_still_started(up: bool, told: int) -> None:
    host = Host(up=up)
    if not up:
        host.reports(host.child(), Hello(1))
    host.drains()
    assert signals(host.passes(5.0)) == [signal.SIGTERM]
    assert finishes(host.dies(host.child(), Death("SIGTERM", signal="SIGTERM"))) == [0]
    assert len(notes_of_deaths(host)) == told


def test_a_child_that_dies_by_itself_while_it_starts_and_is_drained_is_a_death() -> None:
    host = Host(up=False)
    host.reports(host.child(), Hello(1))
    host.drains()
    host.dies(host.child(), Death("SIGSEGV", signal="SIGSEGV"))
    assert len(notes_of_deaths(host)) == 1


@pytest.mark.promise(8)
def test_a_drain_does_not_wait_for_an_unkillable_child() -> None:
    host = Host(devices=2)
    job = host.started()
    host.drains()
    assert host.unanswered(job)
    host.dies(host.child(1), Death("exit code 0", exit_code=0))
    assert finishes(host.passes(60)) == [0]
    assert host.answer(job).kind == "draining"


# --- children that lie ------------------------------------------------------------------------------------------------

FORGED: list[Report] = [
    Done(99, b"1", 0.1),
    Done(99, Region(1, 9), 0.1),
    Failed(99, "invalid", "no", False, 0.1),
    Item(99, Region(1, 9)),
    Returned(99),
    Started(99),
    Hello(1),
    Ready(["f"], CREDITS, 1),
    Loaded("C", 1.0),
    Loaded("", 1.0),
    LoadFailed("C", "no", []),
]


@pytest.mark.promise(43)
@pytest.mark.parametrize("frame", FORGED, ids=lambda frame: type(frame).__name__)
def test_a_child_that_forges_a_frame_is_killed_and_its_job_runs_again(frame: Report) -> None:
    host = Host(devices=2)
    job = host.started()
    other = host.started()
    liar = held_by(job)
    actions = host.reports(liar, frame)
    assert signals(actions) == [signal.SIGKILL]
    lent = [frame.body] if isinstance(frame, Done | Item) and isinstance(frame.body, Region) else []
    assert [action.region for action in actions if isinstance(action, Discard)] == lent
    assert host.answers == {}
    host.dies(liar)
    host.done(other)
    assert job.child is held_by(job) is not liar
    host.starts(job)
    host.done(job)
    assert [host.answer(each).state for each in (job, other)] == [JobState.OK, JobState.OK]


@pytest.mark.promise(43)
def test_a_child_cannot_answer_anothers_job() -> None:
    host = Host(devices=2)
    mine, others = host.started(), host.started()
    host.reports(held_by(mine), Done(others.number, b"forged", 0.1))
    assert host.unanswered(others)
    host.done(others, b"true")
    assert host.answer(others).body == b"true"


def test_a_job_is_not_answered_twice_by_a_child_that_says_so_twice() -> None:
    host = Host()
    job = host.started()
    host.reports(held_by(job), Done(job.number, b"1", 0.1), Done(job.number, b"2", 0.1))
    assert host.answer(job).body == b"1"
    assert signals(host.actions) == [signal.SIGKILL]


def test_a_started_job_cannot_be_given_back() -> None:
    host = Host()
    job = host.started()
    assert signals(host.returns(job)) == [signal.SIGKILL]


def test_failures_that_nobody_asked_for_make_no_function_unavailable() -> None:
    host = Host(function("a", instance="C"), devices=2)
    for _ in range(5):
        host.reports(host.child(), LoadFailed("C", "no", []))
    assert host.unanswered(host.submit("a"))


def test_a_child_is_killed_for_its_first_lie_and_not_again_for_the_next() -> None:
    host = Host()
    host.happens(*(Misbehaved(host.child(), "rubbish") for _ in range(5)))
    assert signals(host.actions) == [signal.SIGKILL]


@pytest.mark.parametrize("how", ["drain", "restart"])
def test_a_stream_that_may_end_by_itself_loses_no_item(how: str) -> None:
    host = Host(function(shape="generator"))
    job = host.started(stream=True)
    host.item(job)
    if how == "drain":
        host.drains()
    else:
        host.happens(RestartAsked(host.fleet.devices[0], at_once=True))
    assert [action.job for action in host.item(job) if isinstance(action, Deliver)] == [job]
    host.done(job)
    assert host.answer(job).state is JobState.OK


@pytest.mark.parametrize("reasons", [[Reason.CANCEL], [Reason.KILL], [Reason.DRAIN, Reason.CANCEL]])
def test_a_stream_of_which_items_were_dropped_did_not_end_well(reasons: list[Reason]) -> None:
    host = Host(function(shape="generator"))
    job = host.started(stream=True)
    host.item(job)
    for reason in reasons:
        host.ends(job, reason)
    assert not any(isinstance(action, Deliver) for action in host.item(job))
    host.done(job)
    assert host.answer(job).state is not JobState.OK


def test_items_that_come_after_the_end_was_asked_are_dropped_and_their_memory_given_back() -> None:
    host = Host(function("f", shape="generator"))
    job = host.started(stream=True)
    assert [a.body for a in host.item(job, b"1") if isinstance(a, Deliver)] == [b"1"]
    host.ends(job)
    actions = host.item(job, Region(1, 9))
    assert [action.region for action in actions if isinstance(action, Discard)] == [Region(1, 9)]
    assert not any(isinstance(action, Deliver) for action in actions)


def test_each_kind_of_frame_may_come_at_any_phase_of_a_child() -> None:
    for frame in FORGED:
        for phase in Phase:
            host = Host()
            host.child().phase = phase
            if phase not in (Phase.SETTLING, Phase.BACKOFF):  # then its socket was read to the end
                host.happens(Reported(host.child(), frame))
            assert not any(isinstance(action, Spawn) for action in host.actions[1:])


def test_a_child_that_gives_nothing_back_is_replaced_when_all_it_holds_was_answered() -> None:
    host = Host()
    deaf = host.child()
    job = host.submit()
    host.ends(job, Reason.KILL, at_once=True)
    assert host.answer(job).kind == "killed"
    waiting = host.submit()
    assert signal.SIGKILL not in signals(host.passes(9.0))
    assert signal.SIGKILL in signals(host.passes(3.0))
    host.dies(deaf)
    assert host.boot() is not deaf
    assert waiting.child is host.child()


def test_a_child_that_gives_nothing_back_while_it_is_at_work_is_left_alone() -> None:
    host = Host(function(), function("loop", lane="loop", shape="async"))
    at_work = host.started("loop")
    job = host.submit()
    host.ends(job, Reason.KILL, at_once=True)
    assert signals(host.passes(60.0)) == []
    assert host.unanswered(at_work)


def test_far_deadlines_of_jobs_that_have_ended_are_not_kept_until_they_come() -> None:
    host = Host()
    waits = host.submit(timeout_s=3600.0)
    for _ in range(3 * TIMERS_KEPT):
        host.ends(host.submit("f", timeout_s=3600.0))
    assert len(host.fleet.timers) <= TIMERS_KEPT + 1
    host.passes(3600.0 + 30.0)
    assert host.answer(waits).kind == "deadline"


@pytest.mark.promise(44)
def test_dead_children_are_not_kept_until_their_timers_come() -> None:
    host = Host()
    for _ in range(3 * TIMERS_KEPT):
        host.done(host.started())
        host.dies(host.child())
        host.boot()
    kept = {id(subject) for _, _, (_, subject) in host.fleet.timers if isinstance(subject, Child)}
    assert len(kept) <= TIMERS_KEPT + 1
