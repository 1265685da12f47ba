"""Which devices `--devices` names, and which GPUs there are."""

import sys
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gen_worker_supervisor.core.state import Device
from gen_worker_supervisor.devices.ownership import DeviceError, Gpus, choose, list_gpus, visible


def gpus(count: int = 2) -> Gpus:
    """The GPUs of one host."""
    found = [Device(f"cuda:{n}", "cuda", index=n, uuid=f"GPU-{n}{n}{n}", vram_total=8 << 30) for n in range(count)]
    return Gpus(found, [])


def names(wanted: str, *, gpu: bool = True, cpu: bool = False) -> list[str]:
    """Return the names of the devices chosen on a host with two GPUs."""
    return [device.name for device in choose(wanted, gpus(), gpu_functions=gpu, cpu_functions=cpu)]


@pytest.mark.parametrize(("wanted", "count"), [("cpu", 1), ("cpu:1", 1), ("cpu:3", 3), (" cpu:2 ", 2)])
def test_cpu_slots_take_functions_of_every_kind(wanted: str, count: int) -> None:
    chosen = choose(wanted, gpus(), gpu_functions=True, cpu_functions=True)
    assert [device.name for device in chosen] == [f"cpu:{n}" for n in range(count)]
    assert all(device.takes_gpu_functions and device.takes_cpu_functions for device in chosen)


@pytest.mark.parametrize("wanted", ["cpu:0", "cpu:257", "cpu:x", "cpu:-1", "cpu:"])
def test_an_absurd_number_of_cpu_slots_is_refused(wanted: str) -> None:
    with pytest.raises(DeviceError, match="takes 1 to 256 slots"):
        names(wanted)


def test_auto_is_every_gpu() -> None:
    assert names("auto") == ["cuda:0", "cuda:1"]


def test_auto_without_a_gpu_is_one_cpu_slot_that_stands_for_it() -> None:
    (only,) = choose("auto", Gpus([], []), gpu_functions=True, cpu_functions=True)
    assert (only.name, only.takes_gpu_functions, only.takes_cpu_functions) == ("cpu:0", True, True)


def test_where_a_gpu_must_be_one_a_cpu_stands_for_it_only_when_it_is_named() -> None:
    (only,) = choose("auto", Gpus([], []), gpu_functions=True, cpu_functions=True, strict_gpus=True)
    assert (only.name, only.takes_gpu_functions, only.takes_cpu_functions) == ("cpu:0", False, True)
    (named,) = choose("cpu:1", Gpus([], []), gpu_functions=True, cpu_functions=True, strict_gpus=True)
    assert named.takes_gpu_functions


def test_auto_takes_no_gpu_for_functions_that_need_none() -> None:
    assert names("auto", gpu=False, cpu=True) == ["cpu:0"]


def test_beside_gpus_other_functions_have_a_child_of_their_own() -> None:
    chosen = choose("auto", gpus(), gpu_functions=True, cpu_functions=True)
    takes = [(device.name, device.takes_gpu_functions, device.takes_cpu_functions) for device in chosen]
    assert takes == [("cuda:0", True, False), ("cuda:1", True, False), ("cpu:0", False, True)]


@pytest.mark.parametrize("wanted", ["1,0", "cuda:1, cuda:0", "GPU-111,GPU-000", "GPU-1,0,"])
def test_gpus_are_named_by_index_or_uuid_and_keep_that_order(wanted: str) -> None:
    assert names(wanted) == ["cuda:1", "cuda:0"]


@pytest.mark.parametrize("wanted", ["2", "GPU-", "0,0", "0,GPU-000", "gpu", "-1"])
def test_a_gpu_that_is_not_there_or_not_one_is_refused_with_those_there_are(wanted: str) -> None:
    with pytest.raises(DeviceError, match=r"there are: 0 \(GPU-000\), 1 \(GPU-111\)"):
        names(wanted)


def test_a_gpu_on_a_host_without_any_is_refused() -> None:
    with pytest.raises(DeviceError, match="no GPU `0`: this host has none"):
        choose("0", Gpus([], []), gpu_functions=True, cpu_functions=False)


