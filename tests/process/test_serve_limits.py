"""What clients may hold and for how long: a client that asks for more loses its own connection, and nobody else's."""

import json
import os
import time
from contextlib import ExitStack, suppress

import pytest

from tests.served import Connection, Serve, descriptors, text_of, until

pytestmark = [pytest.mark.process, pytest.mark.quiet]
MIB = 1 << 20


def rss(pid: int) -> int:
    """Return the resident bytes of a process."""
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def pause(seconds: float) -> None:
    """Read nothing for a while."""
    ends = time.monotonic() + seconds
    until(lambda: time.monotonic() > ends, what="the end of a pause")


def is_cut_off(connection: Connection) -> bool:
    """Whether the server has closed the connection; what it said before is dropped."""
    connection.sock.setblocking(False)
    try:
        while connection.sock.recv(MIB):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        pass
    return True


# --- a client that does not read --------------------------------------------------------------------------------------


@pytest.mark.promise(12)
def test_a_client_that_takes_nothing_while_something_waits_is_cut_off_and_its_jobs_end(serve: Serve) -> None:
    server = serve(limits={"stalled_s": 0.5}, devices="cpu:2")
    with server.connect() as stalled, server.connect() as patient:
        stalled.send("count", "unread", times=1_000_000, text="x" * 10_000, stream=True)
        patient.send("gated", "waiting", text="served", gate="go")
        server.until_running("unread", "waiting")
        until(lambda: server.job("unread") is None, what="the end of the unread stream")
        until(lambda: "a client has taken nothing for 0.5 s" in server.log(), what="its line in the log")
        server.open("go")
        assert text_of(patient.frame()) == "served"  # it had nothing to take all that time


def test_a_client_that_takes_a_little_now_and_then_is_kept(serve: Serve) -> None:
    server = serve(limits={"stalled_s": 0.5})
    with server.connect() as slow:
        slow.send("echo-blob", data="QUJD" * (2 * MIB))
        answer = b""
        slow.sock.settimeout(20)
        while not answer.endswith(b"\n"):
            pause(0.15)
            answer += slow.sock.recv(2 * MIB)
    assert json.loads(answer)["ok"]


@pytest.mark.promise(12)
def test_answers_that_nobody_reads_do_not_fill_the_supervisor(serve: Serve) -> None:
    server = serve(limits={"unsent_bytes": 16 * MIB})
    before = rss(server.pid)
    with server.connect() as greedy:
        request = {"function": "echo", "payload": {"text": "x" * 40_000}}
        data = json.dumps(request).encode() + b"\n"
        greedy.sock.settimeout(2)
        with pytest.raises((TimeoutError, BrokenPipeError, ConnectionResetError)):
            greedy.write(data * 20_000)
        assert text_of(server.ask("echo", text="served")) == "served"
        assert rss(server.pid) - before < 100 * MIB


def test_answers_that_wait_for_their_turn_are_bounded_too(serve: Serve) -> None:
    server = serve(limits={"unsent_bytes": 16 * MIB}, devices="cpu:2")
    before = rss(server.pid)
    with server.connect() as greedy:
        greedy.line({"function": "gated", "payload": {"gate": "never"}})  # the answers to all others wait for its own
        data = json.dumps({"function": "echo", "payload": {"text": "x" * 40_000}}).encode() + b"\n"
        greedy.sock.settimeout(2)
        with pytest.raises((TimeoutError, BrokenPipeError, ConnectionResetError)):
            greedy.write(data * 20_000)
        assert text_of(server.ask("echo", text="served")) == "served"
        assert rss(server.pid) - before < 100 * MIB


@pytest.mark.promise(12)
def test_many_big_answers_that_nobody_reads_cost_their_child_nothing(serve: Serve) -> None:
    server = serve(devices="cpu:1")
    pids = server.pids()
    with server.connect() as greedy:
        for number in range(400):
            greedy.send("repeat", str(number), text="x", times=100_000)
        until(lambda: server.status().jobs_done >= 400, what="every answer")
        assert server.pids() == pids
        assert text_of(server.ask("echo", text="served")) == "served"
        assert len(greedy.frames(400)) == 400


def test_a_client_that_leaves_with_many_requests_costs_the_log_a_line(serve: Serve) -> None:
    server = serve()
    with server.connect() as leaving:
        leaving.send("poll", "running")
        for number in range(300):
            leaving.send("echo", f"queued-{number}", text="x")
        until(lambda: len(server.status().jobs) == 301, what="every request")
    until(lambda: not server.status().jobs, what="their end")
    until(lambda: " requests canceled: their clients are gone" in server.log(), what="its line in the log")
    assert server.log().count("canceled") <= 3


