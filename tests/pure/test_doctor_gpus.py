"""What the doctor says of GPUs, of their driver and of torch, from what others looked at."""

import fcntl
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from gen_worker.doctor import gpus, torch_probe
from gen_worker.doctor.finding import Status
from gen_worker.doctor.gpu_probe import Driver, Gpu, look
from tests.pure.test_doctor_host import is_told

GPU = Gpu(
    0, "GPU-1", "NVIDIA H100", 80 << 30, 4 << 20, (9, 0), persistence=True, mig=False, uncorrected=0, temperature=40
)
DRIVER = Driver("550.54", (12, 4), [GPU])


# --- the driver -------------------------------------------------------------------------------------------------------


class NvmlError(Exception):
    """As `pynvml` has it."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


class Nvml:
    """A driver with one GPU; a name in `broken` fails when it is called, with this number."""

    NVMLError = NvmlError
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = NVML_VOLATILE_ECC = NVML_TEMPERATURE_GPU = 0

    def __init__(self, **broken: int) -> None:
        self._broken = broken
        self._answers: dict[str, Any] = {
            "nvmlSystemGetCudaDriverVersion": 12040,
            "nvmlSystemGetDriverVersion": b"550.54",
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 << 30, used=4 << 20),
            "nvmlDeviceGetUUID": "GPU-1",
            "nvmlDeviceGetName": b"NVIDIA H100",
            "nvmlDeviceGetRemappedRows": (0, 0, 0, 1),
            "nvmlDeviceGetMigMode": (0, 0),
            "nvmlDeviceGetPersistenceMode": 1,
            "nvmlDeviceGetCudaComputeCapability": (9, 0),
            "nvmlDeviceGetTotalEccErrors": 0,
            "nvmlDeviceGetTemperature": 40,
        }

    def __getattr__(self, name: str) -> Any:
        def call(*_about: object) -> Any:
            if name in self._broken:
                raise NvmlError(self._broken[name])
            return self._answers.get(name)

        return call


def test_a_driver_is_asked_for_everything_it_knows() -> None:
    seen = look(Nvml())
    assert (seen.version, seen.cuda, seen.error) == ("550.54", (12, 4), "")
    assert seen.gpus == [
        Gpu(0, "GPU-1", "NVIDIA H100", 80 << 30, 4 << 20, (9, 0), True, False, 0, False, True, 40),
    ]
    assert msgspec.json.decode(msgspec.json.encode(seen), type=Driver) == seen


def test_what_a_gpu_does_not_tell_is_unknown_and_not_zero() -> None:
    (gpu,) = look(Nvml(nvmlDeviceGetTotalEccErrors=3, nvmlDeviceGetMigMode=3, nvmlDeviceGetRemappedRows=3)).gpus
    assert (gpu.uncorrected, gpu.mig, gpu.remap_failed) == (None, None, None)
    is_told(next(gpus.about_gpu(gpu)), Status.OK)


def test_a_gpu_that_fell_off_the_bus_is_a_problem_of_its_own() -> None:
    (gpu,) = look(Nvml(nvmlDeviceGetMemoryInfo=15)).gpus
    is_told(next(gpus.about_gpu(gpu)), Status.PROBLEM, "nvml error 15")


@pytest.mark.parametrize(
    ("code", "devices", "status", "word"),
    [
        (12, [], Status.SKIPPED, "cpu:2"),
        (9, [], Status.SKIPPED, "no NVIDIA driver"),
        (12, ["nvidia0"], Status.PROBLEM, "--gpus all"),
        (18, [], Status.PROBLEM, "restart the host"),
        (999, [], Status.PROBLEM, "does not answer"),
    ],
)
def test_a_driver_that_says_nothing_is_told_with_why(
    tmp_path: Path, code: int, devices: list[str], status: Status, word: str
) -> None:
    (tmp_path / "dev").mkdir()
    for name in devices:
        (tmp_path / "dev" / name).touch()
    is_told(gpus.about_driver(look(Nvml(nvmlInit=code)), tmp_path), status, word)


def test_a_driver_that_answers_is_told_with_its_version() -> None:
    is_told(gpus.about_driver(DRIVER), Status.OK, "550.54", "CUDA up to 12.4", "1 GPU")


# --- one GPU ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({}, Status.OK, "4 MiB of 80.0 GiB used (GPU-1)"),
        ({"uncorrected": 2}, Status.PROBLEM, "2 memory errors"),
        ({"remap_failed": True}, Status.PROBLEM, "worn"),
        ({"remap_pending": True}, Status.WARNING, "--gpu-reset"),
        ({"persistence": False}, Status.WARNING, "nvidia-smi -pm 1"),
        ({"temperature": 94}, Status.WARNING, "94 °C"),
        ({"mig": True}, Status.OK, "each part is a device"),
        ({"used": 9 << 30}, Status.WARNING, "by others than supervisors"),
    ],
)
def test_what_ails_a_gpu_is_told(change: dict[str, Any], status: Status, word: str) -> None:
    (found,) = gpus.about_gpu(msgspec.structs.replace(GPU, **change))
    assert found.name == "cuda:0"
    is_told(found, status, word)


def test_a_gpu_that_a_supervisor_has_may_be_full() -> None:
    (found,) = gpus.about_gpu(msgspec.structs.replace(GPU, used=70 << 30), "the supervisor 7")
    is_told(found, Status.OK, "in use by the supervisor 7")


def test_who_has_a_gpu_is_known_by_its_lock(tmp_path: Path) -> None:
    assert gpus.holder_of("GPU-1", tmp_path) == ""
    file = tmp_path / "gen-worker-GPU-1.lock"
    file.write_text("4711 ./gw.sock\x1b")
    assert gpus.holder_of("GPU-1", tmp_path) == ""  # it was killed
    lock = os.open(file, os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert gpus.holder_of("GPU-1", tmp_path) == "the supervisor 4711 (`./gw.sock?`)"
    os.close(lock)


def test_which_gpus_a_supervisor_would_take_is_told() -> None:
    seen = msgspec.structs.replace(DRIVER, devices=["cuda:0"], notices=["cuda:1 not used: hidden"])
    assert gpus.about_devices(Driver()) == []
    is_told(gpus.about_devices(seen)[0], Status.OK, "cuda:0; cuda:1 not used")
    is_told(gpus.about_devices(msgspec.structs.replace(seen, devices=[]))[0], Status.WARNING, "none; cuda:1")
    is_told(gpus.about_devices(msgspec.structs.replace(seen, refusal="no GPU `9`"))[0], Status.PROBLEM, "no GPU `9`")


# --- torch ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "cuda"), [("cuda: Optional[str] = '12.8'", (12, 8)), ("cuda: Optional[str] = None", None)]
)
def test_what_torch_was_built_for_is_read_without_importing_it(
    tmp_path: Path, line: str, cuda: tuple[int, int] | None
) -> None:
    assert gpus.torch_build(tmp_path) is None
    (tmp_path / "version.py").write_text(f"__version__ = '2.9.0+x'\ndebug = False\n{line}\n")
    assert gpus.torch_build(tmp_path) == gpus.TorchBuild("2.9.0+x", cuda)


@pytest.mark.parametrize(
    ("build", "driver", "status", "word"),
    [
        (None, Driver(), Status.SKIPPED, "not installed"),
        (None, DRIVER, Status.WARNING, "pip install -e '.[torch]'"),
        (gpus.TorchBuild("2.9", None), Driver(), Status.OK, "for processors alone"),
        (gpus.TorchBuild("2.9", None), DRIVER, Status.PROBLEM, "does not see the GPUs"),
        (gpus.TorchBuild("2.9", (13, 0)), DRIVER, Status.PROBLEM, "takes CUDA 12.4 at most"),
        (gpus.TorchBuild("2.9", (12, 8)), DRIVER, Status.OK, "CUDA 12.8"),
    ],
)
def test_a_torch_that_does_not_go_with_the_driver_is_told(
    build: gpus.TorchBuild | None, driver: Driver, status: Status, word: str
) -> None:
    is_told(gpus.about_torch(build, driver), status, word)


@pytest.mark.parametrize(
    ("built", "capability", "status"),
    [
        ("sm_80 sm_90", (9, 0), "ok"),
        ("sm_80 sm_86", (8, 9), "ok"),  # machine code of the same generation
        ("sm_90a", (9, 0), "ok"),
        ("sm_80", (9, 0), "problem"),
        ("sm_80 compute_80", (9, 0), "ok"),  # compiled when it is loaded
        ("sm_90 compute_90", (7, 5), "problem"),
        ("sm_100 sm_120", (12, 0), "ok"),
        ("", (9, 0), "problem"),
    ],
)
def test_a_gpu_that_torch_has_no_code_for_is_told(built: str, capability: tuple[int, int], status: str) -> None:
    found = gpus.about_code(built.split(), [msgspec.structs.replace(GPU, capability=capability)])
    is_told(found, Status(status), *([f"sm_{capability[0]}{capability[1]}"] if status == "problem" else []))


def test_torch_is_asked_for_its_code() -> None:
    def built(cuda: str | None, flags: str | None) -> Any:
        return SimpleNamespace(version=SimpleNamespace(cuda=cuda), _C=SimpleNamespace(_cuda_getArchFlags=lambda: flags))

    assert torch_probe.flags(built("12.8", "sm_80 sm_90")) == "sm_80 sm_90"
    assert torch_probe.flags(built(None, None)) == ""


def test_two_bindings_of_one_name_are_warned_of() -> None:
    is_told(gpus.binding("12.5", None), Status.OK)
    is_told(gpus.binding("12.5", "11.5"), Status.WARNING, "pip uninstall pynvml")
    is_told(gpus.binding(None, None), Status.PROBLEM, "pip install nvidia-ml-py")
