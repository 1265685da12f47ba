"""Look by a process of one's own: what hangs or crashes there costs the doctor its limit and nothing else."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_KILLED_S = 2.0


class Told(NamedTuple):
    """What a process said, and how it ended: its exit code, below zero a signal, None for one that did not in time."""

    out: str
    err: str
    code: int | None


def module(name: str, *, limit_s: float, env: Mapping[str, str] | None = None) -> Told:
    """Run a module as a program, with all that is installed, and nothing of the current folder: it may be anybody's."""
    return _run([sys.executable, "-P", "-m", name], limit_s, env)


def script(path: Path, *, limit_s: float) -> Told:
    """Run a file that needs the standard library alone."""
    return _run([sys.executable, "-I", "-S", str(path)], limit_s, None)


def _run(command: Sequence[str], limit_s: float, env: Mapping[str, str] | None) -> Told:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=None if env is None else dict(env),
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        try:
            out, err = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # the driver does not let go of it
                process.wait(_KILLED_S)
            return Told("", "", None)
    return Told(out, err, process.returncode)
