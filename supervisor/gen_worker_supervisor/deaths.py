"""Say how a child died: its status in words, and the stack that its fault handler or our dump left."""

import os
import re
import signal

from gen_worker_supervisor.state import Death

STACK_LINES = 20
_READ_BYTES = 256 * 1024
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<name>.*)$')
_OURS = ("/gen_worker_child/", "/gen_worker/", "/gen_worker_supervisor/")


def death(status: os.waitid_result, dump: str, job_thread: int, printed: tuple[tuple[int, str], ...]) -> Death:
    """Return what is known of a death: `status` by `waitid`, `dump` of the crash file, the last lines it printed."""
    stack = tuple(stack_of(dump, job_thread))
    if status.si_code == os.CLD_EXITED:
        return Death(f"exit code {status.si_status}", exit_code=status.si_status, stack=stack, printed=printed)
    name = signal.Signals(status.si_status).name
    return Death(name, signal=name, stack=stack, printed=printed)


def read_dump(fd: int) -> str:
    """Return what was written to a crash file."""
    return os.pread(fd, _READ_BYTES, 0).decode("utf-8", "replace")


def stack_of(dump: str, job_thread: int) -> list[str]:
    """Return the stack worth showing of a fault handler's dump: the job thread's, else the one it calls current.

    The innermost frame comes first, as the fault handler prints it; frames of the runtime itself are left out.
    """
    heading = next((line for line in dump.splitlines() if line.startswith("Fatal Python error")), None)
    blocks = _blocks(dump)
    chosen = blocks.get(job_thread) or blocks.get(0) or []
    frames = [line.strip() for line in chosen if (found := _FRAME.match(line)) and not _is_ours(found["file"])]
    return ([heading] if heading else []) + frames[:STACK_LINES]


def _is_ours(file: str) -> bool:
    return any(part in file for part in _OURS) or file.endswith(("/threading.py", "/concurrent/futures/thread.py"))


def _blocks(dump: str) -> dict[int, list[str]]:
    """Return the frames by thread; the current thread's stand under 0 too. A later dump replaces an earlier one."""
    blocks: dict[int, list[str]] = {}
    into: list[str] = []
    for line in dump.splitlines():
        if line.startswith(("Thread 0x", "Current thread 0x")):
            into = blocks[int(line.partition("0x")[2].split()[0], 16)] = []
            if line.startswith("Current"):
                blocks[0] = into
        elif line.startswith("  File"):
            into.append(line)
    return blocks
