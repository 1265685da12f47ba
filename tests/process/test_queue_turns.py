"""Whose turn it is at a real server, and what becomes of readers of the control socket that take nothing."""

import time
from typing import Any, cast

import pytest

from gen_worker.client import JobError
from gen_worker.client.handle import MORE_AFTER_S
from gen_worker_supervisor.clients.control import STALLED_S
from tests.process.test_control_by_hand import Link
from tests.served import Connection, Serve, text_of, until

pytestmark = [pytest.mark.process, pytest.mark.quiet]

FLOOD = 500


def answers(connection: Connection, until_id: str) -> list[str]:
    """Return the ids in the order in which they are answered, up to one."""
    order: list[str] = []
    while not order or order[-1] != until_id:
        frame = connection.frame()
        assert frame["ok"], frame
        order.append(frame["request_id"])
    return order


@pytest.mark.promise(34)
def test_one_tenants_flood_delays_another_tenants_first_job_by_one_job(serve: Serve) -> None:
    server = serve()
    with server.connect() as gate, server.connect() as connection:
        gate.send("gated", "gate", gate="go")
        server.until_running("gate")
        for number in range(FLOOD):
            connection.line({"function": "echo", "request_id": f"a-{number}", "tenant": "a", "payload": {"text": "x"}})
        connection.line({"function": "echo", "request_id": "b", "tenant": "b", "payload": {"text": "x"}})
        until(lambda: len(server.status().jobs) == FLOOD + 2, what="the queue")
        told = server.job("b")
        assert told is not None
        assert (told.tenant, told.position) == ("b", 2)
        server.open("go")
        assert answers(connection, "b") == ["a-0", "b"]


def test_an_urgent_job_of_any_client_goes_before_those_that_wait(serve: Serve) -> None:
    server = serve()
    client = server.client
    gate = client.submit("gated", {"gate": "go"}, request_id="gate")
    server.until_running("gate")
    with server.connect() as connection:
        for number in range(3):
            connection.send("echo", f"usual-{number}", text="x")
        until(lambda: len(server.status().jobs) == 4, what="the queue")
        job = client.submit("echo", {"text": "now"}, request_id="urgent", tenant="ada", priority=7)
        until(lambda: server.job("urgent") is not None, what="the urgent job")
        assert [(each.id, each.position) for each in server.status().jobs] == [
            ("gate", None),
            ("urgent", 1),
            ("usual-0", 2),
            ("usual-1", 3),
            ("usual-2", 4),
        ]
        server.open("go")
        gate.result()
        assert job.result()["text"] == "now"
        answers(connection, "usual-2")


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"priority": 101}, "Expected `int` <= 100", "a `priority` of 101, it may be from -100 to 100"),
    ({"tenant": "x" * 257}, "length <= 256", "a `tenant` is printable text of at most 256 characters"),
    ({"tenant": "a\nb"}, "a `tenant` is printable text", "a `tenant` is printable text"),
    ({"priority": 1.5}, "Expected `int`", ""),
    ({"tenant": 7}, "Expected `str`", ""),
]


def test_a_tenant_and_a_priority_have_limits_on_both_sockets(serve: Serve) -> None:
    server = serve()
    for fields, told, told_on_control in WRONG:
        with server.connect() as connection:
            connection.line({"function": "echo", "request_id": "r", "payload": {}, **fields})
            error = connection.frame()["error"]
            assert (error["kind"], told in error["message"]) == ("usage", True), error
        if told_on_control:
            with pytest.raises(JobError) as refused:
                server.client.call("echo", {}, **fields)
            assert (refused.value.kind, told_on_control in str(refused.value)) == ("usage", True)
    assert text_of(server.ask("echo", text="on")) == "on"
    with pytest.raises(TypeError):
        server.client.call("echo", {}, priority=cast(int, 1.5))
    assert server.client.call("echo", {"text": "on"})["text"] == "on"


@pytest.mark.promise(34)
def test_clients_are_told_when_to_come_again(serve: Serve) -> None:
    server = serve(variables={"GEN_WORKER_MAX_QUEUED": "2"})
    client = server.client
    running = client.submit("gated", {"gate": "go"}, request_id="gate")
    server.until_running("gate")
    waiting = [client.submit("echo", {"text": "x"}) for _ in range(2)]
    with pytest.raises(JobError) as refused:
        client.call("echo", {"text": "x"})
    assert (refused.value.kind, refused.value.retryable) == ("busy", True)
    assert refused.value.retry_after_s is not None
    assert 0.1 <= refused.value.retry_after_s <= 60.0
    told = server.run("invoke", "echo", "x")
    assert "hint: try again in " in told.stderr
    server.open("go")
    for job in (running, *waiting):
        job.result()


# --- readers of the control socket ------------------------------------------------------------------------------------


@pytest.mark.promise(12)
def test_a_stream_of_which_nobody_takes_an_item_is_canceled_and_frees_its_child(serve: Serve) -> None:
    server = serve(limits={"stalled_s": 0.5})
    client = server.client
    job = client.submit("count", {"times": 100_000, "text": "x"}, request_id="unread", stream=True)
    server.until_running("unread")
    with server.connect() as witness:
        witness.send("echo", "behind", text="served")
        assert text_of(witness.frame()) == "served"
    assert any("nobody has taken an item of `unread` for 0.5 s" in each for each in server.events())
    with pytest.raises(JobError) as ended:
        job.result()
    assert ended.value.kind == "canceled"


@pytest.mark.promise(12)
def test_a_stream_that_is_taken_goes_on_however_long_it_is(serve: Serve) -> None:
    server = serve(limits={"stalled_s": 0.5})
    began = time.monotonic()
    for _ in server.client.stream("count", {"times": 100_000, "text": "x" * 100}):
        if time.monotonic() - began > 1.2:
            break
    else:
        raise AssertionError("it is over already")
    assert not any("nobody has taken" in each for each in server.events())


def test_a_slow_reader_is_heard_of_long_before_it_is_taken_for_gone() -> None:
    assert 4 * MORE_AFTER_S < STALLED_S


@pytest.mark.promise(12)
def test_a_client_of_the_control_socket_that_takes_no_frame_is_cut_off(serve: Serve) -> None:
    server = serve(limits={"stalled_s": 0.5})
    with Link(server) as link:
        for _ in range(1000):
            link.say("list")
        until(lambda: any("a client has taken nothing for 0.5 s" in each for each in server.events()), what="its end")
        assert text_of(server.ask("echo", text="others")) == "others"
