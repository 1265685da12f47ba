"""Keeps what is known of each child's death in a file, and looks at what the children say of themselves until then.

The loop only takes notes; a thread hides what is secret, writes, and removes what is too old.
"""

import asyncio
import os
import platform
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from gen_worker.postmortem import Memory, Model, Moment, PostMortem, folder_in, keep_within, write
from gen_worker.rundir import make_private
from gen_worker.wire.page import Reading
from gen_worker_supervisor.core.actions import Bury
from gen_worker_supervisor.core.state import Child, Fleet
from gen_worker_supervisor.logs.log import Log
from gen_worker_supervisor.logs.redaction import redacted
from gen_worker_supervisor.loop.rounds import Rounds
from gen_worker_supervisor.memory.usage import tightest

LOOK_S = 1.0
MOMENTS = 64
WAITING = 64  # post-mortems that are not written yet; what comes beyond them is dropped and counted
SLACK = 16  # this share of the limit stays free after a removal, so that not every death has the folder read
DRIVER = Path("/proc/driver/nvidia/version")
TOLD_OF = ("torch", "diffusers", "transformers")

Told = TypeVar("Told")
Look = Callable[[], Iterable[tuple[Child, Reading | None]]]


class Curve:
    """What was seen of one child: its last half minute closely, what was before ever more coarsely."""

    def __init__(self) -> None:
        self.moments: list[tuple[float, Moment, int | None]] = []

    def add(self, at: float, moment: Moment, own: int | None = None) -> None:
        """Remember one look, with the child's own memory where that was weighed from outside.

        Of the older half every second one goes when there are too many.
        """
        self.moments.append((at, moment, own))
        if len(self.moments) > MOMENTS:
            half = MOMENTS // 2
            self.moments[:half] = self.moments[:half:2]

    def until(self, death: float) -> list[Moment]:
        """Return what was seen, each moment by how long before the death it was.

        All memory is weighed one way: from outside, or, where that was done less often, by the child itself.
        """
        by_itself = sum(moment.rss is not None for _, moment, _ in self.moments)
        weighed = sum(own is not None for _, _, own in self.moments) >= max(1, by_itself)
        return [
            msgspec.structs.replace(
                moment, before_s=round(max(0.0, death - at), 2), rss=(own if weighed else moment.rss) or None
            )
            for at, moment, own in self.moments
        ]


def moment_of(child: Child, reading: Reading | None, now: float) -> Moment:
    """Return what is seen of a child now."""
    moment = Moment(0.0, child.phase.value)
    if reading is not None:
        named = child.leased.get(reading.progress_job) or child.leased.get(reading.job)
        if named is not None:
            moment.job, moment.progress, moment.stage = named.request_id, named.progress, named.stage
        if named is not None and reading.progress_job == named.number:
            moment.progress, moment.stage = round(reading.fraction, 3), reading.stage
        moment.rss, moment.vram = reading.rss or None, reading.vram_held or None
        moment.beat_age_s = round(max(0.0, now - reading.beat_at), 2) if reading.beats else None
    if child.looks and child.looks[-1].measured:
        look = child.looks[-1]
        moment.cpu_s, moment.state, moment.wchan = round(look.cpu_s, 2), look.state or None, look.wchan or None
    return moment


