"""Look at an author's module from outside: a short-lived process imports it, whatever that does to the process."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from gen_worker.discovery.errors import DiscoveryError
from gen_worker.environment import author_environment
from gen_worker.wire.survey import Survey


class _Problem(msgspec.Struct):
    error: str
    hint: str = ""
    stack: list[str] = []
    problems: list["_Problem"] = []

    def raised(self) -> DiscoveryError:
        return DiscoveryError(self.error, self.hint, self.stack, [each.raised() for each in self.problems])


def manifest_of(module: str, paths: Sequence[str]) -> dict[str, Any]:
    """Return the manifest of a module; raise DiscoveryError when it has none.

    What importing it prints goes to stderr. A module that a program made in memory is looked at here.
    """
    from gen_worker.discovery.walk import made_in_memory

    loaded = sys.modules.get(module)
    if loaded is not None and made_in_memory(loaded):
        from gen_worker.discovery.documents import manifest
        from gen_worker.discovery.specs import collect

        return manifest(collect(loaded))
    document: dict[str, Any] = msgspec.json.decode(ask(module, paths, "--manifest"))
    return document


def survey_of_module(module: str, paths: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Survey:
    """Return what dispatch must know of a module; raise DiscoveryError when it has faults."""
    return msgspec.json.decode(ask(module, paths, environment=environment), type=Survey)


def ask(module: str, paths: Sequence[str], *options: str, environment: Mapping[str, str] | None = None) -> bytes:
    """Return the JSON document that a probe prints about a module; raise DiscoveryError when it finds faults.

    The module sees what the author's code may see of the environment, which is this process's own unless one is given.
    """
    command = [sys.executable, "-P", "-m", "gen_worker.discovery.probe", "--module", module, *options]
    for path in paths:
        command += ["--path", path]
    with suppress(AttributeError):  # a process without stderr has None
        sys.stderr.flush()
    seen = author_environment(os.environ if environment is None else environment)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=seen, check=False)
    if done.returncode == 0 and done.stdout:
        return done.stdout
    try:
        problem = msgspec.json.decode(done.stdout, type=_Problem)
    except msgspec.DecodeError:
        raise DiscoveryError(f"importing `{module}` ended the process: {_fate(done.returncode)}") from None
    raise problem.raised()


def _fate(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
