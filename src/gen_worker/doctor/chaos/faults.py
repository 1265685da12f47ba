"""What is done to a supervisor and its children, and what must come of each: one function for one fault.

Each breaks something, measures, and returns what it measured with everything that was not as it must be.
"""

import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from gen_worker.client import Job, JobError
from gen_worker.doctor.chaos.observed import alive, resident, state, until
from gen_worker.doctor.chaos.scratch import Scratch
from gen_worker.doctor.memory import free_bytes
from gen_worker.rundir import connect

_PATIENCE_S = 30.0
_MIB = 1 << 20
_SERVING = ("idle", "busy", "loading")


class Measured(NamedTuple):
    """What a fault came to: a figure, what it may be at most if it may be anything, what was not as promised."""

    figure: str
    limit: str
    wrong: list[str]


class NotHereError(Exception):
    """A fault cannot be tried on this host; the text says why."""


class Fault(NamedTuple):
    """One fault. `stops` where it ends the supervisor, `apart` where it needs one of its own."""

    name: str
    promise: str
    inject: Callable[[Scratch], Measured]
    stops: bool = False
    apart: bool = False


# --- faults of one child ----------------------------------------------------------------------------------------------


def kill(scratch: Scratch) -> Measured:
    """Kill a child from outside while jobs run and wait."""
    limit_s = 2.0
    jobs = [scratch.client.submit("work", {"seconds": 0.3, "text": str(number)}) for number in range(6)]
    home = _home(scratch, jobs[0])
    pid = scratch.children()[home]
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)

    def is_ready() -> bool:
        device = scratch.devices()[home]
        return device.pid not in (None, pid) and device.state in _SERVING

    wrong = [] if until(is_ready, _PATIENCE_S) else ["there is no new child"]
    took = time.monotonic() - began
    lost = [error for job in jobs if (error := _error(job)) is not None]
    wrong += [f"a job was lost: {error}" for error in lost]
    return Measured(f"a new child after {took:.2f} s", f"{limit_s:g} s", wrong + _late(took, limit_s))


def crash(scratch: Scratch) -> Measured:
    """Have a job crash its child, and send the same job again."""
    text = uuid.uuid4().hex
    before = _births(scratch)
    error = _error(scratch.client.submit("crash", {"text": text}))
    cost = _births(scratch) - before
    wrong = _unlike(error, "child_died")
    if error is not None and (error.detail is None or error.detail.signal != "SIGSEGV"):
        wrong.append(f"its error does not name the signal: {error.detail}")
    again = _error(scratch.client.submit("crash", {"text": text}))
    wrong += _unlike(again, "quarantined")
    if _births(scratch) - before > cost:
        wrong.append("a further child was at risk for the same job")
    return Measured(
        f"{cost} children, then refused", "2 children", wrong + ([] if cost <= 2 else ["too many children"])
    )


def hold_gil(scratch: Scratch) -> Measured:
    """Kill a job that holds the interpreter's lock, as `gen-worker kill --now` does."""
    return _killed_now(scratch, "hold-gil", lambda _pid: True, stack="hold_gil")


def stop(scratch: Scratch) -> Measured:
    """Kill a job whose process the kernel has stopped."""
    return _killed_now(scratch, "stop", lambda pid: state(pid) == "T")


def _killed_now(scratch: Scratch, function: str, has_begun: Callable[[int], bool], stack: str = "") -> Measured:
    limit_s = 3.0
    job = scratch.client.submit(function)
    pid = scratch.children()[_home(scratch, job)]
    until(lambda: has_begun(pid), _PATIENCE_S)
    began = time.monotonic()
    killed = scratch.client.kill(job.request_id, now=True, timeout_s=_PATIENCE_S)
    took = time.monotonic() - began
    wrong = [] if killed.outcome == "killed" else [f"killing it says `{killed.outcome}`"]
    wrong += _unlike(_error(job), "killed")
    if stack and not any(stack in line for line in killed.stack):
        wrong.append(f"the stack does not show `{stack}`: {killed.stack}")
    return Measured(f"ended after {took:.2f} s by rung {killed.rung}", f"{limit_s:g} s", wrong + _late(took, limit_s))


def sleep_in_c(scratch: Scratch) -> Measured:
    """Let a deadline pass while a job waits where nothing of Python's reaches it."""
    deadline_s, limit_s = 1.0, 8.0
    began = time.monotonic()
    error = _error(scratch.client.submit("sleep-in-c", timeout_s=deadline_s))
    took = time.monotonic() - began - deadline_s
    wrong = _unlike(error, "deadline")
    stack = (error.detail.stack if error is not None and error.detail is not None else None) or []
    if not any("sleep_in_c" in line for line in stack):
        wrong.append(f"the stack does not show `sleep_in_c`: {stack}")
    return Measured(f"{took:.1f} s past its deadline", f"{limit_s:g} s", wrong + _late(took, limit_s))


