"""What clients do to their connections touches their own requests and nobody else's."""

import time

import pytest

from tests.served import Serve, Server, text_of, until

pytestmark = pytest.mark.process


def has_ended(server: Server, request_id: str) -> bool:
    ended = server.folder / "ended"
    return ended.exists() and ended.read_text() == request_id


# --- clients that go --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["tick", "tick-async"])
def test_a_client_that_goes_in_the_middle_of_a_stream_cancels_that_job_and_no_other(
    serve: Serve, function: str
) -> None:
    server = serve(devices="cpu:2")
    pids = server.pids()
    with server.connect() as other:
        other.send("gated", "other", text="undisturbed", gate="go")
        other.send("gated-async", "neighbour", text="undisturbed", gate="go")
        server.until_running("other", "neighbour")
        with server.connect() as leaving:
            leaving.send(function, "left", stream=True)
            for _ in range(3):
                leaving.frame()
        until(lambda: has_ended(server, "left"))
        until(lambda: server.job("left") is None)
        server.open("go")
        assert {text_of(answer) for answer in other.frames(2).values()} == {"undisturbed"}
    assert server.pids() == pids
    assert server.runs() == {"other": 1, "neighbour": 1, "left": 1}


def test_a_client_that_waits_for_a_buffered_answer_and_goes_cancels_its_job(serve: Serve) -> None:
    server = serve()
    with server.connect() as leaving:
        leaving.send("poll", "left")
        server.until_running("left")
    until(lambda: has_ended(server, "left"))
    assert text_of(server.ask("echo", text="next")) == "next"


def test_a_client_that_goes_takes_its_queued_requests_along(serve: Serve) -> None:
    server = serve()
    with server.connect() as other:
        other.send("gated", "other", text="right", gate="go")
        server.until_running("other")
        with server.connect() as leaving:
            for number in range(5):
                leaving.send("gated", f"left-{number}", gate="go")
            until(lambda: len(server.status().jobs) == 6)
        until(lambda: len(server.status().jobs) == 1)
        server.open("go")
        assert text_of(other.frame()) == "right"
    assert server.runs() == {"other": 1}


def test_a_client_that_only_ends_its_half_gets_its_answers(serve: Serve) -> None:
    server = serve()
    with server.connect() as connection:
        connection.send("gated", "first", text="first", gate="go")
        connection.send("echo", "second", text="second")
        connection.end()
        server.until_running("first")
        assert connection.is_silent()
        server.open("go")
        answers = connection.frames(2)
        assert {name: text_of(answer) for name, answer in answers.items()} == {"first": "first", "second": "second"}
        assert connection.read() is None


def test_a_last_line_without_a_newline_is_a_request_too(serve: Serve) -> None:
    server = serve()
    with server.connect() as connection:
        connection.write(b'{"function":"echo","payload":{"text":"cut"}}')
        connection.end()
        assert text_of(connection.frame()) == "cut"
        assert connection.read() is None


# --- clients that are slow --------------------------------------------------------------------------------------------


@pytest.mark.promise(12)
def test_a_reader_that_stops_holds_back_the_handler_and_nobody_else(serve: Serve) -> None:
    items, item_bytes = 20_000, 1000
    server = serve(devices="cpu:2")
    with server.connect() as connection:
        connection.send("count", "slow", stream=True, times=items, text="x" * item_bytes)
        stopped_at = until_steady(server)
        assert stopped_at >= 32
        assert stopped_at * item_bytes < 2 << 20  # the window, and what socket and transport took: under 1 MiB
        assert text_of(server.ask("echo", text="others")) == "others"
        for number in range(items):
            assert connection.frame()["value"]["text"].startswith(f"{number} x")
        assert connection.frame()["value"] == {"yielded": items}
        assert connection.frame()["done"] is True


def until_steady(server: Server) -> int:
    """Wait until the handler has not moved for a while; return where it stands."""
    counted = server.folder / "counted"
    seen = -1, time.monotonic()

    def steady() -> bool:
        nonlocal seen
        now = int(counted.read_text() or -1) if counted.exists() else -1
        if now != seen[0] or now < 0:
            seen = now, time.monotonic()
        return time.monotonic() - seen[1] > 0.3

    until(steady)
    return seen[0]


# --- several requests on one connection -------------------------------------------------------------------------------


def test_answers_of_named_requests_come_as_they_are_ready(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    with server.connect() as connection:
        connection.send("gated", "slow", text="slow", gate="go")
        server.until_running("slow")
        connection.send("echo", "quick", text="quick")
        assert text_of(connection.frame()) == "quick"
        server.open("go")
        assert text_of(connection.frame()) == "slow"


def test_answers_of_unnamed_requests_come_in_the_order_of_the_requests(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    with server.connect() as connection:
        connection.send("gated", text="slow", gate="go")
        for number in range(5):
            connection.send("echo", text=str(number))
        connection.send("count", stream=True, times=3)
        connection.send("echo", text="last")
        connection.send("echo", "named", text="overtakes")
        assert connection.frame()["request_id"] == "named"
        assert connection.is_silent()
        server.open("go")
        assert [text_of(connection.frame()) for _ in range(6)] == ["slow", "0", "1", "2", "3", "4"]
        stream = [connection.frame() for _ in range(5)]
        assert [frame.get("event") for frame in stream] == ["yield", "yield", "yield", "result", None]
        assert text_of(connection.frame()) == "last"


def test_hundreds_of_requests_in_one_write_are_each_answered_once(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    lines = [f'{{"function":"echo","request_id":"{n}","payload":{{"text":"{n}"}}}}\n' for n in range(500)]
    with server.connect() as connection:
        connection.write("".join(lines).encode())
        answers = connection.frames(500)
        connection.end()
        assert connection.read() is None
    assert {name: text_of(answer) for name, answer in answers.items()} == {str(n): str(n) for n in range(500)}


def test_a_request_id_that_is_live_cannot_be_used_again_until_it_has_ended(serve: Serve) -> None:
    server = serve()
    with server.connect() as connection:
        connection.send("gated", "same", text="first", gate="go")
        server.until_running("same")
        refused = server.ask("echo", "same", text="second")
        assert refused["error"]["kind"] == "usage"
        assert "`same` is running already" in refused["error"]["message"]
        server.open("go")
        assert text_of(connection.frame()) == "first"
    assert text_of(server.ask("echo", "same", text="third")) == "third"
