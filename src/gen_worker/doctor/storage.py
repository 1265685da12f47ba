"""The folders: of models, of supervisors' traces, of what is temporary, of what is saved."""

import os
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from gen_worker.doctor.finding import Finding, ok, problem, reason, size, skipped, warning
from gen_worker.preflight import IN_MEMORY, filesystem_of

ROOM_FOR_MODELS = 20 << 30
ROOM_FOR_INPUTS = 1 << 30
_FEW_FILES = 1000
_A_BLOCK = 4096


def cache(root: Path, *, mounts: Path = Path("/proc/self/mountinfo")) -> Finding:
    """Whether models can be kept."""
    return _models("cache", root, "TENSORHUB_CACHE_DIR", mounts)


def hub_cache(hub: Path, root: Path, *, mounts: Path = Path("/proc/self/mountinfo")) -> Finding:
    """Whether models of Hugging Face can be kept, where they lie elsewhere."""
    if hub.is_relative_to(root):
        return skipped("hub-cache", f"in the cache: `{hub}`")
    return _models("hub-cache", hub, "HF_HOME", mounts)


def _models(name: str, folder: Path, variable: str, mounts: Path) -> Finding:
    there = existing(folder)
    elsewhere = f"set `{variable}` to a folder of yours"
    if not there.is_dir():
        return problem(name, f"`{folder}`: `{there}` is no folder", elsewhere)
    free, kind = _free(there), filesystem_of(there.resolve(), _text(mounts))
    told = f"`{folder}`: {size(free)} free" + (f" ({kind})" if kind else "")
    if refused := _refusal(there):
        holds = os.path.isdir(folder / "cas/manifests")
        if holds:
            return warning(name, f"{told}; it can only be read: {refused}", f"for further models {elsewhere}")
        return problem(name, f"{told}; nothing can be written: {refused}", elsewhere)
    if _files_left(there) < _FEW_FILES:
        return problem(name, f"{told}; it can take {_files_left(there)} more files", f"remove files, or {elsewhere}")
    if free < ROOM_FOR_INPUTS:
        return problem(name, told, f"make room, as with `gen-worker cache prune --older-than 7d`, or {elsewhere}")
    if kind in IN_MEMORY:
        return warning(name, f"{told}, which is memory and gone after a restart", f"{elsewhere} on a disk")
    if free < ROOM_FOR_MODELS:
        return warning(name, told, "`gen-worker cache prune --older-than 7d` makes room; a large model has 30 GiB")
    return ok(name, told)


def lower_caches(folders: Sequence[str]) -> Finding:
    """Whether the caches that are only read are there."""
    if not folders:
        return skipped("lower-caches", "none is set")
    gone = [folder for folder in folders if not os.access(folder, os.R_OK | os.X_OK)]
    if gone:
        listed = ", ".join(f"`{folder}`" for folder in gone)
        return warning("lower-caches", f"{listed} cannot be read", "mount it, or unset `GEN_WORKER_LOWER_CACHES`")
    return ok("lower-caches", ", ".join(f"`{folder}`" for folder in folders))


def run_dir(folder: Path, *, user: int | None = None) -> Finding:
    """Whether supervisors can leave their traces there, and nobody else can."""
    user = os.geteuid() if user is None else user
    elsewhere = "set `GEN_WORKER_RUN_DIR` to a folder of yours"
    there = existing(folder)
    if not there.is_dir():
        return problem("run-dir", f"`{folder}`: `{there}` is no folder", elsewhere)
    if os.path.exists(folder):
        found = folder.stat()
        if found.st_uid not in (0, user):
            return problem("run-dir", f"`{folder}` belongs to user {found.st_uid}, not to {user}", elsewhere)
        if found.st_mode & stat.S_IWOTH:
            return problem("run-dir", f"`{folder}`: other users can write to it", f"`chmod 700 {folder}`")
    if refused := _refusal(there):
        return problem("run-dir", f"`{folder}`: nothing can be written: {refused}", elsewhere)
    made = "" if os.path.exists(folder) else ", which is made when it is needed"
    return ok("run-dir", f"`{folder}`{made}")


def temporary(folder: Path) -> Finding:
    """Whether inputs of jobs can be kept while they run."""
    if refused := _refusal(folder):
        told = f"`{folder}`: nothing can be written: {refused}"
        return problem("temporary", told, "set `TMPDIR` to a folder of yours with room in it")
    told = f"`{folder}`: {size(_free(folder))} free"
    if _free(folder) < ROOM_FOR_INPUTS:
        return warning("temporary", told, "make room there, or set `TMPDIR`: inputs of jobs are kept there")
    return ok("temporary", told)


def temporary_in(env: Mapping[str, str]) -> Path:
    """Return the folder that the environment names for what is temporary, whether or not that can be used."""
    named = next(filter(None, (env.get(name) for name in ("TMPDIR", "TEMP", "TMP"))), None)
    return Path(named) if named else Path(tempfile.gettempdir())


def existing(path: Path) -> Path:
    """Return the path, or the nearest above it that exists."""
    return path if os.path.lexists(path) or path == path.parent else existing(path.parent)


def _refusal(folder: Path) -> str:
    """Return why no file can be made in a folder, an empty text where one can; leaves none."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(_A_BLOCK))  # a full disk may still take an empty one
    except OSError as error:
        return reason(error)
    return ""


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _files_left(folder: Path) -> int:
    """Return how many more files a disk takes; some count none and take any number."""
    status = os.statvfs(folder)
    return status.f_favail if status.f_files else _FEW_FILES


def _text(path: Path) -> str:
    return path.read_text(errors="surrogateescape") if path.exists() else ""
