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

NOTICE_S = 10.0  # what imports torch from a cold disk may take as long


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


def entries_of(module: str, paths: Sequence[str]) -> dict[str, Any]:
    """Return the manifest of modules, functions of the earlier API as that writes them; raise DiscoveryError.

    As `manifest_of` otherwise.
    """
    from gen_worker.discovery.walk import made_in_memory

    loaded = sys.modules.get(module)
    if loaded is not None and made_in_memory(loaded):
        from gen_worker.discovery.both_apis import document_of

        return document_of([module], paths)
    document: dict[str, Any] = msgspec.json.decode(ask(module, paths, "--entries"))
    return document


def survey_of_module(module: str, paths: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Survey:
    """Return what dispatch must know of a module; raise DiscoveryError when it has faults."""
    return msgspec.json.decode(ask(module, paths, environment=environment), type=Survey)


def ask(
    module: str,
    paths: Sequence[str],
    *options: str,
    environment: Mapping[str, str] | None = None,
    notice_s: float = NOTICE_S,
) -> bytes:
    """Return the JSON document that a probe prints about a module; raise DiscoveryError when it finds faults.

    The module sees what the author's code may see of the environment, which is this process's own unless one is given.
    One that takes longer than `notice_s` is told of on stderr, once; there is no limit.
    """
    command = [sys.executable, "-P", "-m", "gen_worker.discovery.probe", "--parent", str(os.getpid())]
    command += ["--module", module, *options]
    for path in paths:
        command += ["--path", path]
    with suppress(AttributeError):  # a process without stderr has None
        sys.stderr.flush()
    seen = author_environment(os.environ if environment is None else environment)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=seen,
        start_new_session=True,  # a Ctrl-C on the terminal is for this process, which ends it
    ) as probe:
        try:
            told = _told(probe, module, notice_s)
        except BaseException:
            probe.kill()
            raise
    if probe.returncode == 0 and told:
        return told
    try:
        problem = msgspec.json.decode(told, type=_Problem)
    except msgspec.DecodeError:
        raise DiscoveryError(f"importing `{module}` ended the process: {_fate(probe.returncode)}") from None
    raise problem.raised()


def _told(probe: "subprocess.Popen[bytes]", module: str, notice_s: float) -> bytes:
    try:
        return probe.communicate(timeout=notice_s)[0]
    except subprocess.TimeoutExpired:
        with suppress(AttributeError):
            sys.stderr.write(f"still importing `{module}`\nhint: `kill -USR1 {probe.pid}` shows where it is\n")
            sys.stderr.flush()
        return probe.communicate()[0]


def _fate(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
