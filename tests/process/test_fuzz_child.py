"""A child that sends its supervisor anything: it is killed, its job gets one answer, everyone else goes on."""

from typing import Any

import pytest

from gen_worker.client import JobError
from tests.served import Serve, Server, descriptors, text_of, until

pytestmark = pytest.mark.process

LIES: list[dict[str, Any]] = [
    *({"how": "rubbish", "text": text} for text in ("x", "\x93\x01\x02\x91", "\xff" * 100, "\xdd\xff\xff\xff\xff")),
    *({"how": "event", "text": text} for text in ("", "no json", "[1]", '{"a":\n1}', '{"message":1}', "[" * 50_000)),
    {"how": "progress", "text": '{"progress":"far"}'},
    *({"how": how} for how in ("long", "deep", "number", "descriptors", "empty", "need", "negative", "save")),
    *({"how": how} for how in ("result", "end", "item", "start", "return", "region", "hello", "ready", "load")),
    *({"how": how} for how in ("call", "took", "wants", "inputs")),
]


GROUP = 4  # with five payloads that kill, a function is stopped


@pytest.mark.promise(9, 43)
@pytest.mark.parametrize("first", range(0, len(LIES), GROUP))
def test_a_child_that_sends_rubbish_or_forgeries_is_killed_and_its_job_answered_once(serve: Serve, first: int) -> None:
    server = serve(module="liar", devices="cpu:2")
    for lie in LIES[first : first + GROUP]:
        with server.connect() as connection:
            if lie["how"] in ("event", "progress"):
                lie = {**lie, "job": next_number(server)}
            connection.send("forge", "guilty", **lie)
            frame = connection.frame()
            assert (frame["request_id"], frame["error"]["kind"]) == ("guilty", "child_died"), (lie, frame)
            connection.send("echo", "after", text="well")
            assert text_of(connection.frame()) == "well"
            assert connection.is_silent()
    assert len([line for line in server.log().splitlines() if "broke the protocol" in line]) >= 2 * GROUP - 2
    assert "Traceback" not in server.log()


def next_number(server: Server) -> int:
    """Return the number that the next job will have."""
    status = server.status()
    return status.jobs_done + status.jobs_failed + 1


@pytest.mark.promise(43)
def test_a_child_cannot_answer_a_job_of_another_child(serve: Serve) -> None:
    server = serve(module="liar", devices="cpu:2")
    with server.connect() as victim, server.connect() as attacker:
        number = next_number(server)
        victim.send("hold", "victim", text="mine")
        until(lambda: server.job("victim"), what="the victim running")
        attacker.send("forge", "attack", how="result", job=number)
        frame = attacker.frame()
        assert (frame["request_id"], frame["error"]["kind"]) == ("attack", "child_died")
        assert victim.is_silent()
        victim.cancel("victim")
        kinds = [frame.get("error", {}).get("kind") for frame in (victim.frame(), victim.frame())]
        assert sorted(kinds, key=str) == [None, "canceled"]


def test_descriptors_that_nobody_asked_for_are_closed(serve: Serve) -> None:
    server = serve(module="liar", devices="cpu:2")
    assert server.ask("whisper", how="")["ok"]
    server.until_idle()
    before = len(descriptors(server.pid))
    for _ in range(3):
        assert server.ask("whisper", how="")["ok"]
    until(lambda: len(descriptors(server.pid)) <= before, what="no descriptor more than before")


def test_an_author_may_say_a_lot(serve: Serve) -> None:
    server = serve(module="liar", devices="cpu:2")
    before = server.pids()
    assert text_of(server.ask("chatter", how="")) == "said"
    assert server.pids() == before


def test_long_last_words_reach_the_client_that_waits_for_them(serve: Serve) -> None:
    server = serve(module="liar", devices="cpu:2")
    with pytest.raises(JobError) as raised:
        server.client.call("shriek", {"how": ""})
    assert raised.value.kind == "child_died"
    assert server.client.call("echo", {"text": "well"}) == {"text": "well"}
