"""Learn where a child's threads are, whatever it does, and cost it nothing.

A child whose interpreter is free answers by itself, with names. Where none of its threads gets a turn its fault handler
is asked, by a signal, which needs no turn; but not where its frames may move, which the handler may not survive. One
that is stopped, or that the kernel holds, can answer neither: of that `/proc` tells. Whoever asks while somebody else
does gets the same answer.
"""

import asyncio
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gen_worker.wire.messages import Stack, Stacked
from gen_worker.wire.page import Reading
from gen_worker_supervisor.core.deaths import read_dump
from gen_worker_supervisor.core.phases import Phase
from gen_worker_supervisor.core.state import Child, Device
from gen_worker_supervisor.processes.proc import Threads, threads_of, waits_of
from gen_worker_supervisor.processes.process import ChildProcess
from gen_worker_supervisor.supervisor import Supervisor

ANSWER_S = 0.3  # what a child has to answer by itself; measured: 1 to 10 ms
AGAIN_S = 0.15  # until it is looked at once more, where it may be slow only
LOOKS = 3
TURNS = 5  # a thread that waits for the interpreter's lock looks for it every 5 ms
DUMP_S = 0.35  # what its fault handler has
LOOK_S = 0.02
STILL = 3  # looks at a dump that does not grow any more: it is whole
SHOWN_BYTES = 48 * 1024  # which fit into a frame
LINE_CHARS = 400

_AT_ITS_END = (Phase.SUSPECT, Phase.DYING)  # what is written to its crash file then is for the record of its death
_HEADING = re.compile(r"^(?:Current t|T)hread (0x[0-9a-f]+) \(most recent call first\):$")
_HOLDS = {
    "T": "it is stopped, by a SIGSTOP or a debugger, and can show nothing until it goes on",
    "D": "the kernel holds it, in a call that no signal ends, and it can show nothing until that returns",
    "Z": "it has just ended",
}


_BUSY = "it is at work, and too slow to answer: ask again"


class Seen(NamedTuple):
    """What is seen of a child from outside that changes when its Python threads get turns."""

    done: int
    reading: Reading | None
    reader: int  # the thread that reads what it is asked
    waits: int | None  # how often that has gone to sleep


class Shown(NamedTuple):
    """Where the threads of a child are, or why nobody knows."""

    outcome: Literal["shown", "failed", "no_child"]
    pid: int | None = None
    lines: tuple[str, ...] = ()
    message: str = ""


@dataclass(slots=True, eq=False)
class _Look:
    """One child that was asked, and who waits for its answer."""

    process: ChildProcess
    then: list[Callable[[Shown], None]]
    how: str  # it was asked, where it does not answer by itself
    seen: Seen
    looks: int = 0
    began: int = -1  # how long its crash file was before the signal; -1: none was sent
    length: int = 0
    still: int = 0
    ends: float = 0.0
    said: list[str] = field(default_factory=list)
    timer: asyncio.Handle | None = None


