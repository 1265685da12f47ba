"""The control socket's page is all that a program in another language needs: nothing here knows our own frames."""

import fcntl
import mmap
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from msgspec.msgpack import decode, encode

from tests.served import PATIENCE_S, Serve, Server, descriptors, until

pytestmark = pytest.mark.process

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "control-socket.md"
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Link:
    """One connection; frames are lists of plain values."""

    def __init__(self, server: Server, *, opened: bool = True) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(str(server.control))
        if opened:
            self.say("open", 1, "by hand")
            assert self.hear()[:2] == ["opened", 1]

    def __enter__(self) -> "Link":
        return self

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.sock.close()

    def say(self, *frame: Any, fds: tuple[int, ...] = ()) -> None:
        socket.send_fds(self.sock, [encode(frame)], fds)

    def hear(self) -> list[Any]:
        frame, fds = self.hear_with_memory()
        assert not fds
        return frame

    def hear_with_memory(self) -> tuple[list[Any], list[int]]:
        packet, fds, _, _ = socket.recv_fds(self.sock, 65536, 8)
        assert packet, "the end"
        return decode(packet), fds

    def at_end(self) -> bool:
        return self.sock.recv(65536) == b""


@contextmanager
def memory(content: bytes, seals: int = SEALS) -> Iterator[int]:
    fd = os.memfd_create("by hand", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, len(content))
        os.pwrite(fd, content, 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        yield fd
    finally:
        os.close(fd)


def content_of(fd: int, length: int) -> bytes:
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    assert os.fstat(fd).st_size >= length
    with mmap.mmap(fd, length, prot=mmap.PROT_READ) as mapped:
        os.close(fd)
        return mapped[:length]


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve(module="greeter")


# --- the session on the page ------------------------------------------------------------------------------------------


def packets_on_page() -> list[tuple[str, str]]:
    """Return the session's packets, each as its direction and its bytes in hexadecimal."""
    text = PAGE.read_text().partition("## A session, byte by byte")[2]
    (block,) = re.findall(r"```text\n(.*?)```", text.partition("\n## ")[0], re.DOTALL)
    found: list[tuple[str, str]] = []
    for direction, data in re.findall(r"^(->|<-|  ) ((?:(?:[0-9a-f]{2}|\.\.) ?)+)", block, re.MULTILINE):
        if direction.strip():
            found.append((direction, ""))
        found[-1] = found[-1][0], found[-1][1] + data.replace(" ", "")
    return found


def test_the_session_on_the_page_goes_byte_by_byte_as_it_says(server: Server) -> None:
    packets = packets_on_page()
    assert [direction for direction, _ in packets] == ["->", "<-", "->", "<-", "<-", "->"]
    with Link(server, opened=False) as link:
        for direction, data in packets:
            if direction == "->":
                link.sock.send(bytes.fromhex(data))
            else:
                came = link.sock.recv(65536).hex()
                assert re.fullmatch(re.sub(r"(\.\.)+", "(?:..)+", data), came), came


# --- what the page says, one by one -----------------------------------------------------------------------------------


def test_another_protocol_is_refused_with_both_numbers_and_what_to_use(server: Server) -> None:
    with Link(server, opened=False) as link:
        link.say("open", 99)
        tag, request_id, attempt, kind, message, *_ = link.hear()
        assert (tag, request_id, attempt, kind) == ("error", "", 0, "usage")
        version = server.status().version
        assert message == (
            "the client speaks control protocol 99, "
            f"this supervisor (gen-worker {version}) speaks 1: use the client of gen-worker {version}"
        )
        assert link.at_end()


def test_a_supervisor_skips_fields_it_does_not_know(server: Server) -> None:
    with Link(server) as link:
        link.say("submit", "r", "greet", encode({"name": "Ada"}), "msgpack", 1, False, False, 0, "", 0, "new", 2)
        assert link.hear() == ["accepted", "r", 1]
        assert link.hear()[:2] == ["result", "r"]


def test_json_comes_back_as_json(server: Server) -> None:
    with Link(server) as link:
        link.say("submit", "r", "greet", b'{"name":"Ada"}', "json")
        assert link.hear() == ["accepted", "r", 1]
        assert link.hear()[3] == b'{"text":"hello Ada"}'


def test_events_come_when_they_are_asked_for(server: Server) -> None:
    with Link(server) as link:
        link.say("submit", "r", "greet", encode({"name": "Ada"}), "msgpack", 1, False, True)
        assert link.hear() == ["accepted", "r", 1]
        tag, request_id, event, value = link.hear()
        assert (tag, request_id, event) == ("event", "r", "progress")
        assert b"greeting" in value
        assert link.hear()[0] == "result"


def test_a_result_comes_again_until_it_is_acknowledged_and_the_job_runs_anew_after_that(server: Server) -> None:
    order = ("submit", "r", "greet", encode({"name": "Ada"}))
    with Link(server) as link:
        link.say(*order)
        assert link.hear() == ["accepted", "r", 1]
        first = link.hear()
        link.say(*order)
        assert link.hear() == ["accepted", "r", 1]
        assert link.hear() == first
    with Link(server) as link:
        link.say(*order)
        assert link.hear() == ["accepted", "r", 1]
        assert link.hear() == first
        link.say("ack", "r", 1)
        link.say(*order)
        assert link.hear() == ["accepted", "r", 1]
        again = link.hear()
        assert again[:5] == first[:5]
        assert again[5] != first[5]


def test_who_loses_a_job_to_another_connection_is_told_and_has_nothing_to_acknowledge(server: Server) -> None:
    order = ("submit", "r", "wait", encode({"name": "Ada"}))
    with Link(server) as first, Link(server) as second:
        first.say(*order)
        assert first.hear() == ["accepted", "r", 1]
        second.say(*order)
        assert second.hear() == ["accepted", "r", 1]
        assert first.hear()[:4] == ["error", "r", 0, "usage"]
        second.say("cancel", "r")
        assert second.hear()[:4] == ["error", "r", 1, "canceled"]
        assert second.hear() == ["canceled", "r", True]


def test_cancel_means_a_job_of_the_same_connection_first(server: Server) -> None:
    with server.connect() as neighbour, Link(server) as link:
        neighbour.send("wait", "r", name="Ada")
        until(lambda: server.job("r"))
        link.say("submit", "r", "wait", encode({"name": "Ada"}))
        assert link.hear() == ["accepted", "r", 1]
        link.say("cancel", "r")
        assert link.hear()[:4] == ["error", "r", 1, "canceled"]
        assert link.hear() == ["canceled", "r", True]
        (left,) = server.status().jobs
        assert left.link != "control"


def test_a_stream_stops_at_its_window_and_goes_on_with_more(server: Server) -> None:
    with Link(server) as link:
        link.say("submit", "r", "count-down", encode({"start": 40}), "msgpack", 1, True)
        assert link.hear() == ["accepted", "r", 1]
        items = [link.hear() for _ in range(32)]
        assert decode(items[0][2]) == {"text": "40"}
        link.say("list")
        assert link.hear()[0] == "listed"
        link.say("more", "r", 32)
        items += [link.hear() for _ in range(8)]
        assert [item[:2] for item in items] == [["item", "r"]] * 40
        assert link.hear()[:5] == ["result", "r", 1, b"", 40]


def test_a_stream_that_is_not_asked_for_needs_no_more(server: Server) -> None:
    with Link(server) as link:
        link.say("submit", "r", "count-down", encode({"start": 40}))
        assert link.hear() == ["accepted", "r", 1]
        assert [link.hear()[0] for _ in range(40)] == ["item"] * 40
        assert link.hear()[:5] == ["result", "r", 1, b"", 40]


def test_a_client_that_goes_leaves_its_job_and_takes_its_stream_along(server: Server) -> None:
    with Link(server) as link:
        link.say("submit", "stays", "wait", encode({"name": "Ada"}))
        link.say("submit", "goes", "count-down", encode({"start": 10_000}), "msgpack", 1, True)
        assert [link.hear()[:2] for _ in range(2)] == [["accepted", "stays"], ["accepted", "goes"]]
        until(lambda: server.job("goes") and server.job("stays"))
    until(lambda: server.job("goes") is None)
    assert server.job("stays") is not None


def test_a_client_that_goes_takes_every_attempt_of_its_stream_along(server: Server) -> None:
    with Link(server) as link:
        for attempt in (1, 2):
            link.say("submit", "goes", "count-down", encode({"start": 10_000}), "msgpack", attempt, True)
        until(lambda: len(server.status().jobs) == 2, what="both attempts")
    until(lambda: not server.status().jobs, what="the end of both attempts")


def test_cancel_means_the_newest_attempt_of_a_name(server: Server) -> None:
    with Link(server) as link:
        for attempt in (1, 2):
            link.say("submit", "r", "wait", encode({"name": "Ada"}), "msgpack", attempt)
            assert link.hear() == ["accepted", "r", attempt]
        for attempt in (2, 1):
            link.say("cancel", "r")
            assert link.hear()[:4] == ["error", "r", attempt, "canceled"]
            assert link.hear() == ["canceled", "r", True]


def test_results_for_a_client_that_has_gone_hold_no_memory_once_they_are_acknowledged(server: Server) -> None:
    payload = encode({"data": bytes(300_000)})
    held = []
    with Link(server) as stays, memory(payload) as fd:
        for name in ("a", "b", "c"):
            with Link(server) as first:
                first.say("submit", f"before-{name}", "count-down", encode({"start": 10_000}), "msgpack", 1, True)
                assert first.hear() == ["accepted", f"before-{name}", 1]
                assert first.hear()[0] == "item"  # from now on it has the child for itself
                with Link(server) as goes:
                    for attempt in (1, 2):
                        goes.say("submit", name, "reverse", [len(payload), 0], "msgpack", attempt, fds=(fd,))
                        assert goes.hear() == ["accepted", name, attempt]
            until(lambda: not server.status().jobs, what="the end of all jobs")
            for attempt in (1, 2):
                stays.say("submit", name, "reverse", [len(payload), 0], "msgpack", attempt, fds=(fd,))
                assert stays.hear() == ["accepted", name, attempt]
                (_, _, _, (_, region), *_), fds = stays.hear_with_memory()
                os.close(fds[0])
                stays.say("release", region)
                stays.say("ack", name, attempt)
            stays.say("list")
            assert stays.hear()[0] == "listed"
            held.append(sum("memfd" in each for each in descriptors(server.pid)))
    assert held[0] == held[1] == held[2]


def test_a_big_body_goes_and_comes_in_sealed_memory_that_is_named_and_released(server: Server) -> None:
    data = os.urandom(300_000)
    payload = encode({"data": data})
    names = set()
    with Link(server) as link, memory(payload) as fd:
        for number in range(5):
            link.say("submit", f"r{number}", "reverse", [len(payload), 0], fds=(fd,))
            assert link.hear() == ["accepted", f"r{number}", 1]
            (tag, _, _, (length, region), *_), fds = link.hear_with_memory()
            assert tag == "result"
            assert decode(content_of(fds[0], length)) == {"data": data[::-1]}
            link.say("release", region)
            link.say("ack", f"r{number}", 1)
            names.add(region)
    assert len(names) == 1
    assert 0 not in names


def test_memory_that_is_not_released_is_not_written_to(server: Server) -> None:
    contents = [bytes([number]) * 100_000 for number in range(3)]
    held: list[tuple[int, int]] = []
    with Link(server) as link:
        for number, data in enumerate(contents):
            payload = encode({"data": data})
            with memory(payload) as fd:
                link.say("submit", f"r{number}", "reverse", [len(payload), 0], fds=(fd,))
            assert link.hear()[0] == "accepted"
            frame, fds = link.hear_with_memory()
            held.append((fds[0], frame[3][0]))
            link.say("ack", f"r{number}", 1)
        assert [decode(content_of(*each))["data"] for each in held] == contents


def test_what_cannot_be_used_is_refused_with_attempt_0_and_the_connection_goes_on(server: Server) -> None:
    payload = encode({"data": bytes(100_000)})
    with Link(server) as link, memory(payload, fcntl.F_SEAL_GROW) as unsealed, memory(payload) as sealed:
        link.say("submit", "a", "reverse", [len(payload), 0], fds=(unsealed,))
        link.say("submit", "b", "reverse", [len(payload) + 1, 0], fds=(sealed,))
        link.say("submit", "c", "reverse", [len(payload), 0])
        link.say("submit", "d", "nothing", encode({}))
        for name in "abcd":
            assert link.hear()[:3] == ["error", name, 0]
        link.say("submit", "e", "reverse", [len(payload), 0], fds=(sealed,))
        assert link.hear() == ["accepted", "e", 1]


@pytest.mark.parametrize("frame", [b"\xc1", encode(["list"]), encode(["open"]), encode(["nonsense", 1])])
def test_what_is_no_frame_is_refused_and_ends_the_connection(server: Server, frame: bytes) -> None:
    with Link(server, opened=False) as link:
        link.sock.send(frame)
        assert link.hear()[:4] == ["error", "", 0, "usage"]
        assert link.at_end()


def test_what_means_nothing_changes_nothing(server: Server) -> None:
    with Link(server) as link:
        for frame in (["ack", "nobody", 1], ["more", "nobody", 5], ["release", 77]):
            link.say(*frame)
        link.say("cancel", "nobody")
        assert link.hear() == ["canceled", "nobody", False]
        link.say("kill", "nobody")
        assert link.hear()[:3] == ["killed", "nobody", "not_found"]


def test_jobs_that_wait_when_the_supervisor_stops_are_answered_before_the_end(server: Server) -> None:
    with Link(server) as link:
        link.say("submit", "r", "wait", encode({"name": "Ada"}))
        assert link.hear() == ["accepted", "r", 1]
        server.process.terminate()
        while (frame := link.hear())[0] != "error":
            pass
        assert frame[:3] == ["error", "r", 1]
        until(link.at_end)
