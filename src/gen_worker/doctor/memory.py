"""How much memory there is, and what happens when it is used up. Reads what supervisors read."""

from pathlib import Path

from gen_worker.doctor.finding import Finding, ok, size, skipped, warning

ROOT = Path("/")
LITTLE_BYTES = 2 << 30


def memory(root: Path = ROOT) -> Finding:
    """How much is free under the limit that counts."""
    from gen_worker_supervisor.memory.usage import tightest

    room = tightest(root)
    if room is None:
        return skipped("memory", "the kernel does not say how much there is")
    told = f"{size(room.free)} free of {size(room.limit)} ({room.source})"
    if room.free < LITTLE_BYTES:
        remedy = "give the container more memory, or have fewer children: `--devices`"
        return warning("memory", told, remedy)
    return ok("memory", told)


def free_bytes(root: Path = ROOT) -> int | None:
    """Return what is free under the limit that counts; None where the kernel does not say."""
    from gen_worker_supervisor.memory.usage import tightest

    room = tightest(root)
    return None if room is None else room.free


def killing(root: Path, reserve: int | None) -> Finding:
    """What the kernel ends for lack of memory; `reserve` is the setting of what stays free of it."""
    from gen_worker_supervisor.memory.usage import ended_together, oom_kills

    kills = oom_kills(root) or 0
    counted = f"; it has ended {kills} processes so far" if kills else ""
    if ended_together(root):
        told = f"`memory.oom.group` is set: the kernel ends everything in the container at once{counted}"
        remedy = "supervisors end one child before that; Kubernetes' `singleProcessOOMKill: true` ends one process only"
        if reserve == 0:
            remedy = "unset `GEN_WORKER_MEMORY_RESERVE`: with 0 nothing is ended before the kernel ends all"
        return warning("memory-kills", told, remedy)
    if reserve == 0:
        told = f"`GEN_WORKER_MEMORY_RESERVE` is 0: the kernel chooses whom it ends{counted}"
        return warning("memory-kills", told, "unset it, and a child is ended in time, with a reason")
    if kills:
        told = f"the kernel has ended {kills} {'process' if kills == 1 else 'processes'} for lack of memory"
        return warning("memory-kills", told, "give more memory, or raise `GEN_WORKER_MEMORY_RESERVE`")
    return ok("memory-kills", "the kernel has ended no process for lack of memory")


def swap(root: Path = ROOT) -> Finding:
    """Whether memory is on disk already."""
    numbers = _meminfo(root)
    total = numbers.get("SwapTotal", 0)
    used = total - numbers.get("SwapFree", 0)
    if not total:
        return ok("swap", "none")
    told = f"{size(used)} of {size(total)} used"
    if used * 2 > total:
        return warning("swap", told, "free memory: what is swapped out slows every job, and beats come late")
    return ok("swap", told)


def overcommit(root: Path = ROOT) -> Finding:
    """Whether address space can be reserved that is not used, as CUDA does with more than there is memory."""
    path = root / "proc/sys/vm/overcommit_memory"
    mode = path.read_text().strip() if path.exists() else ""
    if mode == "2":
        told = "`vm.overcommit_memory` is 2: reserved address space counts as memory"
        return warning("overcommit", told, "`sysctl vm.overcommit_memory=0`: CUDA reserves far more than it uses")
    return ok("overcommit", f"`vm.overcommit_memory` is {mode}" if mode else "the kernel does not say")


def shared_memory(total: int | None) -> Finding:
    """How large `/dev/shm` is, None where there is none: nothing of gen-worker lies there."""
    if total is None:
        return ok("dev-shm", "none; nothing of gen-worker needs it")
    return ok("dev-shm", f"{size(total)}; nothing of gen-worker lies there, whatever its size")


def _meminfo(root: Path) -> dict[str, int]:
    path = root / "proc/meminfo"
    lines = path.read_text().splitlines() if path.exists() else []
    words = [line.replace(":", " ").split() for line in lines]
    return {each[0]: int(each[1]) * 1024 for each in words if len(each) > 1 and each[1].isdigit()}
