"""Which deaths are kept, and what is kept of them."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.postmortem import Moment, is_name
from gen_worker_supervisor.core.actions import Bury, Note
from gen_worker_supervisor.core.burials import MOST_JOBS, name_of
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.state import Child, Death, Device, Fleet
from gen_worker_supervisor.history.postmortems import MOMENTS, Curve, hidden
from gen_worker_supervisor.logs.redaction import redacted
from tests.pure.host import KILLED, Host, function, held_by
from tests.pure.test_postmortem_files import told

SEGV = Death("SIGSEGV", signal="SIGSEGV", stack=("File main.py",), printed=((1, "oh"), (9, "ah"), (0, "so")))


def host_that_keeps(*, devices: int = 1, loop: bool = False) -> Host:
    host = Host(function(shape="async", lane="loop") if loop else function(), devices=devices)
    host.fleet.epoch = 1795354045.0 - host.now
    return host


def buried(host: Host) -> list[Bury]:
    return [action for action in host.actions if isinstance(action, Bury)]


@pytest.mark.promise(1)
def test_a_death_is_kept_with_its_jobs_as_they_were_and_what_became_of_them() -> None:
    host = host_that_keeps()
    job = host.started()
    host.passes(1.0)
    host.dies(host.child(), SEGV)
    (burial,) = buried(host)
    assert burial.death is SEGV
    (held,) = burial.jobs
    assert (held.request_id, held.state, held.became, held.ran_s) == (job.request_id, "started", "queued", 1.0)
    assert held.payload == job.payload.digest().hex()
    assert burial.printed == [(job.request_id, "oh"), (None, "ah"), (None, "so")]


@pytest.mark.promise(1)
def test_the_error_the_log_and_the_charge_name_the_post_mortem() -> None:
    host = host_that_keeps(devices=2)
    job = host.started()
    host.dies(held_by(job), SEGV)
    host.starts(job)
    host.dies(held_by(job), SEGV)
    name = buried(host)[1].child.postmortem
    detail = host.answer(job).detail
    assert is_name(name)
    assert detail is not None
    assert detail.postmortem == name
    assert any(name in action.message for action in host.actions if isinstance(action, Note))
    again = host.answer(host.submit()).detail
    assert again is not None
    assert again.postmortem == name


def test_nothing_is_kept_where_nobody_wants_that() -> None:
    host = Host()
    job = host.started()
    host.dies(host.child(), SEGV)
    assert buried(host) == []
    assert not any("postmortem" in action.message for action in host.actions if isinstance(action, Note))
    assert host.unanswered(job)


def test_a_drained_child_leaves_no_post_mortem() -> None:
    host = host_that_keeps()
    host.drains()
    host.dies(host.child(), Death("exit code 0", exit_code=0))
    assert buried(host) == []


@pytest.mark.parametrize(
    ("reason", "is_kept"),
    [
        (Reason.KILL, True),
        (Reason.CANCEL, True),
        (Reason.DEADLINE, True),
        (Reason.DISCONNECT, True),
        (Reason.DRAIN, False),
        (Reason.RESTART, False),
    ],
)
def test_of_those_that_the_ladder_ends_only_what_nobody_planned_is_kept(reason: Reason, is_kept: bool) -> None:
    host = host_that_keeps()
    job = host.started()
    host.ends(job, reason, at_once=True)
    host.passes(0.5)
    host.dies(host.child(), Death("SIGTERM", signal="SIGTERM"))
    assert bool(buried(host)) is is_kept
    if is_kept:
        assert buried(host)[0].jobs[0].ended_for == str(reason)


def test_a_child_that_cannot_be_ended_is_kept_once() -> None:
    host = host_that_keeps(devices=2)
    job = host.started()
    child = held_by(job)
    host.ends(job, Reason.KILL, at_once=True)
    host.passes(15.0)
    assert [burial.death.cause for burial in buried(host)] == ["unkillable"]
    host.dies(child, KILLED)
    assert len(buried(host)) == 1


def test_a_child_that_never_was_ready_is_kept() -> None:
    host = Host(up=False)
    host.fleet.epoch = 0.0
    host.dies(host.child(), Death("exit code 3", exit_code=3))
    assert len(buried(host)) == 1


def test_of_very_many_jobs_the_first_are_kept_and_the_others_counted() -> None:
    host = host_that_keeps(loop=True)
    host.child().credits["loop"] = MOST_JOBS + 20
    jobs = [host.submit() for _ in range(MOST_JOBS + 20)]
    host.starts(*jobs)
    host.dies(host.child(), SEGV)
    (burial,) = buried(host)
    assert (len(burial.jobs), burial.left_out) == (MOST_JOBS, 20)


@given(
    st.text(max_size=80),
    st.floats(0, 1e8),
    st.integers(1, 1 << 22) | st.none(),
    st.floats(0, 4e9),
)
def test_whatever_a_device_is_called_the_name_is_one(device: str, now: float, pid: int | None, epoch: float) -> None:
    fleet = Fleet({}, [], epoch=epoch)
    assert is_name(name_of(fleet, Child(Device(device, "cuda"), 1, 0.0, pid=pid), now))


@given(st.integers(0, 3000))
def test_a_long_life_is_kept_coarsely_and_its_end_closely(looks: int) -> None:
    curve = Curve()
    for at in range(looks):
        curve.add(float(at), Moment(0.0, "busy", rss=at + 1))
    seen = [moment.rss - 1 for moment in curve.until(float(looks)) if moment.rss is not None]
    assert len(seen) <= MOMENTS
    assert seen == sorted(set(seen))
    assert seen[-20:] == list(range(max(0, looks - 20), looks))
    assert not looks or seen[0] == 0


@pytest.mark.parametrize(
    ("own", "by_itself", "curve_told"),
    [
        ((None, 70, 80), (None, 300, 300), [None, 70, 80]),
        ((None, None, 80), (None, 300, 310), [None, 300, 310]),
        ((None, None, None), (None, 300, 310), [None, 300, 310]),
        ((None, None, None), (None, None, None), [None, None, None]),
    ],
)
def test_a_curve_does_not_mix_two_ways_to_weigh_memory(
    own: tuple[int | None, ...], by_itself: tuple[int | None, ...], curve_told: list[int | None]
) -> None:
    curve = Curve()
    for at, (weighed, rss) in enumerate(zip(own, by_itself, strict=True)):
        curve.add(float(at), Moment(0.0, "busy", rss=rss), weighed)
    assert [moment.rss for moment in curve.until(3.0)] == curve_told


@pytest.mark.promise(39)
def test_secrets_are_hidden_wherever_they_stand() -> None:
    known = told(
        stack=["File x, key=s3cret"],
        printed=[("r-s3cret", "https://a/b?sig=abc"), (None, "bearer abcdef")],
        timeline=[Moment(1.0, "busy", stage="s3cret")],
        environment={"driver": "s3cret"},
    )
    found = hidden(known, lambda text: redacted(text.replace("s3cret", "[secret]")))
    assert found.id == known.id
    written = msgspec.json.encode(found)
    assert all(word not in written for word in (b"s3cret", b"abcdef", b"sig=abc"))
