"""Try faults one after the other in a scratch supervisor: what each must come to, and what must hold always."""

import os
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Literal

import msgspec

from gen_worker.client import JobError, SupervisorUnreachable
from gen_worker.doctor.chaos.faults import Fault, Measured, NotHereError
from gen_worker.doctor.chaos.observed import descriptors, until
from gen_worker.doctor.chaos.scratch import Scratch, ScratchError
from gen_worker.doctor.chaos.witness import Account, Witness

SLOW_WITNESS_S = 2.0
_SLOTS = 3  # a fault takes two children at most, so that others always have one
_LIMIT_S = 60.0  # for one fault; then its supervisor is killed
_SETTLE_S = 10.0
_MORE_DESCRIPTORS = 4  # connections that are being closed


class Result(msgspec.Struct, frozen=True):
    """How one fault was borne. `others_s` is the longest that a job of somebody else took meanwhile."""

    name: str
    promise: str
    verdict: Literal["holds", "fails", "skipped"]
    measured: str
    limit: str
    others_s: float | None
    wrong: list[str]
    took_s: float


def run(faults: Sequence[Fault], slots: int = _SLOTS) -> Generator[Result, None, None]:
    """Try these faults; return how each was borne, as soon as it is known. At the end nothing is left of it all.

    Raises `ScratchError` where there is no supervisor to try them in.
    """
    with Scratch(slots) as scratch:
        for fault in faults:
            began = time.monotonic()
            try:
                if not scratch.runs:
                    scratch.start()
                with _impatient(scratch):
                    measured, others = _tried(fault, scratch)
            except NotHereError as reason:
                yield Result(fault.name, fault.promise, "skipped", str(reason), "", None, [], time.monotonic() - began)
                continue
            except (JobError, SupervisorUnreachable, ScratchError, OSError) as error:
                measured, others = Measured("nothing", "", [str(error)]), None
                scratch.kill()
            yield Result(
                fault.name,
                fault.promise,
                "fails" if measured.wrong else "holds",
                measured.figure,
                measured.limit,
                others.slowest_s if others is not None and others.took else None,
                measured.wrong,
                time.monotonic() - began,
            )


@contextmanager
def _impatient(scratch: Scratch) -> Iterator[None]:
    """Kill the supervisor when the body takes too long: whoever waits for it then learns that it is gone."""

    def give_up() -> None:
        with suppress(ProcessLookupError):
            os.kill(scratch.pid, signal.SIGKILL)

    timer = threading.Timer(_LIMIT_S, give_up)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _tried(fault: Fault, scratch: Scratch) -> tuple[Measured, Account | None]:
    if fault.apart or fault.stops:
        return fault.inject(scratch), None
    pid = scratch.pid
    with ExitStack() as ends:
        witness = Witness(scratch.control)
        ends.callback(witness.close)
        processes, opened = len(scratch.processes()), descriptors(pid)
        measured = fault.inject(scratch)
        wrong = [*measured.wrong, *_left_over(scratch, processes, opened)]
        others = witness.account()
    wrong += [f"a job of somebody else failed: {failure}" for failure in others.failures]
    if others.slowest_s > SLOW_WITNESS_S:
        wrong.append(f"a job of somebody else took {others.slowest_s:.2f} s")
    return measured._replace(wrong=wrong), others


def _left_over(scratch: Scratch, processes: int, opened: int) -> Iterator[str]:
    """Say what is not as it was before the fault, once everything had its time to settle."""
    if not scratch.runs:
        yield f"the supervisor has ended:\n{scratch.log()}"
        return
    if not until(lambda: all(each.state in ("idle", "busy") for each in scratch.devices().values()), _SETTLE_S):
        yield f"not every device has a child again: {[each.state for each in scratch.devices().values()]}"
    if not until(lambda: len(scratch.processes()) <= processes, _SETTLE_S):
        yield f"there are {len(scratch.processes())} processes, there were {processes}"
    if not until(lambda: descriptors(scratch.pid) <= opened + _MORE_DESCRIPTORS, _SETTLE_S):
        yield f"the supervisor has {descriptors(scratch.pid)} descriptors open, it had {opened}"
