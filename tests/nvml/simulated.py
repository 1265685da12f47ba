"""GPUs that are not there: a driver's library that programs find like the real one, and the world that it tells of.

`gpus(folder, 8)` makes eight; with `variables` in its environment a program sees them through the real `pynvml`, and
sees at once what the test does to them. Programs that compute find no CUDA there: their functions must be plain.
"""

import atexit
import ctypes
import mmap
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

HERE = Path(__file__).parent
MOST_GPUS, MOST_EVENTS, MOST_PROCESSES = 16, 256, 16
GIB = 1 << 30
XID, DOUBLE_BIT_ECC = 8, 2  # kinds of events
GPU_IS_LOST = 15
LOCKS = Path("/run/lock"), Path("/tmp")


class Process(ctypes.Structure):
    """A program on a GPU."""

    _fields_ = (("pid", ctypes.c_uint32), ("unused", ctypes.c_uint32), ("used", ctypes.c_uint64))


_FIGURES = (
    *("busy", "memory_busy", "temperature", "temperature_limit", "power", "power_limit", "fan"),
    *("clock", "memory_clock", "most_clock", "most_memory_clock", "major", "minor", "ecc", "persistence"),
    *("error", "processes", "delay"),
)


class Gpu(ctypes.Structure):
    """One GPU, as `nvml.c` has it."""

    _fields_ = (
        ("uuid", ctypes.c_char * 96),
        ("name", ctypes.c_char * 96),
        ("serial", ctypes.c_char * 32),
        *((name, ctypes.c_uint64) for name in ("total", "used", "reserved", "ecc_errors")),
        *((name, ctypes.c_uint32) for name in _FIGURES),
        ("process", Process * MOST_PROCESSES),
    )


class Event(ctypes.Structure):
    """What a driver reports by itself."""

    _fields_ = (
        ("gpu", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
        ("kind", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


class _World(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_uint32),
        ("error", ctypes.c_uint32),
        ("events", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
        ("driver", ctypes.c_char * 32),
        ("event", Event * MOST_EVENTS),
        ("gpu", Gpu * MOST_GPUS),
    )


class Simulated:
    """A host with GPUs; what is written to `gpus` is what their driver says from then on."""

    def __init__(self, file: Path, count: int, library: Path) -> None:
        file.write_bytes(bytes(ctypes.sizeof(_World)))
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 0)
        self._world = _World.from_buffer(self._map)
        self._world.count, self._world.driver = count, b"570.86.15"
        self.gpus = [self._world.gpu[index] for index in range(count)]
        for index, gpu in enumerate(self.gpus):
            _equip(gpu, index)
        self.variables = {"LD_LIBRARY_PATH": str(library), "STUB_NVML": str(file)}
        """What a program must have in its environment to see them."""

    def uuid(self, index: int) -> str:
        """The UUID of a GPU: another one in each world."""
        return bytes(self.gpus[index].uuid).decode()

    def reports(self, index: int, kind: int = XID, value: int = 0) -> None:
        """Have the driver report something."""
        event = self._world.event[self._world.events % MOST_EVENTS]
        event.gpu, event.kind, event.value = index, kind, value
        self._world.events += 1

    def fails(self, error: int) -> None:
        """Have the library itself fail at its start."""
        self._world.error = error

    def close(self) -> None:
        """Unmap the world; programs that look at it go on seeing it as it is."""
        uuids = [self.uuid(index) for index in range(len(self.gpus))]
        self.gpus.clear()
        del self._world
        self._map.close()
        for each in uuids:  # of supervisors that were killed
            for folder in LOCKS:
                (folder / f"gen-worker-{each}.lock").unlink(missing_ok=True)


def _equip(gpu: Gpu, index: int) -> None:
    gpu.uuid, gpu.name = f"GPU-{uuid.uuid4()}".encode(), b"NVIDIA GeForce RTX 4090"
    gpu.serial = f"13240{index:05d}".encode()
    gpu.total, gpu.used = 24 * GIB, 300 << 20
    gpu.temperature, gpu.temperature_limit, gpu.fan = 35 + index, 90, 30
    gpu.power, gpu.power_limit = 25_000, 450_000
    gpu.clock, gpu.memory_clock, gpu.most_clock, gpu.most_memory_clock = 210, 405, 3105, 10501
    gpu.major, gpu.minor, gpu.persistence = 8, 9, 1


@cache
def library() -> Path:
    """Return the folder with the compiled libraries; skip the test where nothing compiles."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler, `cc`")
    folder = Path(mkdtemp(prefix="gw-nvml-"))
    atexit.register(shutil.rmtree, folder)
    for source, name in (("nvml.c", "libnvidia-ml.so.1"), ("cuda.c", "libcuda.so.1")):
        command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]
        subprocess.run([*command, "-o", str(folder / name), str(HERE / source)], check=True, timeout=60)
    return folder


@contextmanager
def gpus(folder: Path, count: int) -> Iterator[Simulated]:
    """Make so many GPUs, whose world lies in this folder."""
    made = Simulated(folder / "gpus", count, library())
    try:
        yield made
    finally:
        made.close()