def close_descriptors(scratch: Scratch) -> Measured:
    """Have a job close all that its child has open."""
    return _breaks_off(scratch, "close-descriptors")


def send_garbage(scratch: Scratch) -> Measured:
    """Have a job write what is no message to its child's sockets."""
    return _breaks_off(scratch, "send-garbage")


def _breaks_off(scratch: Scratch, function: str) -> Measured:
    """Have a job spoil its child's connection: the child is ended, the job is answered."""
    limit_s = 10.0
    before = _births(scratch)
    began = time.monotonic()
    error = _error(scratch.client.submit(function, {"text": uuid.uuid4().hex}))
    took, cost = time.monotonic() - began, _births(scratch) - before
    wrong = _unlike(error, "child_died", "retryable")
    if error is not None and not (error.detail is not None and error.detail.cause):
        wrong.append("its error names no cause")
    if cost > 2:
        wrong.append(f"it took {cost} children")
    return Measured(
        f"answered after {took:.2f} s, {cost} children", f"{limit_s:g} s, 2 children", wrong + _late(took, limit_s)
    )


def shrink_memory(scratch: Scratch) -> Measured:
    """Have a job cut off the memory that it shares, its payload and its answer with it."""
    text = "x" * _MIB
    before, wrong, whole = _births(scratch), [], 0
    for _ in range(8):
        if scratch.client.call("shrink-memory", {"text": text}, timeout_s=_PATIENCE_S)["text"] == text:
            whole += 1
    if whole < 8:
        wrong.append("an answer is not what it was")
    if cost := _births(scratch) - before:
        wrong.append(f"it took {cost} children")
    return Measured(f"{whole} of 8 answers whole", "", wrong)


def flood(scratch: Scratch) -> Measured:
    """Have a job print 100 MB a second, and ask the supervisor for its status meanwhile."""
    limit_s, growth_bytes = 1.0, 64 * _MIB
    before = resident(scratch.pid)
    job = scratch.client.submit("flood", {"seconds": 2.0})
    took: list[float] = []
    ends = time.monotonic() + 2.0
    while time.monotonic() < ends:
        began = time.monotonic()
        scratch.status()
        took.append(time.monotonic() - began)
        time.sleep(0.02)
    error = _error(job)
    grown = resident(scratch.pid) - before
    wrong = [f"its job failed: {error}"] if error is not None else []
    if grown > growth_bytes:
        wrong.append(f"the supervisor grew by {grown // _MIB} MiB")
    slowest = max(took)
    figure = f"`ps` answers in {slowest * 1000:.0f} ms, memory +{max(0, grown) // _MIB} MiB"
    return Measured(figure, f"{limit_s:g} s, {growth_bytes // _MIB} MiB", wrong + _late(slowest, limit_s))


