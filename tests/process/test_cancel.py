"""A cancel frame ends the request it names, and is answered when that has really ended."""

import pytest

from tests.served import Serve, Server, text_of, until

pytestmark = pytest.mark.process


def cancel(server: Server, request_id: str) -> dict[str, object]:
    with server.connect() as connection:
        connection.cancel(request_id)
        return connection.frame()


def canceled(request_id: str) -> dict[str, object]:
    return {"ok": True, "canceled": True, "request_id": request_id}


@pytest.mark.parametrize("function", ["poll", "poll-async", "tick", "tick-async"])
def test_a_cancel_is_answered_when_the_handler_has_ended(serve: Serve, function: str) -> None:
    server = serve()
    with server.connect() as connection:
        connection.send(function, "running", stream=function.startswith("tick"))
        server.until_running("running")
        assert cancel(server, "running") == canceled("running")
        assert (server.folder / "ended").read_text() == "running"
        while (frame := connection.frame()).get("event") == "yield":
            pass
    assert frame["error"]["kind"] == "canceled"
    assert server.job("running") is None
    assert server.runs() == {"running": 1}


def test_a_cancel_waits_for_a_handler_that_takes_its_time(serve: Serve) -> None:
    server = serve()
    with server.connect() as connection, server.connect() as canceler:
        connection.send("poll", "slow", gate="tidied-up")
        server.until_running("slow")
        canceler.cancel("slow")
        canceler.end()  # as `nc` does: the answer is still due
        until(lambda: (job := server.job("slow")) is not None and job.status == "ending")
        assert canceler.is_silent()
        assert connection.is_silent()
        server.open("tidied-up")
        assert canceler.frame() == canceled("slow")
        assert canceler.read() is None
        assert connection.frame()["error"]["kind"] == "canceled"


@pytest.mark.promise(49)
def test_a_request_in_the_queue_is_canceled_at_once_and_never_runs(serve: Serve) -> None:
    server = serve()
    with server.connect() as connection:
        connection.send("gated", "running", text="running", gate="go")
        server.until_running("running")
        connection.send("gated", "queued", gate="go")
        until(lambda: server.job("queued"))
        assert cancel(server, "queued") == canceled("queued")
        assert connection.frame()["error"]["kind"] == "canceled"
        server.open("go")
        assert text_of(connection.frame()) == "running"
    assert server.runs() == {"running": 1}


@pytest.mark.promise(49)
def test_a_job_that_its_child_holds_but_has_not_started_is_canceled_and_never_runs(serve: Serve) -> None:
    server = serve()
    server.open("open")
    for number in range(10):
        server.ask("gated", f"fast-{number}", gate="open")  # known to be fast, so that such jobs are handed out ahead
    with server.connect() as connection:
        connection.send("gated", "running", text="running", gate="go")
        server.until_running("running")
        connection.send("gated", "held", gate="open")
        until(lambda: server.devices()["cpu:0"].jobs == 2)
        assert cancel(server, "held") == canceled("held")
        assert connection.frame()["error"]["kind"] == "canceled"
        server.open("go")
        assert text_of(connection.frame()) == "running"
    assert "held" not in server.runs()


@pytest.mark.promise(49)
def test_a_cancel_right_behind_its_request_is_not_lost(serve: Serve) -> None:
    server = serve()
    for number in range(30):
        with server.connect() as connection:
            connection.send("poll", f"brief-{number}")
            connection.cancel(f"brief-{number}")
            kinds = sorted(str(frame.get("canceled", "answer")) for frame in (connection.frame(), connection.frame()))
            assert kinds == ["True", "answer"]


def test_a_cancel_of_nothing_says_so(serve: Serve) -> None:
    server = serve()
    assert cancel(server, "nothing") == {"ok": True, "canceled": False, "request_id": "nothing"}
    server.ask("echo", "finished")
    assert cancel(server, "finished") == {"ok": True, "canceled": False, "request_id": "finished"}


def test_a_cancel_of_one_job_leaves_its_neighbours_alone(serve: Serve) -> None:
    server = serve()
    with server.connect() as connection:
        for each in ("one", "two", "three"):
            connection.send("gated-async", each, text=each, gate="go")
        server.until_running("one", "two", "three")
        assert cancel(server, "two") == canceled("two")
        assert connection.frame()["request_id"] == "two"
        server.open("go")
        answers = connection.frames(2)
    assert {name: text_of(answer) for name, answer in answers.items()} == {"one": "one", "three": "three"}
    assert server.runs() == {"one": 1, "two": 1, "three": 1}
