"""Requests on standard input, answers on standard output: a batch, a pipe, a terminal."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import pytest

from tests.served import ENDPOINTS, GEN_WORKER, PATIENCE_S, Serve, environment, launch, text_of, until

pytestmark = pytest.mark.process


def line(function: str, request_id: str | None = None, **payload: object) -> bytes:
    named = {} if request_id is None else {"request_id": request_id}
    return json.dumps({"function": function, "payload": payload, **named}).encode() + b"\n"


def read(pipe: IO[bytes] | None) -> dict[str, Any]:
    assert pipe is not None
    answer: dict[str, Any] = json.loads(pipe.readline())
    return answer


def batch(folder: Path, data: bytes, *arguments: str, devices: str = "cpu:1") -> tuple[int, list[dict[str, Any]]]:
    """Serve a file on standard input; return the exit code and the answers."""
    (folder / "requests").write_bytes(data)
    with (
        (folder / "requests").open("rb") as requests,
        (folder / "answers").open("wb") as answers,
        launch(folder, *arguments, stdin=requests, stdout=answers, devices=devices) as process,
    ):
        code = process.wait(PATIENCE_S)
    return code, [json.loads(answer) for answer in (folder / "answers").read_bytes().splitlines()]


# --- a file -----------------------------------------------------------------------------------------------------------


def test_a_file_of_requests_is_answered_and_that_is_all(tmp_path: Path) -> None:
    code, answers = batch(tmp_path, line("echo", text="one") + line("tidy", text="two") + line("echo", text="three"))
    assert code == 0
    assert [text_of(answer) for answer in answers] == ["one", "two", "three"]
    assert list(tmp_path.glob("shut-down-*"))
    assert not (tmp_path / "gw.sock").exists()
    assert (tmp_path / "log").read_text().endswith("answered: stopping\nstopped\n")


def test_the_last_line_of_a_file_may_lack_its_line_feed(tmp_path: Path) -> None:
    code, answers = batch(tmp_path, line("echo", text="one") + line("echo", text="two").rstrip())
    assert (code, [text_of(answer) for answer in answers]) == (0, ["one", "two"])


def test_a_batch_longer_than_the_queue_is_answered_whole(tmp_path: Path) -> None:
    data = b"".join(line("echo", str(number), text=str(number)) for number in range(3000))
    (tmp_path / "requests").write_bytes(data)
    with (tmp_path / "requests").open("rb") as requests, (tmp_path / "answers").open("wb") as answers:
        limit = {"GEN_WORKER_MAX_QUEUED": "100"}
        with launch(tmp_path, stdin=requests, stdout=answers, variables=limit) as process:
            assert process.wait(PATIENCE_S) == 0
    told = [json.loads(answer) for answer in (tmp_path / "answers").read_bytes().splitlines()]
    assert {answer["request_id"]: text_of(answer) for answer in told} == {str(n): str(n) for n in range(3000)}
    assert len(told) == 3000


def test_rubbish_is_answered_and_the_rest_of_the_batch_served(tmp_path: Path) -> None:
    code, answers = batch(tmp_path, b"rubbish\n\n" + line("echo", text="fine") + b'{"function":"nobody"}')
    assert code == 0
    assert [answer.get("error", {}).get("kind") for answer in answers] == ["usage", None, "not_found"]


@pytest.mark.parametrize("length", [2_000, 2_000_000])
def test_a_line_that_is_too_long_costs_a_batch_nothing_else(tmp_path: Path, length: int) -> None:
    data = line("echo", text="before") + line("echo", text="x" * length) + line("echo", text="after")
    code, answers = batch(tmp_path, data, "--max-line", "1k")
    assert code == 0
    assert [answer.get("error", {}).get("kind") for answer in answers] == [None, "usage", None]
    assert text_of(answers[2]) == "after"


def test_a_job_that_kills_its_child_costs_a_batch_nothing_else(tmp_path: Path) -> None:
    data = line("die", "bad", text="SIGKILL") + b"".join(line("echo", str(n), text=str(n)) for n in range(20))
    code, answers = batch(tmp_path, data, devices="cpu:2")
    by_id = {answer["request_id"]: answer for answer in answers}
    assert code == 0
    assert by_id.pop("bad")["error"]["kind"] == "child_died"
    assert {text_of(answer) for answer in by_id.values()} == {str(n) for n in range(20)}


def test_a_cancel_behind_more_requests_than_are_begun_at_once_ends_what_it_names(tmp_path: Path) -> None:
    data = line("poll", "running") + b"".join(line("echo", str(n), text=str(n)) for n in range(500))
    data += b'{"cancel":{"request_id":"400"}}\n{"cancel":{"request_id":"running"}}\n'
    code, answers = batch(tmp_path, data)
    canceled = [answer for answer in answers if "canceled" in answer]
    by_id = {answer["request_id"]: answer for answer in answers if "canceled" not in answer}
    assert code == 0
    assert [(answer["request_id"], answer["canceled"]) for answer in canceled] == [("400", True), ("running", True)]
    assert {by_id.pop(name)["error"]["kind"] for name in ("400", "running")} == {"canceled"}
    assert {name: text_of(answer) for name, answer in by_id.items()} == {str(n): str(n) for n in range(500) if n != 400}


def test_answers_without_an_id_come_in_order_though_some_lines_are_no_requests(tmp_path: Path) -> None:
    data = b"".join(line("echo", text=str(n)) if n % 3 else b"rubbish\n" for n in range(300))
    code, answers = batch(tmp_path, data, devices="cpu:2")
    assert code == 0
    assert [text_of(each) if each["ok"] else "" for each in answers] == [str(n) if n % 3 else "" for n in range(300)]


# --- a pipe -----------------------------------------------------------------------------------------------------------


def test_a_pipe_is_served_as_it_is_written_and_ends_the_server_when_it_ends(serve: Serve) -> None:
    server = serve(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process = server.process
    assert process.stdin is not None
    with process.stdin as stdin:
        for text in ("one", "two"):
            stdin.write(line("echo", text=text))
            stdin.flush()
            assert text_of(read(process.stdout)) == text
        stdin.write(line("gated", "last", text="finished", gate="go"))
    server.until_running("last")
    server.open("go")
    assert text_of(read(process.stdout)) == "finished"
    assert process.stdout is not None
    assert process.stdout.read() == b""
    process.stdout.close()
    assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("how", ["/dev/null", "a closed pipe", "nothing to read from"])
def test_without_anything_on_standard_input_it_serves_on(serve: Serve, how: str) -> None:
    if how == "/dev/null":
        server = serve()
    elif how == "a closed pipe":
        server = serve(stdin=subprocess.PIPE)
        assert server.process.stdin is not None
        server.process.stdin.close()
    else:
        with open(os.devnull, "wb") as unreadable:
            server = serve(stdin=unreadable)
    for text in ("one", "two"):
        assert text_of(server.ask("echo", text=text)) == text
    server.signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0


def test_no_stdin_leaves_standard_input_alone(serve: Serve) -> None:
    reader, writer = os.pipe()
    os.write(writer, line("echo", text="not for you"))
    os.close(writer)
    with os.fdopen(reader, "rb") as stdin:
        server = serve("--no-stdin", stdin=stdin)
        assert text_of(server.ask("echo", text="served")) == "served"
        assert stdin.read() == line("echo", text="not for you")


def test_standard_output_that_nobody_reads_holds_nobody(serve: Serve) -> None:
    server = serve(stdin=subprocess.PIPE, stdout=subprocess.PIPE, devices="cpu:2")
    process = server.process
    assert process.stdin is not None
    assert process.stdout is not None
    os.set_blocking(process.stdin.fileno(), False)
    request = line("echo", text="x" * 40_000)
    unread, rest = 0, b""
    written = time.monotonic()
    while time.monotonic() - written < 0.5:  # nothing more goes in: it is read no further
        try:
            rest = rest or request
            sent = os.write(process.stdin.fileno(), rest)
            unread, rest = unread + sent, rest[sent:]
            written = time.monotonic()
        except BlockingIOError:
            text_of(server.ask("echo", text="served"))
    assert unread < 16 << 20
    lag = server.status().loop_lag_max_s
    assert lag is not None
    assert lag < 0.5
    began = time.monotonic()
    server.signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0
    assert time.monotonic() - began < 5
    process.stdin.close()
    process.stdout.close()


def test_when_standard_output_is_closed_the_batch_has_failed(serve: Serve) -> None:
    server = serve(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process = server.process
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.close()
    process.stdin.write(line("echo", text="lost"))
    process.stdin.flush()
    assert process.wait(PATIENCE_S) == 1
    process.stdin.close()
    assert "nobody reads standard output any more: stopping" in server.log()
    assert not server.socket.exists()


# --- a terminal -------------------------------------------------------------------------------------------------------

_LEADER = """
import fcntl, os, signal, subprocess, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
process = subprocess.Popen(sys.argv[2:], process_group=0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
if sys.argv[1] == "foreground":
    os.tcsetpgrp(0, process.pid)
for order in open(int(os.environ["ORDERS"])):
    os.tcsetpgrp(0, process.pid)
sys.exit(process.wait())
"""


class Terminal:
    """A server below the leader of a terminal's session, seen from the terminal."""

    def __init__(self, folder: Path, where: str) -> None:
        self.sidecar = folder / "gw.sock.json"
        orders, self._orders = os.pipe()
        self.screen, theirs = pty.openpty()
        serve = [*GEN_WORKER, "serve", "--module", "faulty", "--devices", "cpu:1", "--socket", str(folder / "gw.sock")]
        with (folder / "log").open("wb") as log:
            self.leader = subprocess.Popen(
                [sys.executable, "-c", _LEADER, where, *serve],
                cwd=ENDPOINTS,
                env={**environment(folder), "ORDERS": str(orders)},
                stdin=theirs,
                stdout=theirs,
                stderr=log,
                pass_fds=[orders],
                start_new_session=True,
            )
        os.close(theirs)
        os.close(orders)
        until(lambda: self.sidecar.exists() or self.leader.poll() is not None, what="the sidecar")

    @property
    def pid(self) -> int:
        """The server's."""
        return int(json.loads(self.sidecar.read_bytes())["pid"])

    def type(self, data: bytes) -> None:
        """Type on its keyboard."""
        os.write(self.screen, data)

    def bring_to_front(self) -> None:
        """Give the server the foreground."""
        os.write(self._orders, b"come to the front\n")

    def answers(self, count: int) -> list[dict[str, Any]]:
        """Return the answers on the screen, which shows what was typed, too."""
        said = b""
        while said.count(b'"ok"') < count or not said.endswith(b"\n"):
            said += os.read(self.screen, 1 << 16)
        return [json.loads(each) for each in said.splitlines() if b'"ok"' in each]

    def close(self) -> int:
        """End what is left; return the server's exit code."""
        if self.sidecar.exists():
            os.kill(self.pid, signal.SIGTERM)
        os.close(self._orders)
        try:
            return self.leader.wait(PATIENCE_S)
        finally:
            self.leader.kill()
            self.leader.wait()
            os.close(self.screen)


def test_what_is_typed_in_the_foreground_is_a_request_and_the_end_of_input_ends_it(tmp_path: Path) -> None:
    with closing(Terminal(tmp_path, "foreground")) as terminal:
        terminal.type(line("echo", text="typed"))
        assert [text_of(answer) for answer in terminal.answers(1)] == ["typed"]
        terminal.type(b"\x04")
        until(lambda: not terminal.sidecar.exists(), what="the end")
    assert terminal.leader.returncode == 0
    assert "everything it asked for is answered: stopping" in (tmp_path / "log").read_text()


def test_in_the_background_it_takes_nothing_from_the_terminal_until_it_is_in_front(tmp_path: Path) -> None:
    with closing(Terminal(tmp_path, "background")) as terminal:
        terminal.type(line("gated", "typed", text="late", gate="go"))
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 1, what="the time in which it would read")
        assert Path(f"/proc/{terminal.pid}/stat").read_text().rpartition(")")[2].split()[0] in "SR"
        assert not (tmp_path / "runs").exists()
        terminal.bring_to_front()
        until(lambda: (tmp_path / "runs").exists(), what="the typed request")
        (tmp_path / "go").touch()
        assert [text_of(answer) for answer in terminal.answers(1)] == ["late"]
