"""What supervisors left that were killed, and which are alive."""

import os
from pathlib import Path

from gen_worker.doctor.finding import Finding, ok, problem, skipped, warning
from gen_worker.rundir import live_supervisors

_BOOT_ID_CHARS = 32


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
    """Which folders in the run directory are of supervisors that are gone."""
    if not _may_look(run_dir):
        return skipped("leftovers", f"`{run_dir}` is not for this user to look into")
    if not os.path.isdir(run_dir):
        return ok("leftovers", "none")
    alive = {Path(each.control).parent for each in live_supervisors(run_dir)}
    dead = [each.name for each in sorted(run_dir.iterdir()) if _is_folder_of_one(each) and each not in alive]
    if not dead:
        return ok("leftovers", "none")
    if len(dead) == 1:
        return warning("leftovers", "a folder of a supervisor that is gone", f"`rm -r {run_dir / dead[0]}`")
    told = f"{len(dead)} folders of supervisors that are gone"
    return warning("leftovers", told, f"`rm -r {run_dir}/{{{','.join(dead)}}}`")


def _may_look(folder: Path) -> bool:
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return os.access(folder, os.R_OK | os.X_OK)


def _is_folder_of_one(path: Path) -> bool:
    """Whether a folder is named as supervisors name theirs: by a pid, with a boot id after it or without."""
    pid, _, boot = path.name.partition("-")
    return path.is_dir() and pid.isdigit() and (not boot or len(boot) == _BOOT_ID_CHARS)
