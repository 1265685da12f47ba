"""`ServerProcess` by itself: it waits until a server is up, tells why one is not, and leaves nothing of it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from gen_worker.discovery.specs import collect
from gen_worker.runtimes.launching import LIFELINE
from gen_worker.runtimes.server import ServerBootError, ServerHandle, ServerProcess, free_port
from gen_worker.testing.engine import install_engine
from gen_worker.wire.messages import SlotModel
from gen_worker_child.engines import Engines, Running
from tests.endpoints import engined
from tests.served import alive, until

pytestmark = pytest.mark.process

Make = Callable[..., ServerProcess]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Make]:
    """Describe an engine with these options; nothing of it may be left at the end."""

    def make(*options: str, **more: float) -> ServerProcess:
        port = free_port()
        program = install_engine(tmp_path / "bin", *options) / "vllm"
        command = [str(program), "serve", str(tmp_path / "m"), "--port", str(port)]
        return ServerProcess(command, health_url=f"http://127.0.0.1:{port}/health", **more)  # type: ignore[arg-type]

    yield make
    assert processes(tmp_path) == []


def processes(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and alive(int(entry.name)):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if os.fsencode(folder / "m") in words:
                found.append(int(entry.name))
    return found


def test_a_server_that_takes_its_time_is_waited_for_and_asked_ever_less_often(engine: Make) -> None:
    server = engine("--boot-s", "1.5")
    looks: list[float] = []
    server.on_look = lambda _: looks.append(time.monotonic())
    handle = server.start()
    gaps = [after - before for before, after in pairwise(looks)]
    assert 3 <= len(looks) <= 5
    assert gaps == sorted(gaps)
    seen = [handle.alive]
    handle.stop()
    handle.stop()
    assert [*seen, handle.alive] == [True, False]


def test_a_server_that_is_not_up_in_time_is_told_and_gone(engine: Make, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ServerBootError, match=r"was not up within 0.6 s: http://127.*/health answers 503") as late:
        engine("--boot-s", "60", "--workers", "2", "--deaf", boot_timeout_s=0.6).start()
    assert late.value.lines[0].startswith("vllm: loading")
    assert "[vllm] vllm: loading" in capfd.readouterr().err


SILENT = "import time; time.sleep(60)"
TRICKLING = """
import socket, sys, time
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    with listening.accept()[0] as caller:
        try:
            while True:
                caller.send(b"H")
                time.sleep(0.05)
        except OSError:
            pass
"""


@pytest.mark.parametrize("code", [SILENT, TRICKLING], ids=["silent", "trickling"])
def test_a_server_without_a_whole_answer_costs_no_more_than_its_time(code: str) -> None:
    port = free_port()
    command = [sys.executable, "-c", code, str(port)]
    began = time.monotonic()
    with pytest.raises(ServerBootError, match=r"was not up within 0.5 s: no answer from http://127"):
        ServerProcess(command, health_url=f"http://127.0.0.1:{port}/", boot_timeout_s=0.5).start()
    assert time.monotonic() - began < 4


def test_a_server_that_ends_at_once_is_told_at_once_with_what_it_printed(engine: Make) -> None:
    began = time.monotonic()
    with pytest.raises(ServerBootError, match="`vllm` ended before it was up: exit status 1") as ended:
        engine("--crash-at-boot", "--workers", "1", "--strays", "1").start()
    assert "RuntimeError: engine core initialization failed" in ended.value.lines
    assert time.monotonic() - began < 5


def test_a_server_that_ends_before_its_start_is_told_is_not_waited_for() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write, b"\n")
    os.set_blocking(write, True)
    words = [sys.executable, "-I", "-S", str(LIFELINE), str(os.getpid()), str(write), "true"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, pass_fds=(write,)) as lifeline:
        os.close(write)
        until(lambda: has_ended_child(lifeline.pid), what="the end of the server")
        with os.fdopen(read, "rb") as told:
            assert told.read().split()[-2:] == [b"ended", b"0"]
        assert lifeline.wait(10) == 0


def has_ended_child(pid: int) -> bool:
    """Whether a process has a child that ended and was not waited for."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return any(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z" for child in children)


@pytest.mark.parametrize("program", ["a-folder", "no-program", "missing"])
def test_what_cannot_be_run_is_told_in_words(tmp_path: Path, program: str) -> None:
    (tmp_path / "a-folder").mkdir()
    (tmp_path / "no-program").write_bytes(b"\x7fnot an executable")
    (tmp_path / "no-program").chmod(0o755)
    command = [str(tmp_path / program)]
    with pytest.raises(ServerBootError, match=f"`{program}` cannot be started: "):
        ServerProcess(command, health_url="http://127.0.0.1:1/").start()


def test_one_that_is_deaf_to_sigterm_is_killed_when_its_grace_is_over(engine: Make) -> None:
    handle = engine("--deaf", "--workers", "1", "--strays", "1").start()
    began = time.monotonic()
    handle.stop(grace_s=0.5)
    assert 0.5 <= time.monotonic() - began < 2.0
    assert not handle.alive


def test_a_wait_that_is_interrupted_leaves_nothing(engine: Make) -> None:
    class Enough(BaseException):
        pass

    def look(_: object) -> None:
        raise Enough

    server = engine("--boot-s", "60", "--workers", "1")
    server.on_look = look
    with pytest.raises(Enough):
        server.start()


