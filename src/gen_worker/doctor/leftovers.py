"""What supervisors left that were killed, and which are alive."""

import os
from pathlib import Path

from gen_worker.doctor.finding import Finding, ok, problem, skipped, warning
from gen_worker.rundir import live_supervisors


def supervisors(run_dir: Path) -> Finding:
    """Which supervisors answer."""
    if not _may_look(run_dir):
        return skipped("supervisors", f"`{run_dir}` is not for this user to look into")
    alive = live_supervisors(run_dir)
    stopped = [str(each.pid) for each in alive if is_stopped(each.pid)]
    if stopped:
        pids = " ".join(stopped)
        return problem(
            "supervisors", f"stopped by a signal or a debugger: {pids}", f"`kill -CONT {pids}` lets it go on"
        )
    listed = ", ".join(f"{each.pid} at `{each.serve or each.control}`" for each in alive)
    return ok("supervisors", listed or "none is alive")


def is_stopped(pid: int) -> bool:
    """Whether a process is there and does not run, by a SIGSTOP or a debugger."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False


def leftovers(run_dir: Path) -> Finding:
    """Which folders in the run directory are of supervisors of this host that were killed."""
    from gen_worker_supervisor.processes.predecessors import surely_gone

    if not _may_look(run_dir):
        return skipped("leftovers", f"`{run_dir}` is not for this user to look into")
    dead = sorted(each.name for each in surely_gone(run_dir))
    if not dead:
        return ok("leftovers", "none")
    next_start = "the next server with this run directory ends what is left of it; else"
    if len(dead) == 1:
        told = "a folder of a supervisor that was killed"
        return warning("leftovers", told, f"{next_start} `rm -r {run_dir / dead[0]}`")
    told = f"{len(dead)} folders of supervisors that were killed"
    return warning("leftovers", told, f"{next_start} `rm -r {run_dir}/{{{','.join(dead)}}}`")


def _may_look(folder: Path) -> bool:
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return os.access(folder, os.R_OK | os.X_OK)
