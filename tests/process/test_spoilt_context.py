"""An error that leaves the CUDA context of its child of no use."""

import pytest

from gen_worker.postmortem import folder_in, names
from tests.served import Serve, Server, until

pytestmark = pytest.mark.process


def pid_of_answer(server: Server, function: str) -> int:
    answer = server.ask(function)
    assert answer["ok"], answer
    return int(answer["events"][-1]["value"]["pid"])


@pytest.mark.parametrize("hidden", [False, True], ids=["plainly", "behind the author's own exception"])
def test_it_is_the_answer_of_its_job_and_costs_its_child_and_nothing_else(serve: Serve, hidden: bool) -> None:
    server = serve(module="spoilt")
    before = pid_of_answer(server, "who")
    error = server.ask("spoil", hidden=hidden)["error"]
    assert error["kind"] == ("invalid" if hidden else "user_exception")
    assert error["detail"]["cause"] == "cuda_error"
    until(lambda: server.pids().get("cpu:0", before) != before, what="another child")
    assert pid_of_answer(server, "who") != before
    assert any("spoilt the child's context" in event for event in server.events())
    assert names(folder_in(server.folder / "run")) == [], "its end was wanted"


def test_a_set_up_that_breaks_it_is_tried_again_in_another_child(serve: Serve) -> None:
    server = serve(module="spoilt")
    before = server.pids()["cpu:0"]
    assert pid_of_answer(server, "lucky") != before
