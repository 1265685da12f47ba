"""What is said of a death: from a real fault handler's dumps, and from whatever else may lie in a crash file."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker_supervisor.core.deaths import LINE_CHARS, STACK_LINES, death, read_dump, stack_of
from gen_worker_supervisor.core.state import Death

PROGRAM = """
import ctypes, faulthandler, os, signal, sys, threading

crash, how = os.open(sys.argv[1], os.O_WRONLY), sys.argv[2]
faulthandler.enable(file=crash)
faulthandler.register(signal.SIGUSR2, file=crash, all_threads=True)

def innermost():
    if how.startswith("segv"):
        ctypes.string_at(0)
    here.set()
    threading.Event().wait()

def author():
    innermost()

def idle():
    here.set()
    threading.Event().wait()

here = threading.Event()
if how == "segv_main":
    author()
in_thread = threading.Thread(target=idle if how == "segv_loop" else author, daemon=True)
in_thread.start()
here.wait()
print(in_thread.ident, flush=True)
if how == "segv_loop":
    other = threading.Thread(target=author)
    other.start()
    other.join()
os.kill(os.getpid(), signal.SIGUSR2)
"""


def dump(tmp_path: Path, how: str) -> tuple[str, int, int]:
    """Return what a program that crashes, or is asked for its stacks, leaves; its job thread; its exit status."""
    crash = tmp_path / "crash"
    crash.touch()
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ended = subprocess.run([sys.executable, program, crash, how], stdout=subprocess.PIPE, check=False, timeout=30)
    with crash.open("rb") as file:
        return read_dump(file.fileno()), int(ended.stdout or b"0"), ended.returncode


@pytest.mark.parametrize("how", ["segv_main", "segv_thread", "segv_loop"])
def test_a_crash_shows_the_stack_of_the_thread_that_crashed(tmp_path: Path, how: str) -> None:
    text, job_thread, status = dump(tmp_path, how)
    assert status == -signal.SIGSEGV
    stack = stack_of(text, job_thread)
    assert stack[0] == "Fatal Python error: Segmentation fault"
    names = [line.rpartition(" in ")[2] for line in stack]
    assert names.index("innermost") < names.index("author")
    assert "idle" not in names


def test_a_dump_on_request_shows_where_the_job_is(tmp_path: Path) -> None:
    text, job_thread, status = dump(tmp_path, "hang")
    assert status == 0
    stack = stack_of(text, job_thread)
    file = f'File "{tmp_path}/program.py"'
    assert stack == [f"{file}, line 12 in innermost", f"{file}, line 15 in author"]


def test_a_dump_of_a_child_whose_job_is_on_its_loop_shows_that(tmp_path: Path) -> None:
    text, _, _ = dump(tmp_path, "hang")
    assert any("innermost" in line for line in stack_of(text.replace("Current thread", "Thread"), 12345))


def test_a_later_dump_replaces_an_earlier_one() -> None:
    first = 'Thread 0x0000000000000007 (most recent call first):\n  File "a.py", line 1 in old\n'
    later = 'Current thread 0x0000000000000007 (most recent call first):\n  File "a.py", line 2 in new\n'
    assert stack_of(first + later, 7) == ['File "a.py", line 2 in new']


def test_frames_of_the_runtime_are_left_out() -> None:
    text = (
        "Thread 0x07 (most recent call first):\n"
        '  File "/lib/python3.11/threading.py", line 3 in wait\n'
        '  File "/home/a/main.py", line 8 in generate\n'
        '  File "/x/gen_worker_child/jobs.py", line 9 in run\n'
    )
    assert stack_of(text, 7) == ['File "/home/a/main.py", line 8 in generate']


def test_no_dump_is_no_stack() -> None:
    assert stack_of("", 7) == []


LINES = st.sampled_from(
    [
        "Fatal Python error: Segmentation fault",
        "Thread 0x",
        "Thread 0xzz (most",
        "Thread 0x7f00",
        "Current thread 0x07 (most recent call first):",
        '  File "a.py", line 1 in f',
        '  File "' + "a" * 5000 + '", line ??? in f',
        "  <no Python frame>",
        "Current thread 0x" + "f" * 90,
    ]
)


@given(st.lists(LINES | st.text(max_size=30), max_size=60), st.integers(0, 2**64))
def test_whatever_a_child_wrote_to_its_crash_file_the_stack_is_short_lines(lines: list[str], job_thread: int) -> None:
    stack = stack_of("\n".join(lines), job_thread)
    assert len(stack) <= STACK_LINES + 1
    assert all(len(line) <= LINE_CHARS for line in stack)


def ended(code: str) -> Death:
    """Return what is said of a process that ran this code."""
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
    status = os.waitid(os.P_PID, pid, os.WEXITED)
    assert status is not None
    return death(status, "", 0, ((3, "last words"),))


def test_an_exit_is_named_by_its_code() -> None:
    assert ended("import os; os._exit(7)") == Death("exit code 7", exit_code=7, printed=((3, "last words"),))


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGKILL, "SIGKILL"), (signal.SIGRTMIN, "SIGRTMIN"), (signal.SIGRTMIN + 6, "SIGRTMIN+6")],
)
def test_a_death_by_signal_is_named_by_it(number: int, name: str) -> None:
    found = ended(f"import os; os.kill(os.getpid(), {number})")
    assert (found.cause, found.signal, found.exit_code) == (name, name, None)
