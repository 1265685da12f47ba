"""Functions that take batches, in a running server."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.served import Server, serving, text_of, until

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("batching"), module="batching") as server:
        server.ask("shout", text="warm")
        server.ask("sing", text="warm")
        yield server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """One whose children die."""
    with serving(tmp_path, module="batching") as server:
        server.ask("shout", text="warm")
        yield server


def send_all(server: Server, function: str, *texts: str, prefix: str) -> dict[str, dict[str, Any]]:
    with server.connect() as connection:
        for number, text in enumerate(texts):
            connection.send(function, f"{prefix}-{number}", text=text)
        return connection.frames(len(texts))


def values(answers: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [answers[key]["events"][-1]["value"] for key in sorted(answers, key=lambda key: int(key.split("-")[-1]))]


def test_requests_that_come_together_run_in_one_call_and_each_gets_its_own_answer(server: Server) -> None:
    made = values(send_all(server, "shout", *(f"w{n}" for n in range(8)), prefix="together"))
    assert [value["text"] for value in made] == [f"W{n}" for n in range(8)]
    assert max(value["together"] for value in made) > 1


def test_a_batch_has_no_more_requests_than_its_function_takes(server: Server) -> None:
    made = values(send_all(server, "sing", *(f"w{n}" for n in range(11)), prefix="many"))
    assert [value["text"] for value in made] == [f"W{n}" for n in range(11)]
    assert 1 < max(value["together"] for value in made) <= 4


def test_a_lone_request_waits_no_longer_than_it_may(server: Server) -> None:
    began = time.monotonic()
    assert text_of(server.ask("shout", text="alone")) == "ALONE"
    assert time.monotonic() - began < 5  # a batch that waits for its last member would wait for ever


def test_one_bad_item_fails_by_itself(server: Server) -> None:
    answers = send_all(server, "shout", "a", "refuse", "b", "later", "odd", "c", prefix="bad")
    told = {key: frame.get("error", {}).get("kind", "ok") for key, frame in answers.items()}
    assert told == {
        "bad-0": "ok",
        "bad-1": "invalid",
        "bad-2": "ok",
        "bad-3": "retryable",
        "bad-4": "user_exception",
        "bad-5": "ok",
    }
    assert "returned a `NoneType`" in answers["bad-4"]["error"]["message"]


def test_a_payload_that_does_not_fit_fails_by_itself(server: Server) -> None:
    with server.connect() as connection:
        connection.send("shout", "fit-0", text="a")
        connection.send("shout", "fit-1", text=5)
        connection.send("shout", "fit-2", text="b")
        answers = connection.frames(3)
    assert [answers[f"fit-{n}"]["ok"] for n in range(3)] == [True, False, True]
    assert answers["fit-1"]["error"]["kind"] == "usage"


def test_a_handler_that_raises_costs_only_the_request_that_it_raised_for(server: Server) -> None:
    answers = send_all(server, "shout", "a", "raise", "b", prefix="raise")
    assert [answers[f"raise-{n}"]["ok"] for n in range(3)] == [True, False, True]
    assert answers["raise-1"]["error"]["kind"] == "user_exception"
    assert "nobody expected this word" in answers["raise-1"]["error"]["message"]


def test_a_handler_that_returns_too_few_outputs_is_told_so(server: Server) -> None:
    answer = server.ask("miscount", text="a")
    assert "`miscount` returned 0 outputs for 1 payloads" in answer["error"]["message"]


def test_files_are_saved_for_the_request_that_they_belong_to(server: Server) -> None:
    answers = send_all(server, "shout", "save", "save", prefix="save")
    assert all(frame["ok"] for frame in answers.values())
    saved = {path.name: path.read_text() for path in server.folder.rglob("save-*.txt")}
    assert saved == {"save-0.txt": "save-0", "save-1.txt": "save-1"}


def test_a_crash_costs_only_the_request_that_causes_it(own_server: Server) -> None:
    answers = send_all(own_server, "shout", "a", "b", "die", "c", prefix="die")
    assert [answers[f"die-{n}"]["ok"] for n in range(4)] == [True, True, False, True]
    assert answers["die-2"]["error"]["kind"] == "child_died"


def test_a_cancelled_request_is_answered_at_once_and_its_neighbours_go_on(server: Server) -> None:
    with server.connect() as connection:
        connection.send("shout", "cancel-0", text="a", gate="go")
        connection.send("shout", "cancel-1", text="b")
        server.until_running("cancel-0", "cancel-1")
        with server.connect() as other:
            other.cancel("cancel-1")
            assert other.frame()["ok"]
        assert connection.frame()["error"]["kind"] == "canceled"
        server.open("go")
        answer = connection.frame()
        assert (answer["request_id"], answer["ok"]) == ("cancel-0", True)
    assert server.runs()["cancel-0"] == 1


def test_a_request_that_passes_its_deadline_costs_neither_its_neighbours_nor_their_child(server: Server) -> None:
    before = server.pids()
    with server.connect() as connection:
        connection.send("shout", "late-0", text="a", gate="late")
        connection.line({"function": "shout", "request_id": "late-1", "payload": {"text": "b"}, "timeout_ms": 1000})
        server.until_running("late-0", "late-1")
        late = connection.frame()
        assert (late["request_id"], late["error"]["kind"]) == ("late-1", "deadline")
        server.open("late")
        assert connection.frame()["ok"]
    assert server.runs()["late-0"] == 1
    assert server.pids() == before


def test_whoever_waits_to_run_alone_after_a_batch_is_answered_at_once_when_it_is_cancelled(server: Server) -> None:
    with server.connect() as connection:
        connection.send("shout", "after-0", text="linger", gate="after")
        connection.send("shout", "after-1", text="raise")
        connection.send("shout", "after-2", text="c")
        server.until_running("after-0", "after-1", "after-2")
        server.open("after")
        until(lambda: server.runs()["after-0"] == 2, what="the run of the first by itself")
        with server.connect() as other:
            other.cancel("after-2")
            assert other.frame()["ok"]
        assert connection.frame()["request_id"] == "after-2"
        server.open("lingered")
        assert {connection.frame()["request_id"] for _ in range(2)} == {"after-0", "after-1"}
    assert server.runs()["after-2"] == 1


def test_a_payload_that_does_not_fit_is_answered_before_the_call(server: Server) -> None:
    with server.connect() as connection:
        connection.send("shout", "early-0", text="a", gate="early")
        connection.send("shout", "early-1", text=5)
        assert connection.frame()["request_id"] == "early-1"
        server.open("early")
        assert connection.frame()["ok"]


def test_a_killed_request_leaves_its_neighbours_to_run_again(own_server: Server) -> None:
    with own_server.connect() as connection:
        connection.send("shout", "kill-0", text="a", gate="never")
        connection.send("shout", "kill-1", text="b")
        own_server.until_running("kill-0", "kill-1")
        assert own_server.run("kill", "kill-0", "--now").returncode == 0
        answers = connection.frames(2)
    assert answers["kill-0"]["error"]["kind"] == "killed"
    assert answers["kill-1"]["ok"]


def test_functions_beside_one_that_takes_batches_get_their_turn(server: Server) -> None:
    with server.connect() as connection:
        connection.send("shout", "turn-0", text="a", gate="turn")
        server.until_running("turn-0")
        for number in range(1, 30):
            connection.send("shout", f"turn-{number}", text="a")
        connection.send("alone", "turn-30", text="mine")
        until(lambda: server.job("turn-30") is not None, what="the other function's job")
        server.open("turn")
        order: list[str] = []
        for _ in range(31):
            order.append(str(connection.frame()["request_id"]))
    assert order.index("turn-30") <= 24  # behind two batches that the child was handed before, and one turn


def test_run_gives_a_batch_of_one(tmp_path: Path, server: Server) -> None:
    assert server.run("invoke", "shout", "text=one").stdout.startswith('{"text":"ONE","together":1')
