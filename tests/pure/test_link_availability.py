"""What an orchestrator is told of a worker's functions, fleet by fleet."""

from collections.abc import Mapping

import msgspec
import pytest

from gen_worker.models.wanted import Slot, Wanted
from gen_worker.wire.messages import ImportFailed, LoadFailed
from gen_worker.wire.scheduler import FnUnavailable, WorkerPhase
from gen_worker_supervisor.core.blame import BREAKER_PAYLOADS, QUARANTINE_DEATHS
from gen_worker_supervisor.core.fates import BOOT_TRIES
from gen_worker_supervisor.core.happenings import DeviceDrainAsked, Reported
from gen_worker_supervisor.core.state import Device, Fleet, Function
from gen_worker_supervisor.core.verdicts import LOAD_TRIES, UNAVAILABLE_S
from gen_worker_supervisor.link.availability import Availability, availability
from tests.pure.host import Host, function

GIB = 1 << 30


def seen(host: Host, *, draining: bool = False, free: int = 0) -> Availability:
    return availability(host.fleet, host.now, draining=draining, free_vram_bytes=free)


def lists(host: Host) -> tuple[list[str], list[str], list[str]]:
    """What can be called, what comes, what cannot be had."""
    told = seen(host)
    gated = [gate.function_name for gate in told.gated]
    return list(told.state.available_functions), list(told.state.loading_functions), gated


def phase(host: Host) -> WorkerPhase:
    return seen(host).state.phase


def gpu(index: int = 0, *, vram_gb: float = 24.0, sm: str = "89") -> Device:
    device = Device(f"cuda:{index}", "cuda", index=index, uuid=f"GPU-{index}", vram_total=int(vram_gb * GIB), sm=sm)
    device.takes_cpu_functions = False
    return device


def cpu_only() -> Device:
    """A CPU that does not stand for a GPU."""
    return Device("cpu:0", "cpu", takes_gpu_functions=False)


def needing(name: str = "f", *, capability: float | None = None, missing: tuple[str, ...] = ()) -> Function:
    surveyed = function(name, gpu=True).surveyed
    return Function(msgspec.structs.replace(surveyed, compute_capability=capability, missing=list(missing)))


def bound(name: str, provider: str, *, instance: str = "M") -> Function:
    """A function of a class with one model."""
    surveyed = function(name, instance=instance).surveyed
    slots = [Slot("model", msgspec.convert({"provider": provider, "repo": "a/b"}, Wanted))]
    return Function(msgspec.structs.replace(surveyed, slots=slots))


# --- what can be called -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("undone", [False, True])
def test_functions_of_drained_devices_go_at_once_and_come_back_at_once(undone: bool) -> None:
    host = Host(function("f"), function("g"), devices=2)
    host.happens(DeviceDrainAsked(host.fleet.devices[0]))
    assert lists(host) == (["f", "g"], [], [])
    host.happens(DeviceDrainAsked(host.fleet.devices[1]))
    assert (lists(host), phase(host)) == (([], [], []), WorkerPhase.READY)
    if undone:
        host.happens(DeviceDrainAsked(host.fleet.devices[0], undo=True))
        assert lists(host) == (["f", "g"], [], [])


def test_before_a_child_is_ready_everything_is_still_to_come() -> None:
    host = Host(function("f"), function("g", instance="G"), up=False)
    assert lists(host) == ([], ["f", "g"], [])
    assert phase(host) is WorkerPhase.BOOTING


def test_what_needs_no_model_can_be_called_as_soon_as_a_child_is_ready() -> None:
    host = Host(function("zebra"), function("ant", instance="G"))
    assert lists(host) == (["ant", "zebra"], [], [])
    assert phase(host) is WorkerPhase.READY


def test_a_class_with_models_comes_until_it_is_set_up() -> None:
    host = Host(bound("f", "hf"), eager=True)
    assert (lists(host), phase(host)) == (([], ["f"], []), WorkerPhase.DOWNLOADING_MODELS)
    host.absent(*host.ordered(probe=True))
    assert phase(host) is WorkerPhase.DOWNLOADING_MODELS
    host.fetched(*host.ordered(probe=False))
    assert (lists(host), phase(host)) == (([], ["f"], []), WorkerPhase.LOADING_PIPELINES)
    host.loaded(host.child())
    assert (lists(host), phase(host)) == ((["f"], [], []), WorkerPhase.READY)


