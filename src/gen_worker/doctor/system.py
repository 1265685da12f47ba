"""The system, the interpreter and this installation."""

import importlib.util
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gen_worker.doctor.finding import Finding, ok, problem, reason, skipped, warning
from gen_worker.extras import installed_by

LEAST_KERNEL = (5, 4)  # waitid(2) takes descriptors of processes
_DAY_S = 86400.0
_PACKAGES = ("gen_worker", "gen_worker_supervisor", "gen_worker_child")


class Platform(NamedTuple):
    """What `os.uname` and the interpreter say."""

    system: str
    release: str
    machine: str
    python: str
    processors: int


def this_platform() -> Platform:
    """Return what this process runs on."""
    name = os.uname()
    python = f"{sys.implementation.name} {'.'.join(map(str, sys.version_info[:3]))}"
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return Platform(name.sysname, name.release, name.machine, python, len(own))


def platform(seen: Platform) -> Finding:
    """Whether supervisors run here at all."""
    processors = "1 processor" if seen.processors == 1 else f"{seen.processors} processors"
    told = f"{seen.system} {seen.release} on {seen.machine}, {processors}, {seen.python}"
    if seen.system != "Linux":
        return problem("platform", told, "supervisors need Linux; `gen-worker run` works here")
    found = re.match(r"(\d+)\.(\d+)", seen.release)
    if found and (int(found[1]), int(found[2])) < LEAST_KERNEL:
        return problem("platform", told, f"a kernel of version {'.'.join(map(str, LEAST_KERNEL))} or later is needed")
    return ok("platform", told)


def encoding(filesystem: str, stdout: str, locale: str) -> Finding:
    """Whether text and file names are UTF-8; `locale` is what the environment says."""
    told = f"file names {filesystem}, output {stdout or 'unknown'}, locale `{locale or 'unset'}`"
    if {each.lower().replace("-", "") for each in (filesystem, stdout or "utf-8")} == {"utf8"}:
        return ok("encoding", told)
    return warning("encoding", told, "set `LANG=C.UTF-8`, or `PYTHONUTF8=1`: names and output may not be plain ASCII")


def locale_of(env: Mapping[str, str]) -> str:
    """Return the locale that counts for text."""
    return next((env[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if env.get(name)), "")


def clock(now: float, witnesses: Iterable[float]) -> Finding:
    """Whether the wall clock may be right: it is past the times of files that were written before. Pure."""
    import datetime

    told = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    behind_s = max(witnesses, default=0.0) - now
    if behind_s > _DAY_S:
        late = f"{told}, which is {behind_s / _DAY_S:.0f} days before files of this installation were written"
        return problem("clock", late, "set it, as with `chronyc makestep`: certificates and tokens depend on it")
    return ok("clock", told)


def written_at(*paths: Path) -> list[float]:
    """Return when files were written, those that there are."""
    return [path.stat().st_mtime for path in paths if path.exists()]


# --- this installation ------------------------------------------------------------------------------------------------


class Command(NamedTuple):
    """A `gen-worker` on `PATH`, and the interpreter that its first line names, where it names one."""

    path: str
    interpreter: str


def command_on(path: str | None) -> Command | None:
    """Return the first `gen-worker` of a search path; None where there is none."""
    import shutil

    found = shutil.which("gen-worker", path=path)
    if found is None:
        return None
    try:
        with open(found, "rb") as file:
            first = file.readline(4096).decode(errors="replace").strip()
    except OSError as error:
        first = reason(error)
    return Command(found, first.removeprefix("#!") if first.startswith("#!") else "")


def installation(version: str, packaged: str | None, command: Command | None, executable: str) -> Finding:
    """Whether the command, the package and the interpreter belong together. Pure.

    `version` is what the code says of itself, `packaged` what the installed package says.
    """
    if packaged is None:
        told = f"gen-worker {version}, which is not installed as a package"
        return problem("installation", told, installed_by())
    if packaged != version:
        told = f"the code says {version}, the installed package {packaged}"
        return problem("installation", told, f"install it again: {installed_by()}")
    told = f"gen-worker {version} of `{executable}`"
    if command is None:
        place = Path(executable).parent
        return warning("installation", f"{told}, not on `PATH`", f'`export PATH="{place}:$PATH"`')
    if command.interpreter and not _same(command.interpreter, executable):
        return warning(
            "installation",
            f"{told}; `{command.path}` is another one's, of `{command.interpreter}`",
            f"use `{Path(executable).with_name('gen-worker')}`, or remove the other one",
        )
    return ok("installation", f"{told}, on `PATH`")


def _same(one: str, other: str) -> bool:
    """Whether two interpreters are of the same environment, whatever name each has in it."""
    return os.path.realpath(Path(one).parent) == os.path.realpath(Path(other).parent)


def packaged_version(name: str = "gen-worker") -> str | None:
    """Return the version of an installed package, None where there is none."""
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def bytecode(sources: Sequence[Path], places: Collection[str]) -> Finding:
    """Whether the code is compiled: else every start compiles it again. `places` are the packages' folders."""
    if not sources:
        return skipped("bytecode", "the code lies in no files")
    compiled = sum(Path(importlib.util.cache_from_source(str(source))).exists() for source in sources)
    told = f"{compiled} of {len(sources)} modules are compiled"
    if compiled * 10 >= len(sources) * 9:
        return ok("bytecode", told)
    return warning("bytecode", told, f"starts are sooner after `python -m compileall -q {' '.join(sorted(places))}`")


def own_sources() -> tuple[list[Path], list[str]]:
    """Return the files of this installation's code, and the folders of its packages; imports none of them."""
    places = []
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        places += list(spec.submodule_search_locations or ()) if spec is not None else []
    return [source for place in places for source in Path(place).rglob("*.py")], places
