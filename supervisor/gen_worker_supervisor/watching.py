"""Look at the children from outside, once a second, from a thread: the loop has the looks, never the waiting for them.

Judges nothing: what was seen goes to the fleet.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import NamedTuple

from gen_worker_supervisor.core.evidence import Evidence
from gen_worker_supervisor.core.happenings import Watched
from gen_worker_supervisor.core.naming import is_hung, loop_is_held, quiet_s, work_of
from gen_worker_supervisor.core.phases import Phase
from gen_worker_supervisor.core.state import Child
from gen_worker_supervisor.loop.rounds import Rounds
from gen_worker_supervisor.processes.proc import Sight, Stat, Subject, processes
from gen_worker_supervisor.processes.process import ChildProcess
from gen_worker_supervisor.supervisor import Supervisor

EVERY_S = 1.0
DOUBTFUL_S = 0.25  # between looks while a beat is late
LATE_BEAT_S = 1.5
QUIET_S = 2.0  # after so long without a movement of its job thread a child is looked at more closely
CLOSE_LIMIT_S = 1.0


class Care(IntEnum):
    """How much of a child is looked at."""

    GLANCE = 0  # it has nothing to do
    LOOK = 1
    CLOSELY = 2  # nothing of it seems to move


class Target(NamedTuple):
    """A child to look at."""

    process: ChildProcess
    subject: Subject
    thread: int  # that is at its work; 0 while it boots
    care: Care


class Watching:
    """Looks at a supervisor's children from `start` to `close`. The thread and the loop take turns."""

    def __init__(self, supervisor: Supervisor, loop: asyncio.AbstractEventLoop) -> None:
        self._supervisor = supervisor
        self._loop = loop
        self._subjects: dict[int, Subject] = {}  # by generation
        self._closely_at = 0.0
        self._rounds = Rounds("supervisor", "a look at the children", loop, supervisor.log)
        self._orders: queue.SimpleQueue[list[Target] | None] = queue.SimpleQueue()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.on_hang: Callable[[], None] = lambda: None  # called when a child has begun to hang
        self._thread = threading.Thread(target=self._look, name="gen-worker-watch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()
        self._look_again_in(EVERY_S)

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._orders.put(None)
        if self._thread.is_alive():
            self._thread.join(CLOSE_LIMIT_S)

    # --- the thread ---

    def _look(self) -> None:
        for targets in iter(self._orders.get, None):
            seen: list[tuple[Target, Sight | None]] = []
            with self._rounds.one():
                seen = _seen_of(targets)
            try:
                self._loop.call_soon_threadsafe(self._seen, seen)
            except RuntimeError:  # the loop has ended
                return

    # --- the loop ---

    def _order(self) -> None:
        """Have the thread look once more."""
        now = time.monotonic()
        close_round = now - self._closely_at >= EVERY_S - DOUBTFUL_S
        targets: list[Target] = []
        for process in self._supervisor.processes():
            child = process.child
            if process.pid:
                subject = self._subjects.setdefault(child.generation, Subject(process.pid))
                targets.append(Target(process, subject, _thread_at_work(process), self._care(child, now, close_round)))
        if any(target.care is Care.CLOSELY for target in targets):
            self._closely_at = now
        if len(self._subjects) > len(targets):
            self._subjects = {target.process.child.generation: target.subject for target in targets}
        self._orders.put(targets)

    def _care(self, child: Child, now: float, close_round: bool) -> Care:
        if work_of(self._supervisor.fleet, child) is None:
            return Care.GLANCE
        return Care.CLOSELY if close_round and quiet_s(child, now) > QUIET_S else Care.LOOK

    def _seen(self, seen: list[tuple[Target, Sight | None]]) -> None:
        if self._closed:
            return
        self._look_again_in(EVERY_S)  # whatever comes of this one
        self._supervisor.look_at_pages()  # children write down there what they begin
        now = time.monotonic()
        looks = [
            (target.process.child, _evidence(target.process, sight, now))
            for target, sight in seen
            if self._supervisor.process_of(target.process.child) is target.process
        ]
        if any(_beats_late(child, look) for child, look in looks):
            self._look_again_in(DOUBTFUL_S)
        hung = {child.generation for child, _ in looks if is_hung(child)}
        self._supervisor.handle(Watched(looks))
        if any(is_hung(child) and child.generation not in hung for child, _ in looks):
            self.on_hang()

    def _look_again_in(self, pause_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(pause_s, self._order)


def _thread_at_work(process: ChildProcess) -> int:
    child = process.child
    if not child.ready:
        return 0
    reading = process.reading() if loop_is_held(child) else None
    return child.job_tid if reading is None else reading.loop_tid


def _seen_of(targets: list[Target]) -> list[tuple[Target, Sight | None]]:
    everybody: dict[int, Stat] | None = None
    if any(target.care is Care.CLOSELY for target in targets):
        with suppress(OSError):  # no descriptor is left: then who is to be looked at closely is not
            everybody = processes()
    return [(target, _sight(target, everybody)) for target in targets]


def _sight(target: Target, everybody: dict[int, Stat] | None) -> Sight | None:
    try:
        match target.care:
            case Care.GLANCE:
                return target.subject.glance()
            case Care.LOOK:
                return target.subject.look(target.thread)
            case Care.CLOSELY:
                return None if everybody is None else target.subject.look(target.thread, everybody)
    except OSError:  # it has ended, or nobody may look at it
        return None


def _beats_late(child: Child, look: Evidence) -> bool:
    return child.ready and child.phase is not Phase.DYING and look.at - look.beat_at > LATE_BEAT_S


def _evidence(process: ChildProcess, sight: Sight | None, now: float) -> Evidence:
    reading = process.reading()
    beat_at, loop_at, mark = 0.0, 0.0, 0
    if reading is not None:
        beat_at, loop_at = reading.beat_at if reading.beats else 0.0, reading.loop_at
        mark = hash((reading.progress_job, reading.fraction, reading.stage))
    if sight is None:
        return Evidence(now, measured=False, beat_at=beat_at, loop_at=loop_at, page_mark=mark)
    return Evidence(
        now,
        state=sight.state,
        wchan=sight.wchan,
        job_cpu_s=sight.job_cpu_s,
        cpu_s=sight.cpu_s,
        io_bytes=sight.io_bytes,
        beat_at=beat_at,
        loop_at=loop_at,
        page_mark=mark,
        gpu_busy=None if process.child.device.busy is None else process.child.device.busy > 0,
    )
