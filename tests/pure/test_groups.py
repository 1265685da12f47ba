"""Groups of GPUs: which there are, which functions run on them, and what becomes of one whose GPU is not well."""

import os
from pathlib import Path

import msgspec
import pytest

from gen_worker import Resources
from gen_worker.cli.devices import named, names_of
from gen_worker.settings import Settings
from gen_worker.top.detail import detail_lines, title
from gen_worker.top.history import History
from gen_worker.wire.status import DeviceStatus, MemberStatus, Status
from gen_worker_supervisor.core.evidence import GpuReading
from gen_worker_supervisor.core.fates import SETTLE_S
from gen_worker_supervisor.core.happenings import DeviceDrainAsked, DeviceFault, GpusRead
from gen_worker_supervisor.core.phases import Health, Phase
from gen_worker_supervisor.core.settling import SPARE_BYTES
from gen_worker_supervisor.core.state import Device, Function, holds, unheld
from gen_worker_supervisor.devices.ownership import DeviceError, Gpus, choose, group, group_hint, partition
from gen_worker_supervisor.link.availability import availability
from gen_worker_supervisor.link.resources import resources
from gen_worker_supervisor.processes.environment import child_environment
from tests.pure.host import Host, function, held_by, spawned

MIB, GIB = 1 << 20, 1 << 30
BASELINE = 300 * MIB


def gpu(index: int, product: str = "NVIDIA L4", gb: float = 24) -> Device:
    """A GPU, measured before its first child."""
    device = Device(
        f"cuda:{index}", "cuda", index=index, uuid=f"GPU-{index}{index}", product=product, sm="89",
        vram_total=int(gb * GIB), vram_used=BASELINE, vram_baseline=BASELINE,
    )  # fmt: skip
    device.takes_cpu_functions = False
    return device


def part(index: int) -> Device:
    """A part of the last GPU."""
    return Device(f"cuda:9:{index}", "cuda", index=9, uuid=f"MIG-{index}", profile="1g.10gb")


def needing(name: str, count: int, vram_gb: float | None = None, *, on_gpu: bool = True) -> Function:
    """A function for so many GPUs."""
    surveyed = function(name, gpu=on_gpu, vram_gb=vram_gb).surveyed
    return Function(msgspec.structs.replace(surveyed, gpu_count=count))


def pair(first: int = 0) -> Device:
    """A group of two GPUs."""
    return group([gpu(first), gpu(first + 1)])


def names(devices: list[Device]) -> str:
    """Return the names with spaces between."""
    return " ".join(device.name.removeprefix("cuda:") for device in devices)


# --- what an author declares ------------------------------------------------------------------------------------------


def test_several_gpus_imply_one_and_are_told_by_keyword_only() -> None:
    assert Resources(gpu_count=2).gpu
    assert not Resources(gpu_count=1).gpu
    with pytest.raises(TypeError):
        Resources(True, None, None, (), 2)  # type: ignore[call-arg]


@pytest.mark.parametrize(("count", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), (1.5, TypeError)])
def test_a_count_of_gpus_is_a_whole_number_from_one_on(count: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="gpu_count"):
        Resources(gpu_count=count)


# --- which groups there are -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "wanted", "made"),
    [
        (4, {1}, "0 1 2 3"),
        (4, set(), "0 1 2 3"),
        (4, {2}, "0+1 2 3"),
        (4, {1, 2}, "0+1 2 3"),
        (2, {1, 2}, "0+1"),  # one child for both, rather than a function that never runs
        (3, {1, 2}, "0+1 2"),
        (1, {2}, "0"),
        (3, {2, 4}, "0+1 2"),  # four are not to be had
        (4, {1, 4}, "0+1+2+3"),
        (8, {2, 4}, "0+1+2+3 4+5 6 7"),
        (6, {2, 4}, "0+1+2+3 4+5"),
        (6, {1, 2, 4}, "0+1+2+3 4 5"),  # what needs two runs on the four: a single one stays
        (7, {1, 2, 4}, "0+1+2+3 4+5 6"),
        (0, {2}, ""),
    ],
)
def test_gpus_are_divided_by_what_functions_need(count: int, wanted: set[int], made: str) -> None:
    assert names(partition([gpu(index) for index in range(count)], wanted)) == made