# --- a client that does not end its line ------------------------------------------------------------------------------


@pytest.mark.promise(10)
def test_lines_that_never_end_are_bounded_over_all_connections(serve: Serve) -> None:
    server = serve(limits={"partial_bytes": 8 * MIB})
    with ExitStack() as stack:
        small = stack.enter_context(server.connect())
        small.write(b'{"function":"echo","payl')
        big = [stack.enter_context(server.connect()) for _ in range(4)]
        for number, connection in enumerate(big):
            connection.sock.settimeout(2)
            connection.write(b"x" * ((2 + number % 2) * MIB))
        until(lambda: any(map(is_cut_off, big)), what="the end of one that holds most")
        small.write(b'oad":{"text":"finished"}}\n')
        assert text_of(small.frame()) == "finished"


def test_whoever_holds_most_of_an_unfinished_line_is_told_why_it_is_closed(serve: Serve) -> None:
    server = serve(limits={"partial_bytes": MIB})
    with server.connect() as connection:
        with suppress(BrokenPipeError):  # it is closed while it still sends
            connection.write(b"x" * (2 * MIB - 1))
        frame = connection.frame()
        assert frame["error"]["kind"] == "usage"
        assert "too many are unfinished" in frame["error"]["message"]
        until(lambda: is_cut_off(connection), what="its end")


def test_a_client_that_sends_a_line_too_long_to_its_end_reads_why(serve: Serve) -> None:
    server = serve(limits={"line_bytes": MIB})
    with server.connect() as connection:
        connection.write(b"x" * (64 * MIB) + b"\n")
        assert "a line of over 1048576 bytes" in connection.frame()["error"]["message"]
        assert connection.read() is None


def test_a_line_too_long_leaves_the_requests_before_it_their_answers(serve: Serve) -> None:
    server = serve(limits={"line_bytes": MIB})
    with server.connect() as connection:
        connection.send("gated", "early", text="answered", gate="go")
        server.until_running("early")
        connection.write(b"x" * (4 * MIB))
        assert connection.frame()["error"]["kind"] == "usage"
        server.open("go")
        assert text_of(connection.frame()) == "answered"
        assert connection.read() is None


def test_a_thousand_clients_in_the_middle_of_a_line_leave_the_server_small_and_quick(serve: Serve) -> None:
    server = serve()
    before, files = rss(server.pid), len(descriptors(server.pid))
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(server.connect()).write(b'{"function":"echo","payload":{"text":"')
        assert text_of(server.ask("echo", text="served")) == "served"
        until(lambda: len(descriptors(server.pid)) > 1000, what="every client")
        assert rss(server.pid) - before < 50 * MIB
    until(lambda: len(descriptors(server.pid)) <= files, what="every client gone")


def test_a_client_that_says_nothing_is_closed(serve: Serve) -> None:
    server = serve(limits={"first_line_s": 0.3})
    with server.connect() as silent, server.connect() as drip:
        drip.write(b"{")
        assert silent.read() is None
        assert drip.read() is None


def test_a_longer_line_may_be_allowed_or_a_shorter_one_demanded(serve: Serve) -> None:
    server = serve("--max-line", "2k")
    with server.connect() as connection:
        connection.send("echo", text="x" * 3000)
        assert "the limit is 2048" in connection.frame()["error"]["message"]
    assert text_of(server.ask("echo", text="x" * 1500)) == "x" * 1500


# --- a deadline -------------------------------------------------------------------------------------------------------


def test_a_request_may_bring_its_deadline_the_time_in_the_queue_included(serve: Serve) -> None:
    server = serve()
    with server.connect() as connection:
        connection.send("gated", "first", text="first", gate="go")
        server.until_running("first")
        connection.line({"function": "gated", "request_id": "queued", "payload": {"gate": "go"}, "timeout_ms": 50})
        frame = connection.frame()
        assert (frame["request_id"], frame["error"]["kind"]) == ("queued", "deadline")
        server.open("go")
        assert text_of(connection.frame()) == "first"
        connection.line({"function": "poll", "request_id": "running", "payload": {}, "timeout_ms": 100})
        assert connection.frame()["error"]["kind"] == "deadline"
        connection.line({"function": "echo", "payload": {"text": "in time"}, "timeout_ms": 60_000})
        assert text_of(connection.frame()) == "in time"
    assert "queued" not in server.runs()


@pytest.mark.parametrize("timeout", [-1, 1.5, "5", 10**13, 10**400])
def test_a_deadline_that_is_none_is_refused(serve: Serve, timeout: object) -> None:
    server = serve()
    with server.connect() as connection:
        connection.line({"function": "echo", "payload": {}, "timeout_ms": timeout})
        assert connection.frame()["error"]["kind"] == "usage"