# --- what the environment hides ---------------------------------------------------------------------------------------


def seen(count: int = 4, **environment: str) -> list[str]:
    """Return the names of the GPUs that may be used."""
    return [gpu.name for gpu in visible(gpus(count), environment).usable]


@pytest.mark.parametrize(
    ("given", "left"),
    [("2,0", ["cuda:2", "cuda:0"]), ("GPU-3", ["cuda:3"]), ("1,GPU-222", ["cuda:1", "cuda:2"]), ("", []), ("-1", [])],
)
def test_cuda_visible_devices_given_to_the_supervisor_leaves_it_those_gpus(given: str, left: list[str]) -> None:
    assert seen(CUDA_VISIBLE_DEVICES=given) == left


def test_what_a_variable_hides_is_said_and_cannot_be_asked_for() -> None:
    found = visible(gpus(), {"CUDA_VISIBLE_DEVICES": "1"})
    assert found.notices == ["cuda:0 not used: hidden by `CUDA_VISIBLE_DEVICES=1`"]
    with pytest.raises(DeviceError, match="GPU `0` may not be used: hidden by `CUDA_VISIBLE_DEVICES=1`"):
        choose("0", found, gpu_functions=True, cpu_functions=False)


@pytest.mark.parametrize("given", ["7", "0,7", "GPU-", "0,0", "zero"])
def test_a_gpu_of_cuda_visible_devices_that_is_not_there_is_refused(given: str) -> None:
    with pytest.raises(DeviceError, match=r"^`CUDA_VISIBLE_DEVICES`: no single GPU"):
        seen(CUDA_VISIBLE_DEVICES=given)


def test_a_variable_for_gpus_means_nothing_on_a_host_without_any() -> None:
    assert visible(Gpus([], []), {"CUDA_VISIBLE_DEVICES": "0", "NVIDIA_VISIBLE_DEVICES": "0"}) == Gpus([], [])


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("all", 4),
        ("", 4),
        ("none", 0),
        ("void", 4),  # what CDI sets in every container that it gives GPUs to
        ("GPU-111", 1),  # a privileged container sees all of them
        ("0,2", 2),
        ("4,5,6,7", 4),  # of the host's eight: the container runtime has let these in, and they are 0 to 3 here
        ("7", 4),
        ("nvidia.com/gpu=all", 4),
    ],
)
def test_nvidia_visible_devices_counts_where_the_container_sees_more(given: str, left: int) -> None:
    assert len(seen(NVIDIA_VISIBLE_DEVICES=given)) == left


# --- what the driver says ---------------------------------------------------------------------------------------------


class NvmlError(Exception):
    """What the driver's library raises."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


class Driver(ModuleType):
    """The driver's library for a host of which it knows so many GPUs, and where one of its calls fails."""

    NVMLError = NvmlError
    NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_NOT_FOUND, NVML_ERROR_FUNCTION_NOT_FOUND = 3, 6, 13
    NVML_ERROR_DRIVER_NOT_LOADED, NVML_ERROR_LIBRARY_NOT_FOUND = 9, 12
    NVML_ERROR_GPU_IS_LOST, NVML_ERROR_RESET_REQUIRED = 15, 16
    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self, count: int, fails: str = "", code: int = 999, instances: tuple[int, ...] | None = None) -> None:
        super().__init__("pynvml")
        self._count, self._fails, self._code = count, fails, code
        self._instances = instances
        self.open = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.startswith("nvml"):
            raise AttributeError(name)
        return lambda *given: self._call(name, *given)

    def _call(self, name: str, *given: Any) -> Any:
        if name == self._fails:
            raise NvmlError(self._code)
        if name in ("nvmlInit", "nvmlShutdown"):
            self.open += 1 if name == "nvmlInit" else -1
        handle = given[0] if given else 0
        if name == "nvmlDeviceGetMigDeviceHandleByIndex":
            if given[1] not in (self._instances or ()):
                raise NvmlError(self.NVML_ERROR_NOT_FOUND)
            return f"{given[0]}-{given[1]}"
        answers: dict[str, Any] = {
            "nvmlDeviceGetCount": self._count,
            "nvmlDeviceGetHandleByIndex": handle,
            "nvmlDeviceGetUUID": f"GPU-{handle}".encode(),
            "nvmlDeviceGetName": "NVIDIA L4",
            "nvmlDeviceGetCudaComputeCapability": (8, 9),
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=24 << 30, used=300 << 20),
            "nvmlDeviceGetMigMode": (int(self._instances is not None), 0),
            "nvmlDeviceGetMaxMigDeviceCount": 7,
        }
        return answers.get(name)


