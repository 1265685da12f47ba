"""How much memory there is, how much of it is in use and by whom, as the kernel tells it.

Reads files of `/proc` and `/sys`, in some 50 µs for all of them; decides nothing. `root` is where these two are.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gen_worker_supervisor.core.evidence import Room
from gen_worker_supervisor.processes.proc import ROOT, Stat, processes

_NO_LIMIT = 1 << 60  # cgroups without a limit say a number near 2^63
_READ_BYTES = 1 << 16
_SHARED_WORTH_A_LOOK = 32 << 20
_MODELS = b"/memfd:gen-worker "  # how what the keeper holds begins in `/proc/pid/maps`: a model's ref follows
_REGION = b"/memfd:gen-worker (deleted)"


class _Layout(NamedTuple):
    """How one version of cgroups names its files."""

    source: str
    folder: str
    limit: str
    used: str
    stat_prefix: str
    events: str


_V1 = _Layout(
    "cgroup v1",
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_",
    "memory.oom_control",
)
_V2 = _Layout("cgroup v2", "sys/fs/cgroup", "memory.max", "memory.current", "", "memory.events")


# --- the host and the cgroups -----------------------------------------------------------------------------------------


def rooms(root: Path = ROOT) -> list[Room]:
    """Return every limit that counts for this process: the host's first, then those of its cgroups."""
    host = file_numbers(root / "proc/meminfo")
    found = []
    if "MemTotal" in host and "MemAvailable" in host:
        found.append(Room("host", host["MemTotal"] * 1024, (host["MemTotal"] - host["MemAvailable"]) * 1024))
    for folder, layout in _cgroups(root):
        limit, used = file_number(folder / layout.limit), file_number(folder / layout.used)
        if limit is not None and used is not None and limit < _NO_LIMIT:
            found.append(Room(layout.source, limit, max(0, used - _reclaimable(folder, layout))))
    return found


def tightest(root: Path = ROOT) -> Room | None:
    """Return the limit that leaves least; None where nothing tells."""
    return min(rooms(root), key=lambda room: room.free, default=None)


def oom_kills(root: Path = ROOT) -> int | None:
    """Return how many processes the kernel has ended for lack of memory: in this process's cgroup, else on the host.

    None where it does not count.
    """
    for folder, layout in _cgroups(root):
        counted = file_numbers(folder / layout.events).get("oom_kill")
        if counted is not None:
            return counted
    return file_numbers(root / "proc/vmstat").get("oom_kill")


def ended_together(root: Path = ROOT) -> list[Path]:
    """Return the cgroups above this process of which the kernel ends every process when one runs out of memory."""
    return [folder for folder, _ in _cgroups(root) if file_number(folder / "memory.oom.group") == 1]


def _reclaimable(folder: Path, layout: _Layout) -> int:
    """Return the page cache that the kernel gives back before it ends anybody.

    Of the active part half counts: libraries that are run are in it, which no process does well without.
    """
    stat = file_numbers(folder / "memory.stat")
    return stat.get(f"{layout.stat_prefix}inactive_file", 0) + stat.get(f"{layout.stat_prefix}active_file", 0) // 2


def _cgroups(root: Path) -> list[tuple[Path, _Layout]]:
    """Return the folders of the cgroups above this process, its own first.

    Not all of them need exist: a container may see its own at the top.
    """
    layouts = {1: _V1, 2: _V2}
    return [(root / layouts[version].folder / place, layouts[version]) for version, place in cgroups("memory", root)]


def cgroups(controller: str, root: Path = ROOT) -> Iterator[tuple[int, Path]]:
    """Yield the cgroups above this process where a controller may have limits, its own first.

    Each with the version of its tree, and where in that it is.
    """
    for line in os.fsdecode(_read(root / "proc/self/cgroup")).rstrip("\n").split("\n"):
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        version = 2 if not controllers else 1 if controller in controllers.split(",") else 0
        if version:
            inside = Path(path.strip("/"))
            for place in (inside, *inside.parents):
                yield version, place


# --- processes --------------------------------------------------------------------------------------------------------


def own_bytes(pid: int, root: Path = ROOT) -> int:
    """Return the resident memory that a process has for itself, 0 when it is gone.

    What it shares with others through files counts for nobody, nor do models that the keeper holds: they stay when the
    process ends.
    """
    status = file_numbers(root / f"proc/{pid}/status")
    shared = status.get("RssShmem", 0) * 1024
    if shared > _SHARED_WORTH_A_LOOK:
        shared = max(0, shared - _mapped_models(pid, root))
    return status.get("RssAnon", 0) * 1024 + shared


def _mapped_models(pid: int, root: Path) -> int:
    """Return the bytes of models in host memory that a process has mapped."""
    try:
        lines = (root / f"proc/{pid}/maps").read_bytes().split(b"\n")
    except OSError:  # it is gone
        return 0
    ranges = [line.split(b" ", 1)[0].split(b"-") for line in lines if _MODELS in line and not line.endswith(_REGION)]
    return sum(int(end, 16) - int(begin, 16) for begin, end in ranges)


def families(heads: Collection[int], root: Path = ROOT) -> dict[int, list[int]]:
    """Return for each of these processes all that are its own: its descendants, and whoever is in its session."""
    found: dict[int, list[int]] = {head: [] for head in heads}
    try:
        everybody = processes(root)
    except OSError:  # no descriptor is left
        return found
    for pid in everybody:
        head = next((each for each in _ancestors(pid, everybody) if each in found), everybody[pid].session)
        if head in found and head != pid:
            found[head].append(pid)
    return found


def family_bytes(pid: int, root: Path = ROOT) -> int:
    """Return what a process and its descendants have for themselves; looks at no other process of the host."""
    return sum(own_bytes(each, root) for each in _below(pid, root))


def _below(pid: int, root: Path) -> list[int]:
    """Return a process and its descendants, as the kernel lists them by the thread that started each."""
    if not os.path.exists(root / f"proc/{pid}/task/{pid}/children"):  # a kernel that does not
        return [pid, *families([pid], root)[pid]]
    found = [pid]
    for each in found:
        with suppress(OSError):  # it has ended
            for thread in os.listdir(root / f"proc/{each}/task"):
                begun = map(int, _read(root / f"proc/{each}/task/{thread}/children").split())
                found += [child for child in begun if child not in found]
    return found


def _ancestors(pid: int, everybody: Mapping[int, Stat]) -> Iterator[int]:
    seen: set[int] = set()  # pids are used again while they are read
    while pid in everybody and pid not in seen:
        yield pid
        seen.add(pid)
        pid = everybody[pid].parent


# --- files ------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    """Return what a small file says, nothing where there is none; half of the time that `Path.read_bytes` takes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _READ_BYTES)
    except OSError:  # the process ended between the two
        return b""
    finally:
        os.close(descriptor)


def file_number(path: Path) -> int | None:
    """Return the number that a file says, None where it says none."""
    text = _read(path).strip()
    return int(text) if text.isdigit() else None  # it may say `max`


def file_words(path: Path) -> list[str]:
    """Return the words of a small file, none where there is no file."""
    return os.fsdecode(_read(path)).split()


def file_numbers(path: Path) -> dict[str, int]:
    """Return what a file says in lines of a name and a number; a process may call itself anything but a new line."""
    words = [line.replace(b":", b" ").split() for line in _read(path).split(b"\n")]
    return {each[0].decode("ascii", "replace"): int(each[1]) for each in words if len(each) > 1 and each[1].isdigit()}