def test_a_group_is_of_gpus_of_one_kind_where_there_are_enough() -> None:
    mixed = [gpu(0, "NVIDIA T4"), gpu(1), gpu(2), gpu(3, "NVIDIA T4")]
    assert names(partition(mixed, {2})) == "0+3 1 2"
    assert names(partition(mixed, {3})) == "0+1+2 3"


def test_parts_of_a_gpu_stay_single() -> None:
    assert names(partition([part(0), gpu(0), part(1), gpu(1)], {1, 2})) == "0+1 9:0 9:1"
    assert names(partition([part(0), part(1)], {2})) == "9:0 9:1"


def test_a_group_sums_up_its_members() -> None:
    made = group([gpu(2, gb=24), gpu(0, "NVIDIA A10", gb=22)])
    assert (made.name, made.index, made.gpu_count) == ("cuda:2+0", 2, 2)
    assert (made.vram_total, made.vram_used, made.vram_baseline) == (46 * GIB, 2 * BASELINE, 2 * BASELINE)
    assert (made.product, made.sm) == ("NVIDIA L4, NVIDIA A10", "89")


# --- which are asked for ----------------------------------------------------------------------------------------------


def chosen(wanted: str, count: int = 4, counts: tuple[int, ...] = (1,), *, cpu: bool = False) -> str:
    """Return the devices for `--devices` on a host with so many GPUs."""
    there = Gpus([gpu(index) for index in range(count)], [])
    return names(choose(wanted, there, gpu_functions=True, cpu_functions=cpu, gpu_counts=counts))


@pytest.mark.parametrize(
    ("wanted", "made"),
    [
        ("0+1,2,3", "0+1 2 3"),
        ("cuda:0+1, cuda:3", "0+1 3"),
        ("cuda:3+cuda:1", "3+1"),
        ("GPU-11+GPU-00", "1+0"),
        ("0 + 1", "0+1"),
        ("0,1", "0 1"),
        ("cpu:0+1,2", "cpu:0+1 cpu:2"),
        ("cpu:0+1,cpu:2+3", "cpu:0+1 cpu:2+3"),
        ("cpu:4", "cpu:0 cpu:1 cpu:2 cpu:3"),
    ],
)
def test_devices_that_are_named_are_grouped_as_they_are_named(wanted: str, made: str) -> None:
    assert chosen(wanted) == made


@pytest.mark.parametrize(
    ("wanted", "counts", "made"),
    [
        ("cpu:4", (1, 2), "cpu:0+1 cpu:2 cpu:3"),
        ("cpu", (2,), "cpu:0"),
        ("auto", (1, 2), "0+1 2 3"),
        ("0,1", (2,), "0 1"),  # who names GPUs names the groups, too
    ],
)
def test_where_only_a_number_is_given_groups_are_made_as_functions_need_them(
    wanted: str, counts: tuple[int, ...], made: str
) -> None:
    assert chosen(wanted, counts=counts) == made


def test_auto_without_a_gpu_has_cpu_slots_stand_for_the_largest_group() -> None:
    assert chosen("auto", count=0, counts=(1, 2, 4)) == "cpu:0+1+2+3"
    assert chosen("auto", count=0) == "cpu:0"


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("0+", "has a `[+]` with no GPU beside it"),
        ("+", "has a `[+]` with no GPU beside it"),
        ("0+0", "no single GPU `0`"),
        ("0+1,1", "no single GPU `1`"),
        ("0+9", "no single GPU `9`"),
        ("cpu:0+x", "`x` is not the number of a CPU slot"),
        ("cpu:0+1,1", "has CPU slot 1 twice"),
        ("cpu:0+256", "`256` is not the number of a CPU slot, 0 to 255"),
        ("cpu:0+", "lacks the number of a CPU slot"),
        ("cpu:0+1,cpu:", "lacks the number of a CPU slot"),
        ("cpu:", "and `cpu:` says no number"),
        ("cpu:0,1", "takes 1 to 256 slots, not `0,1`"),
    ],
)
def test_a_group_that_cannot_be_is_refused_with_what_is_wrong(wanted: str, told: str) -> None:
    with pytest.raises(DeviceError, match=told):
        chosen(wanted)


def test_a_part_of_a_gpu_joins_no_group() -> None:
    with pytest.raises(DeviceError, match="`cuda:9:0` is a part of a GPU"):
        choose("9:0+9:1", Gpus([part(0), part(1)], []), gpu_functions=True, cpu_functions=False)


