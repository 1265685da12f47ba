"""The verbs for devices at a terminal: what they ask about, and what Ctrl-C leaves as it is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gen_worker.client import JobError
from tests.served import GEN_WORKER, Server, environment, serving, until
from tests.terminal import terminal

pytestmark = pytest.mark.process


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, devices="cpu:2") as made:
        yield made


def drained(server: Server) -> list[str]:
    return [name for name, device in server.devices().items() if device.drained]


def at_a_terminal(server: Server, *arguments: str, answer: str = "") -> tuple[int | None, str]:
    """Return how a command ends after an answer, and what it showed from then on."""
    with terminal([*GEN_WORKER, *arguments], server.folder, environment(server.folder)) as made:
        if answer:
            made.until("[y/N]:")
            made.type(f"{answer}\n")
        shown = made.end()
        return made.code, shown


def test_what_ends_more_than_it_names_is_asked_about(server: Server) -> None:
    assert at_a_terminal(server, "drain", answer="n")[0] == 130
    assert at_a_terminal(server, "drain", "", "--yes")[0] == 5  # a script's variable that is empty names no device
    assert not drained(server)
    code, shown = at_a_terminal(server, "drain", answer="y")
    assert (code, drained(server)) == (0, ["cpu:0", "cpu:1"])
    assert "`cpu:0`, `cpu:1` are drained" in shown
    assert at_a_terminal(server, "undrain")[0] == 0
    code, _ = at_a_terminal(server, "drain", "cpu:0")
    assert (code, drained(server)) == (0, ["cpu:0"])
    jobs = [server.client.submit("gated-async", {"gate": "never"}, request_id=f"r{number}") for number in range(2)]
    server.until_running("r0", "r1")
    pids = server.pids()
    assert at_a_terminal(server, "restart", "cpu:1", "--now", answer="n")[0] == 130
    assert server.pids() == pids
    assert at_a_terminal(server, "restart", "cpu:1", "--now", "--yes")[0] == 0
    for job in jobs:
        with pytest.raises(JobError, match="restarted by an operator"):
            job.result()


def test_ctrl_c_leaves_a_drain_as_it_is_and_says_how_to_undo_it(server: Server) -> None:
    job = server.client.submit("gated", {"gate": "go"}, request_id="busy")
    server.until_running("busy")
    device = next(name for name, found in server.devices().items() if found.jobs)
    with terminal([*GEN_WORKER, "drain", device], server.folder, environment(server.folder)) as made:
        made.until("waiting for 1 request")
        until(lambda: drained(server))
        made.interrupt("no longer waiting")
        assert f"gen-worker undrain {device}" in made.end()
        assert made.code == 130
    assert drained(server) == [device]
    server.open("go")
    job.result()
