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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

import pytest

HERE = Path(__file__).parent
MOST_GPUS, MOST_EVENTS, MOST_PROCESSES = 24, 256, 16
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
    *("parent", "instance", "divided"),
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


class Make(NamedTuple):
    """What distinguishes one maker's product."""

    name: str
    gib: int
    idle_mw: int
    most_mw: int
    capability: tuple[int, int]


RTX_4090 = Make("NVIDIA GeForce RTX 4090", 24, 25_000, 450_000, (8, 9))
H100 = Make("NVIDIA H100 80GB HBM3", 80, 70_000, 700_000, (9, 0))


class Simulated:
    """A host with GPUs; what is written to `gpus` is what their driver says from then on."""

    def __init__(self, file: Path, count: int, library: Path, make: Make) -> None:
        file.write_bytes(bytes(ctypes.sizeof(_World)))
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 0)
        self._world = _World.from_buffer(self._map)
        self._world.count, self._world.driver = count, b"570.86.15"
        self.gpus = [self._world.gpu[index] for index in range(count)]
        self._parts = 0
        for index, gpu in enumerate(self.gpus):
            _equip(gpu, index, make)
        self.variables = {"LD_LIBRARY_PATH": str(library), "STUB_NVML": str(file)}
        """What a program must have in its environment to see them."""

    def divide(self, index: int, *profiles: str) -> list[Gpu]:
        """Put a GPU into MIG mode, with these instances: "3g.40gb" has so many GB; return them."""
        whole, made = self.gpus[index], []
        whole.divided = 1
        for number, profile in enumerate(profiles):
            part = self._world.gpu[self._world.count + self._parts]
            self._parts += 1
            part.parent, part.instance = index + 1, number
            part.uuid = f"MIG-{uuid.uuid4()}".encode()
            part.name = bytes(whole.name) + f" MIG {profile}".encode()
            part.total, part.used = int(profile.partition(".")[2].removesuffix("gb")) * GIB, 20 << 20
            part.major, part.minor = whole.major, whole.minor
            made.append(part)
        return made

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
        there = [*self.gpus, *(self._world.gpu[self._world.count + part] for part in range(self._parts))]
        uuids = [bytes(gpu.uuid).decode() for gpu in there]
        there.clear()
        self.gpus.clear()
        del self._world
        self._map.close()
        for each in uuids:  # of supervisors that were killed
            for folder in LOCKS:
                (folder / f"gen-worker-{each}.lock").unlink(missing_ok=True)


def _equip(gpu: Gpu, index: int, make: Make) -> None:
    gpu.uuid, gpu.name = f"GPU-{uuid.uuid4()}".encode(), make.name.encode()
    gpu.serial = f"13240{index:05d}".encode()
    gpu.total, gpu.used = make.gib * GIB, 300 << 20
    gpu.temperature, gpu.temperature_limit, gpu.fan = 35 + index, 90, 30
    gpu.power, gpu.power_limit = make.idle_mw, make.most_mw
    gpu.clock, gpu.memory_clock, gpu.most_clock, gpu.most_memory_clock = 210, 405, 3105, 10501
    (gpu.major, gpu.minor), gpu.persistence = make.capability, 1


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
def gpus(folder: Path, count: int, make: Make = RTX_4090) -> Iterator[Simulated]:
    """Make so many GPUs of one make, whose world lies in this folder."""
    made = Simulated(folder / "gpus", count, library(), make)
    try:
        yield made
    finally:
        made.close()


World = Callable[[int], Simulated]
