"""A job that takes all memory costs its own child, says so, and nobody else notices."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gen_worker_supervisor.memory.usage import tightest
from tests.served import Serve, Server, alive, text_of, until

pytestmark = pytest.mark.process

MIB = 1 << 20
MEMCG = Path("/sys/fs/cgroup/memory")
LIMIT_BYTES = 384 * MIB


def reserve_of_all() -> str:
    """Return a reserve that is not kept from the start: who takes more than usual is over it, on any host."""
    room = tightest()
    assert room is not None
    return str(room.free + (2 << 30))


def score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def error_of(frame: dict[str, Any]) -> dict[str, Any]:
    assert not frame["ok"], frame
    error: dict[str, Any] = frame["error"]
    return error


# --- the guard --------------------------------------------------------------------------------------------------------


@pytest.mark.promise(4)
@pytest.mark.parametrize("how", [{}, {"shared": True}, {"by_a_process": True}], ids=["own", "shared", "by a process"])
def test_the_child_that_takes_most_more_than_usual_is_ended_and_the_others_are_not(
    serve: Serve, how: dict[str, bool]
) -> None:
    server = serve(module="leaky", devices="cpu:2", variables={"GEN_WORKER_MEMORY_RESERVE": reserve_of_all()})
    until(lambda: any("memory: is short" in event for event in server.events()), what="the news of the shortage")
    before = server.pids()
    error = error_of(server.ask("leak", "greedy", most_bytes=200 * MIB, gate="never", **how))
    assert error["kind"] == "child_died"
    assert error["detail"]["cause"] == "host_oom"
    assert "host_oom" in error["message"]
    assert server.runs()["greedy"] == 2  # the second time alone in its child
    homes = server.homes("greedy")
    spared = {device: pid for device, pid in before.items() if pid not in homes}
    assert spared.items() <= server.pids().items() or len(set(homes) & set(before.values())) == 2
    assert text_of(server.ask("idle")) == "idle"
    assert any("is ended: it takes" in event and "more than usual" in event for event in server.events())


def test_a_job_that_killed_its_child_by_its_memory_is_quarantined_like_any_other(serve: Serve) -> None:
    server = serve(module="leaky", variables={"GEN_WORKER_MEMORY_RESERVE": reserve_of_all()})
    for kind in ("child_died", "quarantined"):
        error = error_of(server.ask("leak", most_bytes=200 * MIB, gate="never"))
        assert (error["kind"], error["detail"]["cause"]) == (kind, "host_oom")


def test_with_a_reserve_of_0_nobody_is_ended(serve: Serve) -> None:
    server = serve(module="leaky", variables={"GEN_WORKER_MEMORY_RESERVE": "0"})
    assert text_of(server.ask("leak", most_bytes=100 * MIB)) == "full"
    assert server.status().memory is not None


def test_what_a_child_takes_is_known_with_what_its_processes_take(serve: Serve) -> None:
    server = serve(module="leaky")
    with server.connect() as connection:
        connection.send("leak", "big", most_bytes=100 * MIB, by_a_process=True, gate="go")
        until(lambda: (server.devices()["cpu:0"].own_bytes or 0) > 100 * MIB, what="the memory of both")
        server.open("go")
        assert text_of(connection.frame()) == "full"


@pytest.mark.promise(5)
@pytest.mark.parametrize(("asked", "cause"), [("too-much", "host_oom"), ("full-device", "device_oom")])
def test_a_job_that_asks_for_more_than_there_is_may_be_tried_again_and_its_child_lives(
    serve: Serve, asked: str, cause: str
) -> None:
    server = serve(module="leaky")
    before = server.pids()
    error = error_of(server.ask(asked, "greedy"))
    assert (error["kind"], error["retryable"], error["detail"]["cause"]) == ("out_of_memory", True, cause)
    assert error["detail"]["hint"].startswith("ask for less at once")
    assert server.runs()["greedy"] == 1
    assert text_of(server.ask("idle")) == "idle"
    assert server.pids() == before


# --- whom the kernel would choose -------------------------------------------------------------------------------------


@pytest.mark.promise(4)
def test_the_kernel_ends_a_child_first_then_what_can_be_made_anew_and_the_supervisor_last(serve: Serve) -> None:
    server = serve(module="prying", variables={"GEN_WORKER_HOST_CACHE_BYTES": "64M"})
    own = score(server.pid)
    (child,) = server.pids().values()
    commands = {Path(f"/proc/{pid}/cmdline").read_bytes(): pid for pid in server.processes() if pid != child}
    scores = {
        word: score(pid)
        for word in ("zygote", "gen_worker.fetch", "keeper.py")
        for command, pid in commands.items()
        if word.encode() in command
    }
    assert score(child) == own + 300
    assert {"zygote": own + 150, "gen_worker.fetch": own + 100}.items() <= scores.items()
    assert scores.get("keeper.py", own + 50) == own + 50


@pytest.mark.parametrize("zygote", [True, False], ids=["forked", "spawned"])
def test_a_child_and_all_it_starts_go_before_the_supervisor_however_it_was_made(serve: Serve, zygote: bool) -> None:
    server = serve(module="faulty")
    if not zygote:
        with suppress(ProcessLookupError):
            os.kill(server.zygote(), signal.SIGKILL)
        os.kill(server.pids()["cpu:0"], signal.SIGKILL)
        server.until_idle()
    answer = server.ask("start-helper")
    helper = int(text_of(answer))
    assert score(helper) == score(server.pids()["cpu:0"]) == score(server.pid) + 300


# --- where the kernel limits ------------------------------------------------------------------------------------------


@contextmanager
def cgroup(name: str, limit_bytes: int) -> Iterator[Path]:
    """A cgroup with a limit on its memory, gone at the end."""
    folder = MEMCG / f"gw-tests-{os.getpid()}-{name}"
    folder.mkdir()
    try:
        (folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
        yield folder
    finally:
        until(lambda: not (folder / "cgroup.procs").read_text().strip(), what="the cgroup's end")
        folder.rmdir()


def within(folder: Path) -> list[str]:
    """Return the command that runs another one in a cgroup."""
    return ["sh", "-c", f'echo $$ > "{folder}/cgroup.procs" && exec "$@"', "sh"]


limited = pytest.mark.skipif(
    not os.access(MEMCG / "memory.limit_in_bytes", os.W_OK), reason="needs cgroup v1 with its memory controller"
)


@pytest.mark.root
@limited
@pytest.mark.promise(4)
@pytest.mark.parametrize(
    ("limit_bytes", "bytes_s"), [(LIMIT_BYTES, 250 * MIB), (2 * LIMIT_BYTES, 1024 * MIB)], ids=["slow", "fast"]
)
def test_a_leak_in_a_limited_container_is_stopped_before_the_kernel_stops_it(
    serve_in: "ServeIn", limit_bytes: int, bytes_s: float
) -> None:
    with serve_in("guarded", limit_bytes, devices="cpu:2") as (server, folder):
        error = error_of(server.ask("leak", "greedy", most_bytes=1024 * MIB, bytes_s=bytes_s, gate="never"))
        assert error["detail"]["cause"] == "host_oom", error
        memory = server.status().memory
        assert memory is not None
        assert (memory.source, memory.limit, memory.oom_kills) == ("cgroup v1", limit_bytes, 0)
        assert "oom_kill 0" in (folder / "memory.oom_control").read_text()
        assert text_of(server.ask("idle")) == "idle"
        assert alive(server.pid)


@pytest.mark.root
@limited
@pytest.mark.promise(4)
def test_where_the_kernel_was_first_the_child_is_its_victim_and_the_cause_is_told(serve_in: "ServeIn") -> None:
    with serve_in("unguarded", GEN_WORKER_MEMORY_RESERVE="0") as (server, folder):
        error = error_of(server.ask("leak", "greedy", most_bytes=600 * MIB))
        assert error["detail"]["cause"] == "host_oom", error
        assert error["detail"]["signal"] == "SIGKILL"
        assert int((folder / "memory.oom_control").read_text().split()[-1]) >= 2  # and a zygote, where that was quicker
        assert alive(server.pid)
        assert text_of(server.ask("idle")) == "idle"


class ServeIn:
    """Starts servers in cgroups of their own."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve

    @contextmanager
    def __call__(
        self, name: str, limit_bytes: int = LIMIT_BYTES, *, devices: str = "cpu:1", **variables: str
    ) -> Iterator[tuple[Server, Path]]:
        with cgroup(name, limit_bytes) as folder:
            server = self._serve(module="leaky", devices=devices, before=within(folder), variables=variables)
            try:
                yield server, folder
            finally:
                server.close()


@pytest.fixture
def serve_in(serve: Serve) -> ServeIn:
    return ServeIn(serve)