@pytest.mark.parametrize(
    ("devices", "count", "told"),
    [
        ([gpu(0), gpu(1), gpu(2)], 2, "`--devices 0+1` makes these GPUs a group"),
        ([pair(), gpu(2)], 2, ""),
        ([pair(), gpu(2)], 3, "`--devices 0+1+2` makes these GPUs a group"),
        ([gpu(0)], 2, ""),
        ([Device("cpu:0", "cpu")], 2, "`--devices cpu:2` has 2 CPU slots stand for such a group"),
        ([Device("cpu:0", "cpu", takes_gpu_functions=False)], 2, ""),
    ],
)
def test_who_lacks_a_group_is_told_how_to_have_one(devices: list[Device], count: int, told: str) -> None:
    assert group_hint(devices, count) == told


# --- what a child sees ------------------------------------------------------------------------------------------------


def test_a_groups_child_sees_all_its_gpus_and_how_many_they_are() -> None:
    seen = child_environment(os.environ, group([gpu(3), gpu(1)]))
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["GEN_WORKER_GPU_COUNT"]) == ("GPU-33,GPU-11", "2")
    slots = child_environment(os.environ, group([Device("cpu:0", "cpu"), Device("cpu:1", "cpu")]))
    assert (slots["CUDA_VISIBLE_DEVICES"], slots["GEN_WORKER_GPU_COUNT"]) == ("", "2")
    assert child_environment(os.environ, gpu(2))["GEN_WORKER_GPU_COUNT"] == "1"


# --- which functions run there ----------------------------------------------------------------------------------------


def places(*devices: Device, functions: list[Function]) -> dict[str, list[str]]:
    """Return by function which devices it may run on."""
    fleet = Host(*functions, devices=list(devices), up=False).fleet
    return {each.name: [device.name for device in devices if holds(device, each)] for each in fleet.functions.values()}


def test_a_group_is_for_what_needs_one_where_there_are_single_gpus() -> None:
    found = places(pair(), gpu(2), functions=[needing("one", 1), needing("two", 2), needing("four", 4)])
    assert found == {"one": ["cuda:2"], "two": ["cuda:0+1"], "four": []}


def test_where_there_is_no_smaller_device_a_group_runs_what_needs_less() -> None:
    four = group([gpu(index) for index in range(2, 6)])
    assert places(pair(), four, functions=[needing("one", 1), needing("two", 2), needing("three", 3)]) == {
        "one": ["cuda:0+1"],
        "two": ["cuda:0+1"],
        "three": ["cuda:2+3+4+5"],
    }


def test_memory_is_that_of_so_many_gpus_as_a_function_asks_for() -> None:
    functions = [needing("fits", 2, 48), needing("big", 2, 49), needing("alone", 1, 25)]
    found = places(group([gpu(0, gb=23.99), gpu(1, gb=23.99)]), functions=functions)
    assert found == {"fits": ["cuda:0+1"], "big": [], "alone": []}
    fleet = Host(*functions, devices=[pair()], up=False).fleet
    told = unheld(fleet, fleet.functions["big"])
    assert told == "insufficient_vram: it declares 49 GB, the largest device here may take 48 GB"


def test_a_function_for_which_the_single_gpus_are_too_small_runs_on_a_group_of_larger_ones() -> None:
    large = group([gpu(1, gb=80), gpu(2, gb=80)])
    assert places(gpu(0), large, functions=[needing("one", 1, 40)]) == {"one": ["cuda:1+2"]}


def test_functions_that_need_no_gpu_leave_groups_of_cpu_slots_to_those_that_do() -> None:
    devices = choose("cpu:3", Gpus([], []), gpu_functions=True, cpu_functions=True, gpu_counts=(2,))
    found = places(*devices, functions=[needing("two", 2), needing("plain", 1, on_gpu=False)])
    assert found == {"two": ["cpu:0+1"], "plain": ["cpu:2"]}


def test_jobs_for_a_group_and_for_single_gpus_run_side_by_side() -> None:
    host = Host(needing("one", 1), needing("two", 2), devices=[pair(), gpu(2)])
    first, second, third = host.submit("two"), host.submit("two"), host.submit("one")
    host.starts(first, third)
    assert (held_by(first).device.name, held_by(third).device.name) == ("cuda:0+1", "cuda:2")
    assert second.child is None
    host.done(first)
    assert held_by(second).device.name == "cuda:0+1"