class Stacks:
    """Asks children, one question to each at a time."""

    def __init__(self, supervisor: Supervisor, loop: asyncio.AbstractEventLoop) -> None:
        self._supervisor = supervisor
        self._loop = loop
        self._looks: dict[int, _Look] = {}  # by generation
        self._silent: set[int] = set()  # children that were asked and have not answered: they are not asked again
        supervisor.on_stacked = self._stacked

    def ask(self, device: Device, then: Callable[[Shown], None]) -> None:
        """Call back with where the threads of a device's child are, within a second; never by this call."""
        child = device.child
        process = None if child is None else self._supervisor.process_of(child)
        if child is None or process is None or not process.pid or child.phase is Phase.FORKING:
            told = "its child is about to come" if not device.lost else device.loss
            self._loop.call_soon(then, Shown("no_child", message=told))
            return
        look = self._looks.get(child.generation)
        if look is not None:
            look.then.append(then)
            return
        self._silent &= {each.generation for each in self._supervisor.fleet.children()}
        look = self._looks[child.generation] = _Look(process, [then], _how(child), _seen(process))
        if not child.ready:
            look.timer = self._loop.call_soon(self._signal, look)
        elif child.generation in self._silent:
            look.timer = self._loop.call_later(AGAIN_S, self._judge, look)
        else:
            self._silent.add(child.generation)
            process.send(Stack())
            look.timer = self._loop.call_later(ANSWER_S, self._judge, look)

    def _stacked(self, process: ChildProcess, message: Stacked) -> None:
        """A child has answered, maybe later than anybody waited for."""
        self._silent.discard(process.child.generation)
        look = self._looks.get(process.child.generation)
        if look is None:
            return
        look.said = message.lines
        if look.began < 0:
            self._end(look, Shown("shown", process.pid, self._fitting(message.lines)))

    def _is_there(self, look: _Look) -> bool:
        """Whether the child's descriptors are still open."""
        if self._supervisor.process_of(look.process.child) is look.process:
            return True
        self._silent.discard(look.process.child.generation)
        self._end(look, Shown("no_child", look.process.pid, message="it has ended meanwhile"))
        return False

    def _judge(self, look: _Look) -> None:
        """It has not answered yet: ask its fault handler if it stands still."""
        if not self._is_there(look):
            return
        before, look.seen = look.seen, _seen(look.process)
        threads = threads_of(look.process.pid)
        look.looks += 1
        if stands_still(before, look.seen) or threads.state in _HOLDS:
            self._signal(look)
        elif look.looks < LOOKS:
            look.timer = self._loop.call_later(AGAIN_S, self._judge, look)
        else:
            self._fail(look, threads, _BUSY)

    def _signal(self, look: _Look) -> None:
        if not self._is_there(look):
            return
        threads = threads_of(look.process.pid)
        problem = _HOLDS.get(threads.state) or (
            "" if threads.heeds(signal.SIGUSR2) else "its fault handler is not there"
        )
        if problem:
            self._fail(look, threads, problem)
            return
        look.began = look.length = os.fstat(look.process.crash_fd).st_size
        look.ends = self._loop.time() + DUMP_S
        look.process.signal(signal.SIGUSR2)
        look.timer = self._loop.call_later(LOOK_S, self._look_again, look)

    def _look_again(self, look: _Look) -> None:
        if not self._is_there(look):
            return
        length = os.fstat(look.process.crash_fd).st_size
        look.still = look.still + 1 if length == look.length and length > look.began else 0
        look.length = length
        if look.still >= STILL:
            self._read(look)
        elif self._loop.time() < look.ends:
            look.timer = self._loop.call_later(LOOK_S, self._look_again, look)
        else:
            self._fail(look, threads_of(look.process.pid), "its fault handler has written nothing")

    def _read(self, look: _Look) -> None:
        process = look.process
        dump = read_dump(process.crash_fd, look.began)
        if process.child.ending is None and process.child.phase not in _AT_ITS_END:
            _forget(process.crash_fd, look)
        lines = look.said or _named(dump.splitlines(), process.child)
        self._end(look, Shown("shown", process.pid, self._fitting(lines), "" if look.said else look.how))

    def _fail(self, look: _Look, threads: Threads, problem: str) -> None:
        if look.said:
            self._end(look, Shown("shown", look.process.pid, self._fitting(look.said)))
        else:
            self._end(look, Shown("failed", look.process.pid, self._fitting(threads.lines), problem))

    def _end(self, look: _Look, shown: Shown) -> None:
        if look.timer is not None:
            look.timer.cancel()
        self._looks.pop(look.process.child.generation, None)
        for then in look.then:
            self._loop.call_soon(then, shown)

    def _fitting(self, lines: list[str]) -> tuple[str, ...]:
        shown: list[str] = []
        left = SHOWN_BYTES
        for line in lines:
            told = self._supervisor.log.hide(line)[:LINE_CHARS]
            left -= len(told.encode()) + 8
            if left < 0:
                return (*shown, f"and {len(lines) - len(shown)} more lines")
            shown.append(told)
        return tuple(shown)


def stands_still(before: Seen, now: Seen) -> bool:
    """Whether no Python thread of a child got a turn, although the one that was to answer has looked for one."""
    if (before.done, before.reading, before.reader) != (now.done, now.reading, now.reader):
        return False
    return before.waits is None or now.waits is None or now.waits - before.waits >= TURNS


def _seen(process: ChildProcess) -> Seen:
    child = process.child
    is_busy = child.used["device"] > 0 or child.loading is not None
    reader = process.pid if is_busy or not child.job_tid else child.job_tid
    return Seen(child.done, process.reading(), reader, waits_of(process.pid, reader))


def _forget(crash_fd: int, look: _Look) -> None:
    """Take what was shown out of a crash file, where the next dump is that of a death."""
    if os.fstat(crash_fd).st_size == look.length:
        os.ftruncate(crash_fd, look.began)
        os.lseek(crash_fd, look.began, os.SEEK_SET)  # the child writes where this stands


def _named(lines: list[str], child: Child) -> list[str]:
    """Name the job thread in a dump, which a fault handler knows by its number only."""
    return [
        f"Thread {found[1]} [gen-worker-job] (most recent call first):"
        if (found := _HEADING.match(line)) and int(found[1], 16) == child.job_thread
        else line
        for line in lines
    ]


def _how(child: Child) -> str:
    return f"it {'does not answer' if child.ready else 'boots'}: taken by a signal"