def test_one_that_prints_more_than_anybody_reads_goes_on(tmp_path: Path) -> None:
    port = free_port()
    flood = (
        "import http.server, sys; sys.stdout.write('x' * 3_000_000 + '\\r' + 'y' * 200_000 + '\\n' * 5000 + 'end\\n');"
        f"sys.stdout.flush(); http.server.HTTPServer(('127.0.0.1', {port}), http.server.SimpleHTTPRequestHandler)"
        ".serve_forever()"
    )
    read, write = os.pipe()
    os.close(read)
    stderr, sys.stderr = sys.stderr, os.fdopen(write, "w", buffering=1)  # nobody reads it
    try:
        handle = ServerProcess([sys.executable, "-c", flood], health_url=f"http://127.0.0.1:{port}/").start()
        handle.stop(grace_s=1)
    finally:
        broken, sys.stderr = sys.stderr, stderr
        with suppress(BrokenPipeError):
            broken.close()
    assert handle.launched is not None
    assert "end" in handle.launched.last_lines()


def test_variables_of_its_own_come_on_top_of_those_of_this_process(tmp_path: Path) -> None:
    port = free_port()
    code = f"""
import http.server, os
print(os.environ["OF_ITS_OWN"], os.environ["HOME"], flush=True)
http.server.HTTPServer(("127.0.0.1", {port}), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
    url = f"http://127.0.0.1:{port}/"
    handle = ServerProcess([sys.executable, "-c", code], health_url=url, env={"OF_ITS_OWN": "yes"}).start()
    handle.stop(grace_s=1)
    assert handle.launched is not None
    assert f"yes {os.environ['HOME']}" in handle.launched.last_lines()


def test_two_that_boot_on_one_port_are_not_taken_for_each_other(engine: Make) -> None:
    first = engine("--boot-s", "0.3")
    second = ServerProcess(first.command, health_url=first.health_url)
    told: list[str] = []

    def start_second(_: object) -> None:
        if not told:
            with pytest.raises(ServerBootError) as raised:
                second.start()
            told.append(raised.value.message)

    first.on_look = start_second
    handle = first.start()
    try:
        with pytest.raises(ServerBootError, match="another server answers at"):
            second.start()
    finally:
        handle.stop()
    assert told == [f"another engine boots on port {first.port}"]


def test_its_death_is_heard_of_at_once_and_once(engine: Make) -> None:
    handle = engine("--workers", "1", "--strays", "1").start()
    launched = handle.launched
    assert launched is not None
    deaths: list[int | None] = []
    heard = threading.Event()

    def on_end() -> None:
        deaths.append(launched.status)
        heard.set()

    launched.on_end = on_end
    os.kill(launched.pid, signal.SIGKILL)
    assert heard.wait(5)
    handle.stop()
    assert deaths == [-signal.SIGKILL]
    assert launched.last_lines()[0].startswith("vllm: loading")
    assert handle.process.returncode == -signal.SIGKILL


def test_the_death_of_an_engine_that_is_let_go_of_meanwhile_says_nothing_of_the_next_one(
    engine: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    spec = next(each for each in collect(engined) if each.name == "chat")
    slots = [SlotModel("model", "acme/m", str(tmp_path / "m"), "key")]
    (tmp_path / "m").mkdir()
    engines = Engines()
    letting_go = threading.Thread(target=engines.stop, args=("chat",))
    told: list[str] = []

    def on_death(instance: str, dead: Running) -> None:
        letting_go.start()  # by another thread, just now
        until(lambda: engines.loss(1, instance, ConnectionError()) is None, what="that it is let go of")
        dead.lost = True
        told.append(dead.death)

    engines.on_death = on_death
    handle = engines.start("chat", spec, slots)
    engines.settled("chat")
    assert handle.launched is not None
    os.kill(handle.launched.pid, signal.SIGKILL)
    until(lambda: bool(told), what="its death")
    letting_go.join(10)
    assert told == ["its engine `vllm` died: SIGKILL"]
    assert engines.start("chat", spec, slots).alive
    assert not engines.lost("chat")
    engines.stop("chat")


def test_one_whose_starter_just_ends_is_gone(engine: Make, tmp_path: Path) -> None:
    server = engine("--workers", "1", "--strays", "1", "--deaf")
    code = f"""
from gen_worker.runtimes.server import ServerProcess
handle = ServerProcess({server.command!r}, health_url={server.health_url!r}).start()
import os
if os.fork() == 0:  # a copy of the starter that lives on, as a loader's worker may
    import time
    time.sleep(1.2)
    os._exit(0)
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], timeout=20, stderr=subprocess.DEVNULL, check=True)
    until(lambda: processes(tmp_path) == [], 1.0, what="the end of every process of the engine")


def test_many_start_and_end_side_by_side(engine: Make) -> None:
    handles: list[ServerHandle] = []
    servers = [engine("--workers", "1") for _ in range(4)]
    threads = [threading.Thread(target=lambda each=server: handles.append(each.start())) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({handle.base_url for handle in handles}) == 4
    assert all(handle.alive for handle in handles)
    for handle in handles:
        handle.stop()
