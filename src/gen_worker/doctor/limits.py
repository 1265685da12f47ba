"""What the system allows this user and this container, and who is process 1."""

import resource
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from gen_worker.doctor.finding import Finding, ok, problem, skipped, warning
from gen_worker.environment import SUPERVISOR

ROOT = Path("/")
FEW_FILES = 4096
FEW_PROCESSES = 512  # left; a child that has imported torch has some 50 threads
MANY_ZOMBIES = 20
CHILD_WORSE_BY = 300  # how much sooner than its supervisor the kernel shall end a child
WORST_SCORE = 1000
_UNLIMITED = resource.RLIM_INFINITY


def open_files(soft: int, hard: int) -> Finding:
    """How many descriptors a process may have: a supervisor raises its own limit as far as it may."""
    told = f"{_count(hard)} may be open in a supervisor, {_count(soft)} in other processes"
    if hard != _UNLIMITED and hard < FEW_FILES:
        remedy = f"raise the hard limit to {FEW_FILES}: `ulimit -Hn`, `docker --ulimit nofile`"
        return warning("open-files", told, remedy)
    return ok("open-files", told)


def _count(limit: int) -> str:
    return "any number" if limit == _UNLIMITED else str(limit)


def processes(hard: int, root: Path = ROOT) -> Finding:
    """How many processes and threads are left, for this user and in this container."""
    limits: list[tuple[int, int | None, str]] = [] if hard == _UNLIMITED else [(hard, None, "`ulimit -u`")]
    for folder in _pids_folders(root):
        if (most := _number(folder / "pids.max")) is not None:
            limits.append((most, _number(folder / "pids.current"), "the container's `--pids-limit`"))
    if not limits:
        return ok("processes", "any number of processes and threads")
    most, now, where = min(limits, key=lambda each: each[0] - (each[1] or 0))
    told = f"{most} processes and threads" + ("" if now is None else f", {now} are there")
    if most - (now or 0) < FEW_PROCESSES:
        return warning("processes", told, f"raise {where}: libraries of models start some 50 threads for each child")
    return ok("processes", told)


def _pids_folders(root: Path) -> list[Path]:
    """Return the folders of the cgroups above this process that may count processes."""
    found = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "pids" in controllers.split(","):
            top = root / "sys/fs/cgroup" / ("pids" if controllers else "")
            inside = Path(path.strip("/"))
            found += [top / place for place in (inside, *inside.parents)]
    return found


def core_files(soft: int, pattern: str) -> Finding:
    """Whether a crash writes the memory of its process to disk; `pattern` is `/proc/sys/kernel/core_pattern`."""
    if soft == 0:
        return ok("core-files", "a crash writes none")
    where = f"to `{pattern[1:].split(' ')[0]}`" if pattern.startswith("|") else f"as `{pattern}`"
    return warning(
        "core-files",
        f"a crash writes its process's memory {where}, up to {_count_bytes(soft)}",
        "`ulimit -c 0`, or `docker --ulimit core=0`: a child with a model has many GB",
    )


def _count_bytes(limit: int) -> str:
    return "any size" if limit == _UNLIMITED else f"{limit >> 20} MiB"


def first_process(root: Path = ROOT) -> Finding:
    """Who is process 1, and whether it reaps: what nobody waits for stays a zombie."""
    name = _text(root / "proc/1/comm").strip() or "unknown"
    zombies = [pid for pid, parent, state in _processes(root) if parent == 1 and state == "Z"]
    if len(zombies) >= MANY_ZOMBIES:
        told = f"process 1 is `{name}`, with {len(zombies)} zombies that it does not reap"
        remedy = "start the container with `docker run --init`, or with gen-worker as process 1"
        return warning("first-process", told, remedy)
    return ok("first-process", f"process 1 is `{name}`")


def _processes(root: Path) -> list[tuple[int, int, str]]:
    """Return the pid, the parent and the state of every process that can be seen."""
    found = []
    for folder in (root / "proc").iterdir():
        if folder.name.isdigit() and (fields := _text(folder / "stat").rpartition(")")[2].split()):
            found.append((int(folder.name), int(fields[1]), fields[0]))
    return found


def privileges(root: Path = ROOT) -> Finding:
    """What this user is, and what holds it back; nothing of gen-worker needs a privilege."""
    status = dict(line.split(":\t", 1) for line in _text(root / "proc/self/status").splitlines() if ":\t" in line)
    user = status.get("Uid", "?").split("\t")[0]
    seccomp = {"0": "no seccomp", "1": "seccomp strict", "2": "a seccomp filter"}.get(status.get("Seccomp", ""), "")
    new = "no new privileges" if status.get("NoNewPrivs") == "1" else ""
    capabilities = int(status.get("CapEff", "0"), 16)
    held = f"{capabilities.bit_count()} capabilities" if capabilities else "no capabilities"
    return ok("privileges", ", ".join(filter(None, (f"user {user}", held, seccomp, new))))


def victims(root: Path = ROOT) -> Finding:
    """Whether children can be made to go before their supervisor when the kernel runs out of memory."""
    score = _number(root / "proc/self/oom_score_adj")
    if score is None:
        return skipped("oom-order", "the kernel does not say")
    if score + CHILD_WORSE_BY > WORST_SCORE:
        told = f"`oom_score_adj` is {score}: children cannot be made much likelier victims than their supervisor"
        return warning("oom-order", told, "request memory for the pod, or `docker --oom-score-adj 0`")
    return ok("oom-order", f"`oom_score_adj` is {score}: a child goes before its supervisor")


def orphans(root: Path = ROOT, own: Collection[str] = ("gen_worker_child", "gen_worker_supervisor")) -> Finding:
    """Whether a child lives, or what a job started, whose supervisor does not."""
    left = []
    parents = {pid: parent for pid, parent, state in _processes(root) if state != "Z"}
    for pid, parent in parents.items():
        words = _text(root / f"proc/{pid}/cmdline").split("\0")
        if any(word.startswith(tuple(own)) for word in words[1:4]):
            is_left = parent in (0, 1) and not _is_ours(root, parent)
        else:
            is_left = _is_marked(root, pid) and not any(_is_ours(root, each) for each in _line(pid, parents))
        left += [str(pid)] if is_left else []
    if left:
        listed = " ".join(sorted(left, key=int))
        return problem("orphans", f"processes without their supervisor: {listed}", f"`kill -9 {listed}`")
    return ok("orphans", "no child without its supervisor, and nothing that a job started")


def _is_marked(root: Path, pid: int) -> bool:
    """Whether a job started a process."""
    return any(each.startswith(f"{SUPERVISOR}=") for each in _text(root / f"proc/{pid}/environ").split("\0"))


def _line(pid: int, parents: Mapping[int, int]) -> Iterator[int]:
    """Yield a process, its parent, the parent's parent, and so on."""
    seen: set[int] = set()
    while pid and pid not in seen:
        seen.add(pid)
        yield pid
        pid = parents.get(pid, 0)


def _is_ours(root: Path, pid: int) -> bool:
    """Whether a process, as the first one of a container, is itself a supervisor."""
    return "gen_worker" in (line := _text(root / f"proc/{pid}/cmdline")) or "gen-worker" in line


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # it ended meanwhile, or this kernel has no such file
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None  # it may say `max`
