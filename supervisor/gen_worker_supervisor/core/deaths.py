"""Say how a child died: its status in words, and the stack that its fault handler or our dump left."""

import os
import re
import signal

from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.state import Child, Death

STACK_LINES = 20
LINE_CHARS = 400
_READ_BYTES = 256 * 1024
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<name>.*)$')
_THREAD = re.compile(r"^(?:(?P<current>Current t)|T)hread 0x(?P<thread>[0-9a-f]{1,16})\b")
_CURRENT = 0
_PLUMBING = ("/threading.py", "/concurrent/futures/thread.py", "/concurrent/futures/_base.py", "/selectors.py")
_OURS = ("<frozen ", "/asyncio/", "/gen_worker_child/", "/gen_worker/", "/gen_worker_supervisor/")


def death(status: os.waitid_result, dump: str, job_thread: int, printed: tuple[tuple[int, str], ...]) -> Death:
    """Return what is known of a death: `status` by `waitid`, `dump` of the crash file, the last lines it printed."""
    stack = tuple(stack_of(dump, job_thread))
    if status.si_code == os.CLD_EXITED:
        return Death(f"exit code {status.si_status}", exit_code=status.si_status, stack=stack, printed=printed)
    name = _signal_name(status.si_status)
    return Death(name, signal=name, stack=stack, printed=printed)


def counted_as(child: Child, death: Death) -> str | None:
    """Return the word under which a death is counted, of which there are few; None where it was no fault.

    It is why we ended the child, else the signal it died of, or `exit`.
    """
    if child.doom:
        return child.doom
    if child.ending is not None:
        return None if child.ending.reason in (Reason.DRAIN, Reason.RESTART) else str(child.ending.reason)
    if death.unborn:
        return "unborn"
    return "exit" if death.exit_code is not None else death.cause


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal between the first and the last
        return f"SIGRTMIN+{number - signal.SIGRTMIN}" if number > signal.SIGRTMIN else f"signal {number}"


def read_dump(fd: int, start: int = 0) -> str:
    """Return what was written to a crash file, from so many bytes on."""
    return os.pread(fd, _READ_BYTES, start).decode("utf-8", "replace")


def stack_of(dump: str, job_thread: int) -> list[str]:
    """Return the stack worth showing of a fault handler's dump, whatever the child made of it.

    After a crash the crashed thread's, else the job thread's, else any that is in the author's code. The innermost
    frame comes first, as the fault handler prints it; frames of the runtime itself are left out.
    """
    heading = next((line[:LINE_CHARS] for line in dump.splitlines() if line.startswith("Fatal Python error")), None)
    blocks = _blocks(dump)
    order = [_CURRENT, job_thread] if heading else [job_thread, _CURRENT]
    stacks = (_frames(blocks.get(thread, [])) for thread in [*order, *blocks])
    frames = next((stack for stack in stacks if stack), [])
    return ([heading] if heading else []) + frames[:STACK_LINES]


def _frames(lines: list[str]) -> list[str]:
    return [
        line.strip()[:LINE_CHARS] for line in lines if (found := _FRAME.match(line)) and not _is_ours(found["file"])
    ]


def _is_ours(file: str) -> bool:
    return any(part in file for part in _OURS) or file.endswith(_PLUMBING)


def _blocks(dump: str) -> dict[int, list[str]]:
    """Return the frames by thread; the current thread's stand under `_CURRENT` too. A later dump counts."""
    blocks: dict[int, list[str]] = {}
    into: list[str] = []
    for line in dump.splitlines():
        if heading := _THREAD.match(line):
            into = blocks[int(heading["thread"], 16)] = []
            if heading["current"]:
                blocks[_CURRENT] = into
        elif line.startswith("  File"):
            into.append(line)
    return blocks