def leak(_: Scratch) -> Measured:
    """Have a job take memory until too little is free, in a supervisor whose reserve begins a little below that."""
    spare, most = 300 * _MIB, 900 * _MIB
    free = free_bytes()
    if free is None or free < 2 * most:
        raise NotHereError(f"{(free or 0) // _MIB} MiB of memory are free, {2 * most // _MIB} are needed")
    with Scratch(1, {"GEN_WORKER_MEMORY_RESERVE": str(free - spare)}) as scratch:
        began = time.monotonic()
        error = _error(scratch.client.submit("leak", {"mib": most // _MIB, "seconds": 3.0}))
        took = time.monotonic() - began
        if error is None and (free_bytes() or 0) > free - spare:
            raise NotHereError("others gave memory back meanwhile")
        wrong = ["nobody ended it"] if error is None else []
        if error is not None and (error.detail is None or error.detail.cause != "host_oom"):
            wrong.append(f"its error does not name the cause: {error}")
        if not scratch.runs:
            wrong.append("the supervisor has ended")
        elif scratch.client.call("echo", {"text": "on"}, timeout_s=_PATIENCE_S)["text"] != "on":
            wrong.append("the next job is not answered")
    return Measured(f"ended after {took:.1f} s, as `host_oom`", "", wrong)


# --- faults of the supervisor, and of its clients ---------------------------------------------------------------------


def garbage(scratch: Scratch) -> Measured:
    """Send what is no request to every socket of the supervisor."""
    sent, wrong = 0, []
    before = resident(scratch.pid)
    for path, kind in ((scratch.listens_at, socket.SOCK_STREAM), (scratch.control, socket.SOCK_SEQPACKET)):
        for data in _nonsense():
            with connect(path, kind, 5.0) as sock:
                sock.settimeout(5.0)
                with suppress(BrokenPipeError, ConnectionResetError):
                    sock.sendall(data)
                    if kind == socket.SOCK_STREAM:
                        sock.shutdown(socket.SHUT_WR)
                try:
                    while sock.recv(1 << 16):  # an error, then the end; or the end alone
                        if kind == socket.SOCK_SEQPACKET:
                            break
                except ConnectionResetError:
                    pass
                except TimeoutError:
                    wrong.append(f"no answer to {data[:20]!r} at `{path.name}`")
            sent += 1
    grown = resident(scratch.pid) - before
    figure = f"{sent - len(wrong)} of {sent} refused"
    if grown > 32 * _MIB:
        wrong.append(f"the supervisor grew by {grown // _MIB} MiB")
    return Measured(figure, "", wrong)


def _nonsense() -> Iterator[bytes]:
    yield from (b"\0", b"\xff" * 100, b"{}\n", b"[" * 60_000 + b"\n", b'{"function": 3}\n', b"\n" * 10, b"null\n")
    yield from (
        b"\xdf\xff\xff\xff\xff",
        b"\x93\xa4open\xc1",
        b"\x91" * 60_000,
        b'{"function":"echo"',
        b"GET / HTTP/1.1\r\n\r\n",
    )
    for number in range(40):
        yield os.urandom(1 + 97 * number) + b"\n"


def daemon(scratch: Scratch) -> Measured:
    """Have a job leave a process in a session of its own, and end the supervisor in order."""
    limit_s = 2.0
    pid = int(scratch.client.call("leave-daemon", timeout_s=_PATIENCE_S)["text"])
    wrong = [] if alive(pid) else ["the process did not run"]
    code = scratch.end()
    began = time.monotonic()
    if code != 0:
        wrong.append(f"the supervisor ended with {code}")
    gone = until(lambda: not alive(pid), _PATIENCE_S)
    took = time.monotonic() - began
    return Measured(
        f"gone {took:.2f} s after its supervisor", f"{limit_s:g} s", wrong + _late(took if gone else 99, limit_s)
    )


def supervisor(scratch: Scratch) -> Measured:
    """Kill the supervisor while jobs run, and start another one in its place."""
    limit_s = 0.2
    jobs = [scratch.client.submit("work", {"seconds": 10.0}) for _ in range(2)]
    for job in jobs:
        _home(scratch, job)
    os.kill(scratch.pid, signal.SIGKILL)
    began = time.monotonic()
    left = scratch.processes()
    until(lambda: not any(alive(pid) for pid in left), _PATIENCE_S)
    took = time.monotonic() - began
    wrong = [f"processes go on: {scratch.processes()}"] if scratch.processes() else []
    scratch.start()
    if scratch.client.call("echo", {"text": "again"}, timeout_s=_PATIENCE_S)["text"] != "again":
        wrong.append("the next supervisor does not answer")
    return Measured(f"every process gone after {took:.2f} s", f"{limit_s:g} s", wrong + _late(took, limit_s))


FAULTS = (
    Fault("kill", "a child killed under load: every job is answered, and the next child is ready", kill),
    Fault("crash", "a job that crashes costs two children at most, names the signal, and is then refused", crash),
    Fault("hold-gil", "`kill --now` ends a job that holds the interpreter's lock, and shows its stack", hold_gil),
    Fault("stop", "`kill --now` ends a job that the kernel has stopped", stop),
    Fault("sleep-in-c", "a deadline ends a job that waits in C, and shows its stack", sleep_in_c),
    Fault("close-descriptors", "a child that closes its descriptors is ended, its job answered", close_descriptors),
    Fault("send-garbage", "a child that breaks the protocol is ended, its job answered", send_garbage),
    Fault("shrink-memory", "a job cannot cut off the memory that it shares with its supervisor", shrink_memory),
    Fault("flood", "a job that floods its output holds nobody up", flood),
    Fault("garbage", "garbage on a socket is refused, and costs nothing", garbage),
    Fault("leak", "a job that takes the memory is ended before the kernel acts, with its cause", leak, apart=True),
    Fault("daemon", "what a job leaves behind ends with the supervisor", daemon, stops=True),
    Fault(
        "supervisor", "a killed supervisor leaves no process, and the next one takes its place", supervisor, stops=True
    ),
)


# --- what they have in common -----------------------------------------------------------------------------------------


def _home(scratch: Scratch, job: Job) -> str:
    """Return the device on which a job runs; raise `TimeoutError` when it does not begin."""
    home = scratch.home(job.request_id)
    if home is None:
        raise TimeoutError(f"`{job.request_id}` did not begin to run")
    return home


def _error(job: Job) -> JobError | None:
    """Wait for a job, and return what it ended with; None for a good end."""
    try:
        job.result(_PATIENCE_S)
    except JobError as error:
        return error
    return None


def _unlike(error: JobError | None, *kinds: str) -> list[str]:
    if error is None:
        return ["its job ended well"]
    return [] if error.kind in kinds else [f"its job ended as `{error.kind}`: {error}"]


def _births(scratch: Scratch) -> int:
    """Return how many children were made in the place of others."""
    return sum(device.restarts for device in scratch.devices().values())


def _late(took_s: float, limit_s: float) -> list[str]:
    return [f"{took_s:.2f} s, the limit is {limit_s:g} s"] if took_s > limit_s else []
