"""`gen-worker top` on a terminal: a child that hangs is seen, looked into and ended, and the terminal is as before."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

from gen_worker.client import JobError
from tests.served import GEN_WORKER, alive, environment, serving, until
from tests.terminal import terminal
from tests.tmux import Emulator, emulator, needs_tmux

pytestmark = [pytest.mark.process, needs_tmux]
SHOWN_S = 3.0
LOOKED_AT_S = 0.3  # a screen is asked for, and compared
ACT_S = 10.0


def restored(screen: Emulator) -> bool:
    """Whether a terminal is as a shell needs it."""
    wanted = {"alternate_on": "0", "cursor_flag": "1", "mouse_any_flag": "0"}
    return all(screen.says(name) == value for name, value in wanted.items())


@pytest.mark.quiet
@pytest.mark.promise(7)
def test_a_hung_child_is_shown_with_its_class_its_stack_and_ended_by_a_key(tmp_path: Path) -> None:
    with serving(tmp_path, module="hanging", devices="cpu:2") as server:
        top = [*GEN_WORKER, "top", "--socket", str(server.control)]
        elsewhere = {"GEN_WORKER_RUN_DIR": str(tmp_path / "elsewhere")}
        with emulator(tmp_path, *top, env=environment(tmp_path) | elsewhere) as screen:
            screen.until("Devices 2", "idle")
            job = server.client.submit("sleep-with-the-interpreter", request_id="stuck")
            began = time.monotonic()
            screen.until("HUNG", "gil_held", "1 needs attention", within_s=SHOWN_S + LOOKED_AT_S)

            screen.press("s")
            screen.until("Stack of cpu:0", "sleep_with_the_interpreter")
            screen.press("Escape")
            screen.until("Devices 2")

            screen.press("k")
            screen.until("Stop job stuck", "hung: gil_held", "Other devices go on")
            screen.press("K")
            screen.until("stuck was killed", "idle", gone=["HUNG"])
            assert time.monotonic() - began < ACT_S
            with pytest.raises(JobError, match="killed"):
                job.result(5.0)
            assert server.devices()["cpu:0"].restarts == 1
            assert server.devices()["cpu:1"].restarts == 0
            screen.press("e")
            screen.until("The last death of cpu:0", "gil_held")
            screen.press("Escape")
            screen.until("Devices 2")

            screen.resize(80, 24)
            shown = screen.until("1 Jobs 0+0", "cpu:0", "q Quit", gone=["╭─ Jobs"])
            assert max(map(len, shown.splitlines())) <= 80

            os.kill(screen.pid, signal.SIGTERM)
            assert screen.ended() == 143
            assert restored(screen)


def test_ctrl_c_and_a_lost_terminal_end_it_and_leave_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, module="hanging", devices="cpu:1") as server:
        top = [*GEN_WORKER, "top", "--socket", str(server.control)]
        with emulator(tmp_path, *top, env=environment(tmp_path), columns=80, rows=24) as screen:
            screen.until("idle")
            screen.press("C-c")
            assert screen.ended() == 130
            assert restored(screen)
        with emulator(tmp_path, *top, env={**environment(tmp_path), "NO_COLOR": "1"}) as screen:
            screen.until("idle")
            os.kill(screen.pid, signal.SIGHUP)
            assert screen.ended() == 129
            assert restored(screen)
        with emulator(tmp_path, *top, env=environment(tmp_path)) as screen:
            screen.until("idle")
            pid = screen.pid
        until(lambda: not alive(pid), what="the end of what lost its terminal")


def test_keys_that_come_all_at_once_go_where_the_first_of_them_leads(tmp_path: Path) -> None:
    with serving(tmp_path, module="hanging", devices="cpu:2") as server:
        top = [*GEN_WORKER, "top", "--socket", str(server.control)]
        with emulator(tmp_path, *top, env=environment(tmp_path), columns=80, rows=24) as screen:
            for name in ("first", "second"):
                server.client.submit("sleep-without-the-interpreter", request_id=name)
                screen.until(name)
            screen.type(b"/drk?q")
            screen.until("/drk?q")
            screen.press("Escape")
            screen.until("first", "second", "q Quit")
            screen.type(b"1\x1b[Bk")
            screen.until("Stop job second")
            screen.press("Escape")
            screen.until("q Quit", gone=["Stop a job"])
            screen.type(b"l")
            screen.until("Log of job second")
            screen.type(b"/qs")
            screen.until("qs", "Log of job second")
        for name in ("first", "second"):
            server.client.kill(name, now=True)
        assert not any(device.drained for device in server.devices().values())


def test_a_terminal_may_be_the_shells_meanwhile_and_need_not_speak_utf_8(tmp_path: Path) -> None:
    with serving(tmp_path, module="hanging", devices="cpu:1") as server:
        top = [*GEN_WORKER, "top", "--socket", str(server.control)]
        with emulator(tmp_path, *top, env=environment(tmp_path), columns=80, rows=24) as screen:
            screen.until("idle")
            screen.press("C-z")
            until(lambda: restored(screen), what="a terminal for the shell")
            os.kill(screen.pid, signal.SIGCONT)
            screen.until("idle", "DEVICE STATE", "1 Jobs 0+0", "q Quit")

            screen.type(b"\xe4\xff?")  # as a terminal that is not set to UTF-8 sends letters
            screen.until("these keys")
            screen.press("Escape")
            screen.until("1 Jobs 0+0", gone=["these keys"])


def test_a_program_that_somebody_has_stopped_and_let_go_on_draws_and_ends_as_before(tmp_path: Path) -> None:
    with serving(tmp_path, module="hanging", devices="cpu:1") as server:
        top = [*GEN_WORKER, "top", "--socket", str(server.control)]
        with emulator(tmp_path, *top, env=environment(tmp_path), columns=80, rows=24) as screen:
            screen.until("idle")
            threads = Path(f"/proc/{screen.pid}/task")
            before = len(list(threads.iterdir()))
            for number in (signal.SIGCONT, signal.SIGSTOP, signal.SIGCONT):
                os.kill(screen.pid, number)
            screen.until("idle", "q Quit")
            until(lambda: len(list(threads.iterdir())) == before, what="one thread for the keys")
            os.kill(screen.pid, signal.SIGTERM)
            assert screen.ended() == 143
            assert restored(screen)


def test_it_ends_with_its_terminal_although_no_signal_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, module="hanging", devices="cpu:1") as server:
        ours, theirs = pty.openpty()  # it is in nobody's session
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        command = [*GEN_WORKER, "top", "--socket", str(server.control)]
        env = {**environment(tmp_path), "TERM": "xterm"}
        with subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
        ) as top:
            os.close(theirs)
            shown = b""
            while b"idle" not in shown:
                shown += os.read(ours, 65536)
            os.close(ours)
            assert top.wait(20) == 128 + signal.SIGHUP


def test_a_locale_that_knows_no_lines_and_marks_does_not_spoil_the_screen(tmp_path: Path) -> None:
    with serving(tmp_path, module="hanging", devices="cpu:1") as server:
        poor = ["env", "LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0"]
        top = [*poor, *GEN_WORKER, "top", "--socket", str(server.control)]
        with emulator(tmp_path, *top, env=environment(tmp_path), columns=80, rows=24) as screen:
            screen.until("○ idle", "♥", "━", gone=["\\u"])


def test_a_terminal_that_cannot_be_drawn_on_is_refused_in_words(tmp_path: Path) -> None:
    with terminal([*GEN_WORKER, "top"], tmp_path, {**environment(tmp_path), "TERM": "dumb"}) as shown:
        told = shown.end()
    assert shown.code == 2
    assert "`TERM` is `dumb`" in told
    assert "hint: `gen-worker ps`" in told
