"""Children are forked from a process that has imported what they need, and spawned where that cannot be."""

import os
import re
import signal
import statistics
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.served import Serve, Server, alive, private_bytes, serving, text_of, until

pytestmark = pytest.mark.process

MIB = 1 << 20


def parent_of(pid: int) -> int:
    return psutil.Process(pid).ppid()


def is_forked(pid: int) -> bool:
    """Whether a child came from a zygote, whose command line it then has."""
    return b"gen_worker_child.zygote" in Path(f"/proc/{pid}/cmdline").read_bytes()


def kill_zygote(server: Server) -> int:
    zygote = server.zygote()
    os.kill(zygote, signal.SIGKILL)
    until(lambda: not alive(zygote))
    return zygote


# --- who makes children -----------------------------------------------------------------------------------------------


def test_the_supervisor_is_the_parent_of_children_that_the_zygote_forked(serve: Serve) -> None:
    server = serve(devices="cpu:3")
    pids = server.pids()
    assert len(pids) == 3
    assert all(is_forked(pid) for pid in pids.values())
    assert {parent_of(pid) for pid in pids.values()} == {server.pid}
    assert set(server.processes()) == {*pids.values(), server.zygote()}
    assert any(event.startswith("zygote: ready: new children are forked from it") for event in server.events())


def test_the_true_end_of_a_forked_child_is_known(serve: Serve) -> None:
    server = serve()
    frame = server.ask("die", text="exit")
    assert frame["error"]["detail"]["exit_code"] == 7


@pytest.mark.promise(46)
def test_a_replacement_is_forked_and_says_hello(serve: Serve) -> None:
    server = serve()
    for _ in range(2):
        server.until_idle()
        os.kill(server.pids()["cpu:0"], signal.SIGKILL)
        assert text_of(server.ask("echo", text="next")) == "next"
    hellos = [re.search(r"child \d+ started in (\d+) ms", event) for event in server.events()]
    took_ms = [int(found[1]) for found in hellos if found]
    assert len(took_ms) == 3
    assert min(took_ms[1:]) < 100  # the first waits for the zygote itself
    assert is_forked(server.pids()["cpu:0"])


# --- when the zygote is gone, or unfit --------------------------------------------------------------------------------


def test_children_outlive_their_zygote_and_are_still_replaced(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    pids = server.pids()
    with server.connect() as connection:
        connection.send("gated", "running", text="undisturbed", gate="go")
        server.until_running("running")
        kill_zygote(server)
        assert server.pids() == pids
        (busy,) = server.homes("running")
        idle = next(pid for pid in pids.values() if pid != busy)
        os.kill(idle, signal.SIGKILL)
        assert text_of(server.ask("echo", text="next")) == "next"
        until(lambda: len(server.pids()) == 2 and idle not in server.pids().values())
        server.open("go")
        assert text_of(connection.frame()) == "undisturbed"
    assert any("zygote: died" in event for event in server.events())


def test_a_zygote_that_is_stuck_does_not_keep_a_device_without_a_child(serve: Serve) -> None:
    server = serve()
    zygote = server.zygote()
    os.kill(zygote, signal.SIGSTOP)
    os.kill(server.pids()["cpu:0"], signal.SIGKILL)
    assert text_of(server.ask("echo", text="next")) == "next"
    assert not alive(zygote)


def test_when_no_zygote_lives_long_enough_children_are_spawned(serve: Serve) -> None:
    server = serve()

    def said(what: str) -> int:
        return sum(event.startswith(f"zygote: {what}") for event in server.events())

    for number in (1, 2, 3):
        until(lambda: said("ready") == number)  # noqa: B023 - called before the next turn
        kill_zygote(server)
    until(lambda: said("died") == 3)
    os.kill(server.pids()["cpu:0"], signal.SIGKILL)
    assert text_of(server.ask("echo", text="next")) == "next"
    child = server.pids()["cpu:0"]
    assert not is_forked(child)
    assert parent_of(child) == server.pid
    assert text_of(server.ask("tidy", text="all else too")) == "all else too"


MAIN = """
import msgspec, safetensors
from gen_worker import RequestContext, endpoint

class Text(msgspec.Struct):
    text: str

@endpoint
def echo(ctx: RequestContext, payload: Text) -> Text:
    return payload
"""
THREADED = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
PICKY = """
import os, sys
if sys.argv[0] == "gen-worker zygote" and "GEN_WORKER_LOCAL_DEVICE" not in os.environ:
    raise ImportError("not in a zygote")
"""


def serve_with(serve: Serve, folder: Path, safetensors: str) -> Server:
    """Serve an endpoint that imports a `safetensors` of its own, which the zygote will import too."""
    (folder / "project").mkdir()
    (folder / "project" / "safetensors.py").write_text(safetensors)
    (folder / "project" / "main.py").write_text(MAIN)
    return serve(module="main", cwd=folder / "project", variables={"PYTHONPATH": str(folder / "project")})


def test_a_zygote_that_imports_left_with_threads_is_not_used_and_that_is_said(serve: Serve, tmp_path: Path) -> None:
    server = serve_with(serve, tmp_path, THREADED)
    (event,) = (event for event in server.events() if event.startswith("zygote: "))
    assert event == "zygote: not used: importing left 2 threads running; children are spawned"
    for _ in range(2):
        assert text_of(server.ask("echo", text="spawned")) == "spawned"
        child = server.pids()["cpu:0"]
        assert not is_forked(child)
        os.kill(child, signal.SIGKILL)
        until(lambda: child not in server.pids().values())  # noqa: B023 - called before the next turn
        server.until_idle()
    assert server.processes() == list(server.pids().values())


def test_a_module_that_only_the_zygote_cannot_import_is_left_out_and_that_is_said(serve: Serve, tmp_path: Path) -> None:
    server = serve_with(serve, tmp_path, PICKY)
    assert "zygote: left out an import: safetensors: ImportError: not in a zygote" in server.events()
    assert text_of(server.ask("echo", text="serves")) == "serves"
    assert is_forked(server.pids()["cpu:0"])


# --- with torch -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of an endpoint that imports torch; its children have run nothing yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        with serving(tmp_path_factory.mktemp("torch"), module="with_torch", devices="cpu:2") as server:
            yield server


@pytest.mark.needs("torch")
def test_a_forked_child_shares_the_memory_of_what_the_zygote_imported(torch_server: Server) -> None:
    assert maps(torch_server.zygote(), "libtorch")
    for pid in torch_server.pids().values():
        assert is_forked(pid)
        assert maps(pid, "libtorch")
    assert statistics.median(map(private_bytes, torch_server.pids().values())) < 12 * MIB


@pytest.mark.needs("torch")
def test_children_share_the_cores_and_have_no_thread_of_torch_for_every_core_each(torch_server: Server) -> None:
    (event,) = torch_server.ask("multiply")["events"]
    assert event["value"]["threads"] == max(1, len(os.sched_getaffinity(torch_server.pid)) // 2)


@pytest.mark.promise(4)
@pytest.mark.needs("torch")
def test_the_supervisor_stays_small_and_never_loads_torch(torch_server: Server) -> None:
    with torch_server.connect() as connection:
        for number in range(50):
            connection.send("multiply", str(number), rows=128)
        answers = connection.frames(50)
    assert {answer["events"][0]["value"]["value"] for answer in answers.values()} == {128.0**3}
    assert not maps(torch_server.pid, "torch")
    assert psutil.Process(torch_server.pid).memory_info().rss < 80 * MIB


def maps(pid: int, name: str) -> bool:
    return name in Path(f"/proc/{pid}/maps").read_text()