def test_the_death_of_a_groups_child_costs_the_single_gpus_nothing() -> None:
    host = Host(needing("one", 1), needing("two", 2), devices=[pair(), gpu(2)])
    lost, kept = host.submit("two"), host.submit("one")
    host.starts(lost, kept)
    host.dies(held_by(lost))
    assert held_by(kept).phase is Phase.BUSY
    host.done(kept)
    assert host.answer(kept).kind is None


def test_functions_go_to_a_group_once_no_smaller_device_is_left() -> None:
    host = Host(needing("one", 1), needing("two", 2), devices=[pair(), gpu(2)])
    host.happens(DeviceFault("cuda:2", "XID 79", fatal=True))
    job = host.submit("one")
    assert held_by(job).device.name == "cuda:0+1"


def test_a_group_does_not_stand_in_for_what_an_operator_has_drained() -> None:
    host = Host(needing("one", 1), needing("two", 2), devices=[pair(), gpu(2)])
    host.happens(DeviceDrainAsked(host.fleet.devices[1]))
    job = host.submit("one")
    assert host.answer(job).message.endswith("every device for it is drained by an operator")


def test_a_request_that_names_other_models_goes_where_its_function_does() -> None:
    host = Host(needing("one", 1), needing("two", 2), devices=[pair(), gpu(2)])
    for name, device in (("one", "cuda:2"), ("two", "cuda:0+1")):
        made = host.fleet.with_models(host.fleet.functions[name], "other", [])
        assert [each.name for each in host.fleet.devices if holds(each, made)] == [device]


# --- its memory -------------------------------------------------------------------------------------------------------


def uses(host: Host, **used: int) -> None:
    """Have the driver say what is in use of GPUs."""
    host.happens(GpusRead([GpuReading(f"cuda:{name[1:]}", each, 24 * GIB) for name, each in used.items()]))


def test_the_next_child_waits_until_every_member_has_its_memory_back() -> None:
    host = Host(needing("two", 2), devices=[pair()])
    host.dies(host.child())
    uses(host, g0=BASELINE, g1=BASELINE + 2 * SPARE_BYTES)
    assert host.child().phase is Phase.SETTLING
    uses(host, g0=BASELINE)
    assert host.child().phase is Phase.SETTLING
    uses(host, g1=BASELINE + SPARE_BYTES)
    assert host.child().phase is Phase.FORKING


def test_members_that_are_read_one_by_one_are_waited_for_like_those_that_are_read_together() -> None:
    host = Host(needing("two", 2), devices=[pair()])
    host.dies(host.child())
    uses(host, g1=BASELINE)
    assert host.child().phase is Phase.SETTLING
    uses(host, g0=BASELINE)
    assert host.child().phase is Phase.FORKING


def test_of_a_group_nobody_knows_what_is_in_use_while_the_driver_is_silent_of_a_member() -> None:
    host = Host(needing("two", 2), devices=[pair()])
    (device,) = host.fleet.devices
    uses(host, g0=BASELINE, g1=BASELINE)
    known = [device.vram_used]
    host.happens(GpusRead([], ["cuda:1"]))
    assert [*known, device.vram_used, device.members[0].vram_used] == [2 * BASELINE, None, BASELINE]


def test_memory_that_stays_away_is_named_with_its_gpu() -> None:
    host = Host(needing("two", 2), devices=[pair()])
    host.fleet.devices[0].budget_bytes = 40 * GIB
    host.dies(host.child())
    uses(host, g0=BASELINE, g1=BASELINE + GIB)
    assert spawned(host.passes(SETTLE_S))
    device = host.fleet.devices[0]
    assert (device.health, device.unattributed, device.allowed_bytes) == (Health.DIRTY, GIB, 39 * GIB)
    assert device.reason == "1024 MiB of the memory of cuda:1 are in use and no child has them"
    uses(host, g0=BASELINE, g1=BASELINE)
    assert (device.health, device.unattributed) == (Health.OK, 0)