def test_a_crash_changes_nothing_of_what_can_be_called() -> None:
    host = Host(bound("f", "hf"), function("g"), eager=True)
    host.fetched(*host.ordered(probe=True))
    host.loaded(host.child())
    host.fleet.booting = False
    before = seen(host)
    host.dies(host.child())
    assert seen(host) == before
    host.boot()
    assert seen(host) == before


def test_what_waits_for_the_orchestrators_description_comes_and_holds_nothing_up() -> None:
    host = Host(bound("f", "tensorhub"), function("g"))
    assert lists(host) == (["g"], ["f"], [])
    assert phase(host) is WorkerPhase.READY


def test_a_draining_worker_offers_nothing() -> None:
    host = Host(function("f"), bound("g", "hf"), needing("h", missing=("x",)))
    told = seen(host, draining=True)
    assert (told.state.available_functions, told.state.loading_functions) == ((), ())
    assert [gate.function_name for gate in told.gated] == ["h"]


# --- what the host lacks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "devices", "reason", "axes"),
    [
        (function(gpu=True), [cpu_only()], "cuda_unavailable", {"gpu_count": "0"}),
        (needing(capability=9.0), [gpu()], "compute_capability_unmet", {"detected_sm": "89", "required_sm": "90"}),
        (
            needing(capability=12.0),
            [gpu(0, sm="75"), gpu(1, sm="100")],
            "compute_capability_unmet",
            {"detected_sm": "100", "required_sm": "120"},
        ),
        (
            function(gpu=True, vram_gb=24.5),
            [gpu(vram_gb=23.99)],
            "insufficient_vram",
            {"required_vram_gb": "24.5", "detected_vram_gb": "24"},
        ),
        (needing(missing=("flashpack", "x.y")), [gpu()], "missing_cuda_library", {"missing": "flashpack,x.y"}),
        (needing(missing=("flashpack",)), [Device("cpu:0", "cpu")], "missing_cuda_library", {"missing": "flashpack"}),
    ],
)
def test_what_the_host_lacks_is_told_with_what_was_found_and_what_is_needed(
    wanted: Function, devices: list[Device], reason: str, axes: Mapping[str, str]
) -> None:
    host = Host(wanted, function("other"), devices=devices, up=False)
    for device in devices:
        host.boot(device)
    (gate,) = [gate for gate in seen(host).gated if gate.function_name == "f"]
    assert (gate.reason, dict(gate.axes)) == (reason, axes)
    assert gate.detail
    assert not gate.detail.startswith(reason)
    assert "f" not in seen(host).state.available_functions + seen(host).state.loading_functions


@pytest.mark.parametrize(
    ("wanted", "devices"),
    [
        (needing(capability=8.9), [gpu()]),
        (needing(capability=7.5), [gpu(0, sm="70"), gpu(1, sm="75")]),
        (function(gpu=True, vram_gb=24), [gpu(vram_gb=23.99)]),
        (needing(capability=12.0), [Device("cpu:0", "cpu")]),
        (function(gpu=True, vram_gb=1000), [Device("cpu:0", "cpu")]),
    ],
)
def test_one_device_that_fits_is_enough_and_a_cpu_that_stands_for_a_gpu_fits(
    wanted: Function, devices: list[Device]
) -> None:
    host = Host(wanted, devices=devices, up=False)
    for device in devices:
        host.boot(device)
    assert lists(host) == (["f"], [], [])


def test_a_worker_that_can_run_nothing_says_so() -> None:
    host = Host(function(gpu=True), devices=[cpu_only()])
    assert phase(host) is WorkerPhase.ERROR


# --- what has gone wrong ----------------------------------------------------------------------------------------------


def failing(host: Host) -> FnUnavailable:
    """Have the setup of `A` fail until it is given up."""
    host.fleet.booting = False
    for _ in range(LOAD_TRIES):
        assert lists(host)[2] == []
        host.load_fails(host.child())
    (gate,) = seen(host).gated
    return gate


def test_a_setup_that_fails_is_told_and_lifted_after_a_later_success() -> None:
    host = Host(function("a", instance="A"), function("b"), eager=True)
    gate = failing(host)
    assert (gate.function_name, gate.reason) == ("a", "setup_failed")
    assert gate.detail == "setup of `A` failed: ValueError: no"
    assert lists(host) == (["b"], [], ["a"])
    assert phase(host) is WorkerPhase.READY
    host.passes(UNAVAILABLE_S + 1)
    assert lists(host)[2] == ["a"]
    host.loaded(host.child())
    assert lists(host) == (["a", "b"], [], [])