class Graveyard:
    """Keeps post-mortems in a run directory, within a limit of bytes that all its supervisors share."""

    def __init__(
        self, fleet: Fleet, loop: asyncio.AbstractEventLoop, log: Log, run_dir: Path, limit_bytes: int, version: str
    ) -> None:
        self.written = 0
        self.dropped = 0
        self._fleet = fleet
        self._loop = loop
        self._log = log
        self._rounds = Rounds("supervisor", "a post-mortem", loop, log)
        self._folder = folder_in(run_dir)
        self._limit = limit_bytes
        self._version = version
        self._host = socket.gethostname()
        self._curves: dict[int, Curve] = {}
        self._look: Look = tuple
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[PostMortem] = deque()
        self._change = threading.Condition()
        self._open = True
        self._thread: threading.Thread | None = None
        self._unseen = 0  # bytes that were written since the folder was last looked at
        self._broken = False  # the last one could not be written
        self._environment: dict[str, str] = {}
        self._set_clock()

    # --- while they live ---

    def watch(self, look: Look) -> None:
        """Look at the children once a second from now on."""
        self._look = look
        self._on_timer()

    def _on_timer(self) -> None:
        now = time.monotonic()
        self._set_clock()
        before, self._curves = self._curves, {}
        for child, reading in self._look():
            self._curves[child.generation] = before.get(child.generation, Curve())
            self.look(child, reading, now)
        self._timer = self._loop.call_later(LOOK_S, self._on_timer)

    def _set_clock(self) -> None:
        self._fleet.epoch = time.time() - time.monotonic()

    def look(self, child: Child, reading: Reading | None, now: float) -> None:
        """Remember what a child says of itself now."""
        memory = self._fleet.memory
        own = None if memory is None else memory.children.get(child.generation)
        self._curves.setdefault(child.generation, Curve()).add(now, moment_of(child, reading, now), own)

    # --- when they die ---

    def bury(self, burial: Bury, now: float) -> None:
        """Have what is known of a death written; never waits for a disk."""
        if not self._open:
            return
        with self._change:
            if len(self._waiting) >= WAITING:
                self._drop()
                return
            self._waiting.append(self._told(burial, now))
            self._change.notify()
        if self._thread is None:
            self._begin()

    def _begin(self) -> None:
        """Start the thread that writes; where none can be had, the next death tries again."""
        thread = threading.Thread(target=self._write_all, name="gen-worker-postmortems", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._log.event("warning", "supervisor", f"the post-mortem is not written yet: {error}")
        else:
            self._thread = thread

    def _drop(self) -> None:
        if not self.dropped:
            text = f"{WAITING} post-mortems are not written yet: those of other deaths are left out, now and later"
            self._log.event("warning", "supervisor", text)
        self.dropped += 1

    def _told(self, burial: Bury, now: float) -> PostMortem:
        child, death = burial.child, burial.death
        device, memory = child.device, self._fleet.memory
        curve = self._curves.get(child.generation)
        return PostMortem(
            id=child.postmortem,
            when=time.time(),
            host=self._host,
            supervisor=os.getpid(),
            version=self._version,
            device=device.name,
            generation=child.generation,
            pid=child.pid,
            phase=burial.phase,
            lived_s=round(now - child.born, 3),
            ready=child.ready,
            cause=child.doom or death.cause,
            signal=death.signal,
            exit_code=death.exit_code,
            hang=None if child.hang is None else child.hang.value,
            stack=list(death.stack),
            printed=burial.printed,
            jobs=burial.jobs,
            jobs_left_out=burial.left_out,
            jobs_done=child.done,
            loading=child.loading,
            models=[
                Model(each.ref, instance, each.tier, each.bytes)
                for instance, models in child.models.items()
                for each in models
            ],
            timeline=[] if curve is None else curve.until(now),
            memory=None if memory is None else Memory(memory.used, memory.limit, memory.source),
            oom_kills=death.oom_kills,
            device_health=device.health.value,
            device_reason=device.reason or None,
            vram_used=device.vram_used,
            vram_total=device.vram_total,
        )

    # --- in the thread ---

    def _write_all(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or not self._open)
                if not self._waiting:
                    return
                told = self._waiting.popleft()
            with self._rounds.one():
                try:
                    self._write(told)
                except OSError as error:
                    self._complain(told, error)
                else:
                    self._broken = False
                    self.written += 1

    def _write(self, told: PostMortem) -> None:
        make_private(self._folder)
        told.environment = self._environment = self._environment or environment()
        room = tightest()
        if told.memory is not None and room is not None and room.source == told.memory.source:
            told.memory.after = room.used
        self._unseen += write(self._folder, hidden(told, self._hide))
        if not self.written or self._unseen > self._limit // SLACK:
            self._unseen = 0
            keep_within(self._folder, self._limit - self._limit // SLACK, time.time())

    def _hide(self, text: str) -> str:
        return redacted(self._log.hide_cut(text)).encode("utf-8", "backslashreplace").decode()

    def _complain(self, told: PostMortem, error: OSError) -> None:
        if not self._broken:
            reason = (error.strerror or str(error)).lower()
            text = f"post-mortem {told.id} cannot be written to `{self._folder}`: {reason}"
            self._loop.call_soon_threadsafe(self._log.event, "warning", "supervisor", text)
        self._broken = True

    # --- its own end ---

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what is left, for as long as that may take, and keep nothing of the deaths to come."""
        self._fleet.epoch = None
        if self._timer is not None:
            self._timer.cancel()
        with self._change:
            self._open = False
            self._change.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)


def hidden(told: PostMortem, hide: Callable[[str], str]) -> PostMortem:
    """Return a post-mortem with everything hidden that must not be seen; its own name stays."""
    found = msgspec.convert(_walked(msgspec.to_builtins(told), hide), PostMortem)
    found.id = told.id
    return found


def _walked(value: object, hide: Callable[[str], str]) -> object:
    match value:
        case str():
            return hide(value)
        case dict():
            return {key: _walked(each, hide) for key, each in value.items()}
        case list() | tuple():
            return [_walked(each, hide) for each in value]
        case _:
            return value


def environment() -> dict[str, str]:
    """Return what of this host may have to do with a death."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"kernel": platform.release(), "python": platform.python_version()}
    for name in TOLD_OF:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    try:
        found["driver"] = DRIVER.read_text().splitlines()[0].strip()
    except (OSError, IndexError):
        return found  # no driver of NVIDIA's here
    return found
