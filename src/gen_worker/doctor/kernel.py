"""Whether the kernel does what supervisors ask of it: judged from what a process of its own tried."""

import signal
from collections.abc import Iterator
from pathlib import Path

from gen_worker.doctor import program
from gen_worker.doctor.finding import Finding, ok, problem

PROBE = Path(__file__).with_name("kernel_probe.py")
LIMIT_S = 10.0

NEEDED_FOR = {
    "sealed-memory": "bodies travel in memory that nobody can shrink",
    "passed-descriptors": "children are handed memory and files",
    "process-descriptors": "a child is signalled and reaped without mistaking it for another",
    "death-signal": "children end with their supervisor",
    "subreaper": "what a job leaves behind is found and ended",
    "listed-children": "what a job leaves behind is found and ended",
    "locked-files": "two processes do not take the same folder",
}
_REMEDY = "run it on Linux 5.4 or later; in a container, under the engine's own seccomp profile, in no emulated kernel"


def kernel(limit_s: float = LIMIT_S) -> list[Finding]:
    """Try it, in a process of its own."""
    told = program.script(PROBE, limit_s=limit_s)
    return list(judged(told))


def judged(told: program.Told) -> Iterator[Finding]:
    """Return what a probe's lines mean; what it did not come to was cut off by what it last named. Pure."""
    tries = dict(line.split("\t", 1) for line in told.out.split("\n") if "\t" in line)
    finished = told.out.count("\n")
    good = [name for name, error in list(tries.items())[:finished] if not error]
    if len(good) == len(NEEDED_FOR):
        yield ok("system-calls", f"{', '.join(good)}: all of {len(good)} work")
        return
    for number, (name, use) in enumerate(NEEDED_FOR.items()):
        error = tries[name] if number < finished and name in tries else _end(told)
        if error:
            yield problem(name, f"{error}; it is needed so that {use}", _REMEDY)
        if number >= finished:
            return


def _end(told: program.Told) -> str:
    if told.code is None:
        return "trying it did not end in time"
    if told.code < 0:
        return f"trying it ended the process with {_signal(-told.code)}"
    last = told.err.strip().splitlines()[-1:] or [f"exit code {told.code}"]
    return f"it cannot be tried: {last[0]}"


def _signal(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