def test_a_setup_that_failed_once_comes_still() -> None:
    host = Host(function("a", instance="A"), eager=True)
    host.fleet.booting = False
    host.load_fails(host.child())
    assert lists(host) == ([], ["a"], [])


def test_hardware_that_a_setup_found_wanting_is_told_with_its_axes() -> None:
    host = Host(function("a", instance="A"), eager=True)
    host.fleet.booting = False
    axes = {"library": "cudnn", "min_version": "9"}
    failed = LoadFailed("A", "cudnn is too old", [], "hardware", "missing_cuda_library", axes=axes)
    host.reports(host.child(), failed)
    (gate,) = seen(host).gated
    assert (gate.reason, dict(gate.axes)) == ("missing_cuda_library", axes)
    assert phase(host) is WorkerPhase.ERROR


def test_hardware_that_one_device_lacks_is_no_news_while_another_has_it() -> None:
    host = Host(function("a", instance="A"), devices=2, eager=True)
    host.fleet.booting = False
    host.reports(host.child(0), LoadFailed("A", "too old", [], "hardware", "compute_capability_unmet"))
    host.loaded(host.child(1))
    assert lists(host) == (["a"], [], [])


def test_a_disk_without_room_gates_nothing() -> None:
    host = Host(function("a", instance="A"), eager=True)
    host.fleet.booting = False
    host.reports(host.child(), LoadFailed("A", "no room", [], "hardware", "insufficient_disk"))
    assert lists(host) == ([], ["a"], [])


def test_a_module_that_does_not_import_is_told_as_that() -> None:
    host = Host(up=False, devices=[Device("cpu:0", "cpu"), Device("cpu:1", "cpu")])
    for _ in range(BOOT_TRIES):
        for index in range(2):
            child = host.child(index)
            host.happens(Reported(child, ImportFailed("`m` does not import: no", [])))
            host.dies(child)
        host.passes(10)
    (gate,) = seen(host).gated
    assert (gate.reason, gate.detail) == ("import_failed", "`m` does not import: no")
    assert phase(host) is WorkerPhase.ERROR


def test_a_breaker_that_is_open_is_told_and_lifted_with_time() -> None:
    host = Host(function("f"), function("g"))
    for number in range(BREAKER_PAYLOADS):
        host.fleet.blame.charge("f", bytes([number]), host.now, deaths=QUARANTINE_DEATHS, cause="SIGSEGV", stack=[])
    assert lists(host) == (["g"], [], ["f"])
    (gate,) = seen(host).gated
    assert (gate.reason, gate.detail) == ("breaker_open", "5 different payloads of it killed children")
    host.passes(60)
    assert seen(host).gated == [gate]
    host.passes(3600)
    assert lists(host) == (["f", "g"], [], [])


@pytest.mark.parametrize(
    ("provider", "retryable", "gated"), [("hf", False, True), ("hf", True, False), ("tensorhub", False, False)]
)
def test_a_model_that_its_provider_refuses_for_good_gates_its_functions(
    provider: str, retryable: bool, gated: bool
) -> None:
    host = Host(bound("f", provider), function("g"), eager=True)
    host.fleet.booting = False
    host.fleet.catalog.ask(host.fleet.functions["f"].surveyed.slots, host.now, urgent=False)
    host.fetch_fails(*host.ordered(), kind="gated", retryable=retryable)
    told = {gate.function_name: (gate.reason, dict(gate.axes)) for gate in seen(host).gated}
    assert told == ({"f": ("model_unavailable", {"ref": "a/b"})} if gated else {})


# --- free memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free", "told"), [(0, 0), (2 * GIB - 1, 0), (2 * GIB, 2 * GIB), (39 * GIB, 38 * GIB)])
def test_free_memory_is_told_in_twentieths_of_all_there_is(free: int, told: int) -> None:
    host = Host(function(gpu=True), devices=[gpu(0, vram_gb=20), gpu(1, vram_gb=20)])
    assert seen(host, free=free).state.free_vram_bytes == told


def test_a_host_without_gpus_has_no_memory_of_theirs() -> None:
    assert seen(Host(), free=5).state.free_vram_bytes == 0


def test_a_fleet_is_only_looked_at() -> None:
    host = Host(bound("f", "hf"), function("g", instance="G"))
    before = (dict(host.fleet.instances), dict(host.fleet.catalog.models))
    seen(host)
    assert (host.fleet.instances, host.fleet.catalog.models) == before
    assert isinstance(host.fleet, Fleet)
