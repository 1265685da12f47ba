"""An eager fleet sets everything up before it is asked to: stories on the pure core."""

import pytest

from gen_worker.wire.messages import Load, Unloaded
from gen_worker_supervisor.core.actions import Note, Spawn
from gen_worker_supervisor.core.catalog import REFUSED_S, RETRY_S
from gen_worker_supervisor.core.fates import BOOT_TRIES
from gen_worker_supervisor.core.happenings import DeviceFault, RestartAsked
from gen_worker_supervisor.core.phases import Phase
from gen_worker_supervisor.core.state import Device, unloaded
from gen_worker_supervisor.core.verdicts import LOAD_TRIES
from tests.pure.host import Host, finishes, function, sent


def test_every_child_sets_up_all_it_can_hold_one_after_the_other() -> None:
    host = Host(function("a", instance="A"), function("b", instance="B"), devices=2, eager=True)
    for index in (0, 1):
        child = host.child(index)
        loads = []
        while child.loading is not None:
            loads.append(child.loading)
            host.loaded(child)
        assert loads == ["A", "B"]
        assert child.phase is Phase.READY
        assert unloaded(host.fleet, child) == []


def test_a_child_sets_up_nothing_that_its_device_cannot_hold() -> None:
    devices = [Device("cuda:0", "cuda", index=0, takes_cpu_functions=False), Device("cpu:0", "cpu")]
    devices[1].takes_gpu_functions = False
    host = Host(function("g", instance="G", gpu=True), function("c", instance="C"), devices=devices, eager=True)
    assert [host.child(index).loading for index in (0, 1)] == ["G", "C"]


def test_what_needs_models_waits_for_them_while_the_rest_is_set_up() -> None:
    host = Host(function("m", instance="M", models=["a/b"]), function("p", instance="P"), eager=True)
    assert host.child().loading == "P"
    host.loaded(host.child())
    assert host.child().loading is None


def test_a_setup_that_raises_at_boot_ends_the_supervisor_with_a_failure() -> None:
    host = Host(function("a", instance="A"), eager=True)
    assert finishes(host.load_fails(host.child())) == [1]


def test_a_setup_that_kills_its_child_at_boot_ends_the_supervisor_with_a_failure() -> None:
    host = Host(function("a", instance="A"), eager=True)
    assert finishes(host.dies(host.child())) == [1]


@pytest.mark.parametrize("why", ["drain", "restart", "restart at once", "device lost"])
def test_a_child_that_somebody_ends_while_it_sets_up_is_no_setup_that_failed(why: str) -> None:
    devices = [Device(f"cuda:{index}", "cuda", index=index) for index in (0, 1)]
    host = Host(function("a", instance="A", gpu=True), devices=devices, eager=True)
    ended = host.child()
    assert ended.loading == "A"
    if why == "drain":
        host.drains()
    elif why == "device lost":
        host.happens(DeviceFault("cuda:0", "XID 79", True))
    else:
        host.happens(RestartAsked(devices[0], why == "restart at once"))
    host.passes(6.0)
    host.dies(ended)
    assert host.fleet.instance("A").failures == 0
    assert finishes(host.actions) == []
    host.dies(host.child(1))
    assert finishes(host.actions) == [0 if why == "drain" else 1]


def test_a_child_that_somebody_ends_before_it_is_ready_is_none_that_died_early() -> None:
    host = Host(up=False)
    for _ in range(BOOT_TRIES):
        host.happens(RestartAsked(host.fleet.devices[0]))
        host.dies(host.child())
    assert host.child().phase is Phase.FORKING
    assert finishes(host.actions) == []


def test_after_boot_a_setup_that_fails_is_tried_again_and_then_left_to_the_jobs() -> None:
    host = Host(function("a", instance="A"), eager=True)
    host.loaded(host.child())
    host.fleet.booting = False
    host.dies(host.child())
    child = host.boot()
    for _ in range(LOAD_TRIES):
        assert child.loading == "A"
        assert not finishes(host.load_fails(child))
    assert child.loading is None


def test_a_new_child_is_set_up_again_without_a_job() -> None:
    host = Host(function("a", instance="A"), eager=True)
    host.loaded(host.child())
    host.fleet.booting = False
    host.dies(host.child())
    assert host.boot().loading == "A"


def test_a_job_that_waits_comes_before_what_nobody_waits_for() -> None:
    host = Host(function("a", instance="A"), function("b", instance="B"), eager=True, up=False)
    host.submit("b")
    child = host.boot()
    assert child.loading == "B"
    host.loaded(child)
    assert len(child.leased) == 1
    assert child.loading is None


def test_a_lazy_fleet_sets_nothing_up_before_a_job_comes() -> None:
    host = Host(function("a", instance="A"))
    assert not sent(host.actions, Load)


def test_a_supervisor_that_ends_because_of_a_setup_sets_nothing_up_again_and_judges_no_child() -> None:
    host = Host(function("a", instance="A"), function("b", instance="B"), devices=2, eager=True)
    assert finishes(host.load_fails(host.child(0))) == [1]
    before = len(sent(host.actions, Load))
    host.loaded(host.child(1))
    assert len(sent(host.actions, Load)) == before
    notes = [
        action for action in host.dies(host.child(0)) + host.dies(host.child(1)) if isinstance(action, Note | Spawn)
    ]
    assert notes == []


def test_models_that_do_not_fit_together_are_set_up_once_each_and_then_as_jobs_want_them() -> None:
    functions = [function(name, instance=name.upper(), models=[f"m/{name}"]) for name in "abc"]
    host = Host(*functions, eager=True)
    host.fleet.booting = False
    host.fetched(*host.ordered(probe=True))
    child, before = host.child(), ""
    for instance in "ABC":
        assert child.loading == instance
        if before:
            host.reports(child, Unloaded(before, "no room"))
        host.loaded(child)
        before = instance
    assert (child.loading, unloaded(host.fleet, child)) == (None, [])
    host.submit("a")
    assert child.loading == "A"


@pytest.mark.parametrize(("retryable", "waits_s"), [(True, RETRY_S), (False, REFUSED_S)])
def test_a_model_that_could_not_be_had_is_tried_again_without_a_job(retryable: bool, waits_s: float) -> None:
    host = Host(function("a", instance="A", models=["m/a"]), eager=True)
    host.fleet.booting = False
    host.fetch_fails(*host.ordered(), kind="gated", retryable=retryable)
    host.passes(waits_s - 1)
    assert len(host.ordered()) == 1
    host.passes(2)
    assert len(host.ordered()) == 2
    host.fetched(host.ordered()[-1])
    assert host.child().loading == "A"


def test_a_job_does_not_wait_that_long_for_a_model_that_was_refused() -> None:
    host = Host(function("a", instance="A", models=["m/a"]), eager=True)
    host.fleet.booting = False
    host.fetch_fails(*host.ordered(), kind="gated", retryable=False)
    host.passes(RETRY_S + 1)
    host.submit("a")
    assert len(host.ordered()) == 2