class HangingDriver(Driver):
    """One that is asked and never answers."""

    def __init__(self) -> None:
        super().__init__(1)
        self.released = threading.Event()

    def nvmlInit(self) -> None:
        self.released.wait()


def listed(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> Gpus:
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    try:
        return list_gpus()
    finally:
        assert driver.open == 0


def test_each_gpu_is_listed_with_what_the_driver_says_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = listed(monkeypatch, Driver(2)).usable
    assert [(each.name, each.uuid) for each in found] == [("cuda:0", "GPU-0"), ("cuda:1", "GPU-1")]
    assert {(each.vram_total, each.sm, each.product) for each in found} == {(24 << 30, "89", "NVIDIA L4")}


@pytest.mark.parametrize("code", [Driver.NVML_ERROR_DRIVER_NOT_LOADED, Driver.NVML_ERROR_LIBRARY_NOT_FOUND])
def test_a_host_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    assert listed(monkeypatch, Driver(2, "nvmlInit", code)) == Gpus([], [])


def test_a_driver_that_does_not_answer_is_an_error_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = HangingDriver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    with pytest.raises(DeviceError, match=r"has not said for 0\.05 s which GPUs there are"):
        list_gpus(0.05)
    driver.released.set()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("nvmlInit", "the NVIDIA driver does not say which GPUs there are: nvml error 999"),
        ("nvmlDeviceGetCount", "the NVIDIA driver does not say which GPUs there are: nvml error 999"),
        ("nvmlDeviceGetMemoryInfo", "GPU 0 cannot be measured: nvml error 999"),
        ("nvmlDeviceGetCudaComputeCapability", "GPU 0 cannot be measured: nvml error 999"),
    ],
)
def test_a_gpu_that_is_not_measured_is_an_error_and_not_one_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, call: str, told: str
) -> None:
    with pytest.raises(DeviceError, match=told):
        listed(monkeypatch, Driver(2, call))


def test_a_gpu_in_mig_mode_is_its_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    found = listed(monkeypatch, Driver(1, instances=(0, 3)))
    assert [(each.name, each.index, each.uuid, each.sm) for each in found.usable] == [
        ("cuda:0:0", 0, "GPU-0-0", "89"),
        ("cuda:0:3", 0, "GPU-0-3", "89"),
    ]
    (chosen,) = choose("0:3", found, gpu_functions=True, cpu_functions=False)
    assert chosen.name == "cuda:0:3"


def test_a_gpu_in_mig_mode_without_instances_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = listed(monkeypatch, Driver(1, instances=()))
    assert (found.usable, found.notices) == ([], ["GPU 0 is left out: it is in MIG mode and has no instance"])


def test_a_driver_that_knows_no_mig_has_whole_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    found = listed(monkeypatch, Driver(1, "nvmlDeviceGetMigMode", Driver.NVML_ERROR_NOT_SUPPORTED))
    assert [each.name for each in found.usable] == ["cuda:0"]


@pytest.mark.parametrize("code", [Driver.NVML_ERROR_GPU_IS_LOST, Driver.NVML_ERROR_RESET_REQUIRED])
def test_a_gpu_that_the_driver_has_lost_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    found = listed(monkeypatch, Driver(1, "nvmlDeviceGetMemoryInfo", code))
    assert found.usable == []
    assert found.notices == [f"GPU 0 is left out: the driver says: nvml error {code}"]
    with pytest.raises(DeviceError, match="GPU `0` may not be used: the driver says"):
        choose("0", found, gpu_functions=True, cpu_functions=False)
