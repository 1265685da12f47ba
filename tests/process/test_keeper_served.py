"""A server's models in host memory are held by a process without secrets: they serve, and nobody sees more by them."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gen_worker.testing import LoopbackHub
from tests.served import Server, alive, serving, until

pytestmark = pytest.mark.process

UNPRIVILEGED = [
    "setpriv",
    "--no-new-privs",
    "--inh-caps=-all",
    "--bounding-set=-all",
]  # a user who may do nothing special
FILES = {"weights.txt": b"first", "config.json": b"{}"}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo("acme/first", FILES)
        yield hub


def variables(hub: LoopbackHub, folder: Path) -> dict[str, str]:
    own = {"TENSORHUB_CACHE_DIR": str(folder / "cache"), "HF_HOME": "", "HF_TOKEN": "", "HOME": str(folder)}
    return {**hub.variables(), **own, "GEN_WORKER_HOST_CACHE_BYTES": "64M"}


@pytest.fixture
def server(hub: LoopbackHub, tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, module="prying", variables=variables(hub, tmp_path)) as server:
        yield server


def pry(server: Server, *pids: int) -> dict[str, Any]:
    frame = server.ask("pry", pids=list(pids))
    assert frame["ok"], frame
    said: dict[str, Any] = frame["events"][-1]["value"]
    return said


def until_in_memory(server: Server) -> None:
    until(lambda: "RAM" in [model.state for model in server.status().models], what="the model in host memory")


def process(server: Server, word: bytes) -> int:
    """Return the pid of the process with this word in its command, 0 when there is none."""
    for pid in server.processes():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if word in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return 0


@pytest.mark.root
def test_a_worker_without_privileges_loads_from_memory_and_its_children_cannot_look_into_it(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    with serving(tmp_path, module="prying", variables=variables(hub, tmp_path), before=UNPRIVILEGED) as server:
        before = pry(server)
        until_in_memory(server)
        (tmp_path / "cache").rename(tmp_path / "gone")
        os.kill(before["pid"], signal.SIGKILL)
        keeper = process(server, b"keeper.py")
        after = pry(server, server.pid, process(server, b"gen_worker.fetch"), keeper)
        assert "CapEff:\t0000000000000000" in Path(f"/proc/{after['pid']}/status").read_text()
    assert (after["text"], after["pid"] != before["pid"]) == ("first", True)
    assert after["seen"] == [f"/proc/{keeper}/{name}" for name in ("environ", "mem", "fd")]


def test_a_keeper_that_is_killed_costs_a_load_from_the_disk_and_memory_fills_again(server: Server) -> None:
    before = pry(server)
    until_in_memory(server)
    keeper = process(server, b"keeper.py")
    os.kill(keeper, signal.SIGKILL)
    until(lambda: any("keeper: died (SIGKILL)" in event for event in server.events()), what="the news of its death")
    assert not Path(f"/proc/{keeper}").exists()
    assert pry(server)["pid"] == before["pid"]
    os.kill(before["pid"], signal.SIGKILL)
    assert pry(server)["text"] == "first"
    assert [model.state for model in server.status().models] != ["FAILED"]
    os.kill(pry(server)["pid"], signal.SIGKILL)
    assert pry(server)["text"] == "first"
    until_in_memory(server)
    assert process(server, b"keeper.py") not in (0, keeper)
    assert not any("verified" in event for event in server.events())


def test_a_load_whose_files_leave_the_memory_meanwhile_is_tried_from_the_disk(
    server: Server, tmp_path: Path, hub: LoopbackHub
) -> None:
    before = pry(server)
    until_in_memory(server)
    downloads = len(hub.requests)
    keeper = process(server, b"keeper.py")
    (tmp_path / "hold").touch()
    os.kill(before["pid"], signal.SIGKILL)
    with server.connect() as connection:
        connection.send("pry", pids=[])
        until((tmp_path / "held").exists, what="the load")
        server.signal(signal.SIGSTOP)  # so that it learns of both at once
        os.kill(keeper, signal.SIGKILL)
        until(lambda: not alive(keeper), what="the keeper's end")
        (tmp_path / "go").touch()
        until((tmp_path / "read").exists, what="the attempt to read")
        server.signal(signal.SIGCONT)
        answer = connection.frame()
    assert answer["ok"], answer
    assert answer["events"][-1]["value"]["text"] == "first"
    told = server.events()
    assert any("`prying:Prying` is loaded again, from the disk" in event for event in told), "\n".join(told)
    assert not any("verified" in event or "setup of" in event for event in told), told
    assert len(hub.requests) == downloads


@pytest.mark.promise(13)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_keeper_does_not_outlive_its_server(server: Server, tmp_path: Path, number: signal.Signals) -> None:
    pry(server)
    until_in_memory(server)
    keeper = process(server, b"keeper.py")
    server.signal(number)
    server.process.wait(20)
    until(lambda: not alive(keeper), what="the keeper's end")
    if number is signal.SIGTERM:
        assert {each.name for each in (tmp_path / "run").iterdir()} <= {"logs", "jobs"}
