"""Folders in which torch's compiler, Triton and the CUDA driver keep what they made, so that it is made once.

One for each kind of machine and set of versions, in the cache: a child that takes another's place finds what that
one compiled, as does the next supervisor. The supervisor makes and tidies them; the compilers in its children use them.
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

COMPILED = "GEN_WORKER_COMPILE_CACHE"
"""Names the root of the folders in a supervisor's idea of the environment; it never reaches a child."""

UNUSED_S = 30 * 86400.0
_CUDA_BYTES = 4 << 30  # the most that the driver takes; its own default is 1 GiB
_LOCK = "in-use"
_FLAGS = re.compile(r"^(?:flags|Features)\s*:(.*)$", re.MULTILINE)


class Compiled(NamedTuple):
    """What lies in one folder."""

    key: str
    bytes: int
    last_used: float  # unix time
    in_use: bool


def key_of(sm: str) -> str:
    """Return what compiled code depends on: a GPU's compute capability, or the CPU's instructions, and the versions."""
    processor = f"sm{sm}" if sm else f"cpu-{platform.machine()}-{_instructions()}"
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    names = (processor, *(f"{name}{found}" for name in ("torch", "triton") if (found := _version(name))), python)
    return re.sub(r"[^\w.+-]", "_", "-".join(names))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _instructions() -> str:
    """Return a name for the instructions that this CPU has: code is compiled for all of them."""
    try:
        found = _FLAGS.search(Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    flags = " ".join(sorted(found[1].split())) if found is not None else platform.processor()
    return hashlib.sha256(flags.encode()).hexdigest()[:8]


def variables(root: str, sm: str, given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that name the folders to a child of a device; what the author has set is left to them."""
    folder = Path(root, key_of(sm))
    if not folder.is_dir():
        return {}
    chosen = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}
    if sm and "CUDA_CACHE_PATH" not in given:
        chosen |= {"CUDA_CACHE_PATH": str(folder / "cuda"), "CUDA_CACHE_MAXSIZE": str(_CUDA_BYTES)}
    return {name: value for name, value in chosen.items() if name not in given}


class CompileCaches:
    """The folders of one supervisor, which nobody tidies away while it lives."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._locks: list[int] = []

    def open(self, sms: Iterable[str]) -> None:
        """Make the folders for these kinds of devices and hold them; raise OSError where that cannot be."""
        for key in sorted({key_of(sm) for sm in sms if sm or _version("torch")}):
            folder = self.root / key
            for part in ("inductor", "triton", "cuda"):
                (folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
            self.root.chmod(0o700)
            folder.chmod(0o700)
            self._locks.append(_held(folder / _LOCK))
            os.utime(folder)

    def close(self) -> None:
        """Let go of the folders."""
        while self._locks:
            os.close(self._locks.pop())


def _held(lock: Path) -> int:
    """Return a descriptor that keeps a folder from being removed; made anew where that has just happened."""
    while True:
        lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        os.close(descriptor)


def compiled(root: Path) -> list[Compiled]:
    """Return what lies in the folders, the longest unused first."""
    try:
        folders = [each for each in root.iterdir() if each.is_dir()]
    except OSError:
        return []
    found = []
    for each in folders:
        with suppress(FileNotFoundError):  # another supervisor has just tidied it away
            found.append(Compiled(each.name, _bytes(each), each.stat().st_mtime, _in_use(each)))
    return sorted(found, key=lambda each: each.last_used)


def surplus(found: Iterable[Compiled], most_bytes: int, now: float) -> list[str]:
    """Return the keys of what should go: what was not used for a month, and the longest unused over a limit."""
    there = [each for each in found if not each.in_use]
    going = [each for each in there if now - each.last_used > UNUSED_S]
    left = sum(each.bytes for each in found) - sum(each.bytes for each in going)
    for each in sorted(set(there) - set(going), key=lambda each: each.last_used):
        if left <= most_bytes:
            break
        going.append(each)
        left -= each.bytes
    return [each.key for each in going]


def remove(root: Path, keys: Iterable[str]) -> list[str]:
    """Remove folders that nobody uses, and return the keys of those that are gone."""
    gone = []
    for key in keys:
        folder = root / key
        lock = _lock_alone(folder)
        if lock is None:
            continue
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
        gone += [] if folder.exists() else [key]
    return gone


def tidy(root: Path, most_bytes: int) -> list[str]:
    """Remove what was not used for a month, and the longest unused over a limit; return the keys of what went."""
    return remove(root, surplus(compiled(root), most_bytes, time.time()))


def _lock_alone(folder: Path) -> int | None:
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _in_use(folder: Path) -> bool:
    descriptor = _lock_alone(folder)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def _bytes(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # compilers of others rename and remove files meanwhile
                total += os.lstat(os.path.join(place, name)).st_size
    return total
