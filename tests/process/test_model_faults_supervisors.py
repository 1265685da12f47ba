"""Whole supervisors with one cache: who downloads, what a death leaves to the other, and where a token is seen."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gen_worker.testing import LoopbackHub, Slow, Stall
from tests.fetchers import config_for, visible
from tests.served import Server, alive, serving, until

pytestmark = pytest.mark.process

WEIGHTS = os.urandom(3 << 20).hex().encode()
FILES = {"weights.txt": WEIGHTS, "config.json": b"{}"}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


def variables(hub: LoopbackHub, cache: Path) -> dict[str, str]:
    """Return the environment of a server that keeps its models in this cache."""
    own = {"TENSORHUB_CACHE_DIR": str(cache), "HF_HOME": "", "HF_TOKEN": hub.token, "GEN_WORKER_HOST_CACHE_BYTES": "0"}
    return hub.variables() | own


def fetcher_of(server: Server) -> int:
    """Return the pid of a server's fetcher."""
    command = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in server.processes()}
    return next(pid for pid, line in command.items() if b"gen_worker.fetch" in line)


@pytest.mark.promise(27)
def test_two_supervisors_that_need_one_model_at_once_download_it_once(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_repo("acme/first", FILES)
    hub.fail("weights.txt", Slow(4.0 * (1 << 20)))
    own = variables(hub, tmp_path / "cache")
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
    with (
        serving(folders[0], module="shelf", variables=own) as one,
        serving(folders[1], module="shelf", variables=own) as other,
        one.connect() as first,
        other.connect() as second,
    ):
        for connection in (first, second):
            connection.send("first", "job")
        for connection in (first, second):
            answer = connection.frame()
            assert answer["events"][-1]["value"]["text"].encode() == WEIGHTS
    assert hub.wire_bytes("weights.txt") == len(WEIGHTS)


@pytest.mark.promise(27)
def test_a_supervisor_that_is_killed_in_the_middle_of_a_download_leaves_it_to_the_other(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.add_repo("acme/first", FILES)
    hub.fail("weights.txt", Stall(1 << 20, 60.0), times=1)
    own = variables(hub, tmp_path / "cache")
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
    with serving(folders[0], module="shelf", variables=own) as one, one.connect() as lost:
        lost.send("first", "lost")
        until(lambda: list(tmp_path.rglob("*.part")), what="the download")
        fetcher = fetcher_of(one)
        with serving(folders[1], module="shelf", variables=own) as other, other.connect() as waiting:
            waiting.send("first", "waiting")
            one.signal(signal.SIGKILL)
            answer = waiting.frame()
            assert answer["events"][-1]["value"]["text"].encode() == WEIGHTS
        until(lambda: not alive(fetcher), what="the end of its fetcher")
    assert not list(tmp_path.rglob("*.part*"))
    assert len(visible(config_for(tmp_path / "cache"))) == len(FILES)


@pytest.mark.promise(39)
def test_the_token_is_seen_by_the_hub_and_nowhere_else(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_repo("acme/first", FILES, gated=True)
    with serving(tmp_path, module="shelf", variables=variables(hub, tmp_path / "cache")) as server:
        assert server.ask("first")["ok"]
        assert not server.ask("gated")["ok"]
        os.kill(fetcher_of(server), signal.SIGABRT)
        until(lambda: any("fetcher" in event for event in server.events()), what="the news of its death")
        pids = [*server.processes(), server.zygote()]
        seen = {f"/proc/{pid}/{name}" for pid in pids for name in ("environ", "cmdline")}
        shown = [Path(name).read_bytes() for name in seen if Path(name).exists()]
        shown += [json.dumps(server.events()).encode(), server.log().encode(), repr(server.status()).encode()]
    shown += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in shown if hub.token.encode() in text]
    assert any(request.token == hub.token for request in hub.requests)
    assert hub.leaks == []