def test_what_the_driver_says_of_members_is_summed_up() -> None:
    host = Host(needing("two", 2), devices=[pair()])
    readings = [
        GpuReading("cuda:0", GIB, 24 * GIB, busy=1.0, temperature=50.0, watts=100.0),
        GpuReading("cuda:1", 2 * GIB, 24 * GIB, busy=0.5, temperature=60.0, watts=150.0),
    ]
    host.happens(GpusRead(readings))
    device = host.fleet.devices[0]
    assert (device.vram_used, device.busy, device.temperature, device.watts) == (3 * GIB, 0.75, 60.0, 250.0)


def test_a_member_that_is_lost_retires_its_group_and_nothing_else() -> None:
    host = Host(needing("one", 1), needing("two", 2), devices=[pair(), gpu(2)])
    job = host.submit("two")
    host.starts(job)
    host.happens(DeviceFault("cuda:1", "XID 79: the GPU has fallen off the bus", fatal=True))
    first, second = host.fleet.devices
    assert (first.health, second.health) == (Health.RETIRED, Health.OK)
    assert first.reason == "cuda:1: XID 79: the GPU has fallen off the bus"
    assert (host.answer(job).retryable, host.answer(job).message) == (True, f"its GPU is lost: {first.reason}")
    refused = host.answer(host.submit("two"))
    assert refused.message == f"`two` is unavailable: cuda:0+1 is retired: {first.reason}"


# --- what is told -----------------------------------------------------------------------------------------------------


def test_an_orchestrator_is_told_how_many_gpus_there_are_and_which_function_lacks_some() -> None:
    devices = [pair(), gpu(2)]
    settings = Settings.load(env={}, folder=Path("/nowhere"), root=Path("/nowhere"))
    assert (told := resources(devices, [], settings)).gpu_count == 3
    assert (told.vram_total_bytes, told.gpu_name) == (72 * GIB, "NVIDIA L4")
    host = Host(needing("one", 1), needing("two", 2), needing("four", 4), devices=devices)
    seen = availability(host.fleet, host.now, draining=False, free_vram_bytes=0)
    assert seen.state.available_functions == ("one", "two")
    (gate,) = seen.gated
    assert (gate.function_name, gate.reason) == ("four", "insufficient_gpus")
    assert gate.axes == {"required_gpu_count": "4", "detected_gpu_count": "2"}
    assert gate.detail == "it needs 4 GPUs in one group, the largest group here has 2"


def test_without_any_group_that_is_what_is_said() -> None:
    host = Host(needing("two", 2), devices=[gpu(0), gpu(1)])
    told = "insufficient_gpus: it needs 2 GPUs in one group, and no device here is a group"
    assert unheld(host.fleet, host.fleet.functions["two"]) == told


@pytest.mark.parametrize("name", ["cuda:0+1", "0+1", "cuda:1", "1", "GPU-11", "cuda:0", "0"])
def test_a_person_may_call_a_group_by_any_of_its_members(name: str) -> None:
    members = [MemberStatus(index, f"GPU-{index}{index}", f"cuda:{index}") for index in range(2)]
    first = DeviceStatus(0, None, "cuda:0+1", 1, "idle", members=members)
    other = DeviceStatus(2, "GPU-22", "cuda:2", 2, "idle")
    assert named(name, [other, first]) is first
    assert named("2", [first, other]) is other
    slots = [MemberStatus(None, None, f"cpu:{index}") for index in range(2)]
    assert named("1", [DeviceStatus(None, None, "cpu:0+1", 1, "idle", members=slots)]) is not None
    assert len(names_of(first)) == len(set(names_of(first)))


def test_the_screen_shows_a_group_as_one_device_and_what_each_member_is_at() -> None:
    members = [
        MemberStatus(
            index, f"GPU-{index}{index}", f"cuda:{index}", vram_used=GIB, vram_total=24 * GIB, temp=50.0 + index
        )
        for index in range(2)
    ]
    device = DeviceStatus(0, None, "cuda:0+1", 1, "idle", vram_used=2 * GIB, vram_total=48 * GIB, members=members)
    status = Status(ts=1.0, host="here", version="1", pid=1, uptime_s=1.0, gpus=[device])
    shown = ["".join(text for text, _ in draw(80)) for draw in detail_lines(device, status, History(), 80)]
    assert title(device) == "GPU 0+1"
    assert [line.split() for line in shown if "°C" in line] == [
        ["0", "1.0/24G", "50", "°C", "GPU-00"],
        ["1", "1.0/24G", "51", "°C", "GPU-11"],
    ]
