"""A full disk, no descriptors, no processes, closed streams, odd signals: the supervisor says so and serves on."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import repeat
from pathlib import Path

import pytest

from gen_worker.client import Client
from tests.served import (
    PATIENCE_S,
    Connection,
    Serve,
    Server,
    alive,
    descriptors,
    environment,
    launch,
    serving,
    text_of,
    until,
)
from tests.witness import Witness

pytestmark = [pytest.mark.process, pytest.mark.quiet]
MIB = 1 << 20


def mounted(*mounts: str) -> list[str]:
    """Return a command that mounts what only it can see, and becomes the server."""
    return ["unshare", "--mount", "sh", "-ec", "\n".join([*mounts, 'cd "$PWD"', 'exec "$@"']), "sh"]


def small(folder: Path, size: str = "16m") -> str:
    """Return the command that puts a small disk there."""
    folder.mkdir(mode=0o700, parents=True)
    return f"mount -t tmpfs -o size={size},mode=0700 none '{folder}'"


def inside(server: Server, path: Path) -> Path:
    """Return a path as the server sees it."""
    return Path(f"/proc/{server.pid}/root{path}")


# --- a full disk ------------------------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.promise(22)
def test_a_disk_too_full_for_a_saved_file_costs_its_job_and_leaves_no_part_of_it(serve: Serve, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    server = serve(before=mounted(small(outputs)))
    frame = server.ask("save-bytes", "large", text="large.bin", times=32 * MIB)
    assert not frame["ok"]
    assert "no space left" in frame["error"]["message"].lower(), frame
    assert [each for each in inside(server, outputs).rglob("*") if each.is_file()] == []
    assert server.ask("save-bytes", text="small.bin", times=MIB)["ok"]
    assert text_of(server.ask("echo", text="on")) == "on"
    assert "Traceback" not in "".join(line for line in server.log().splitlines() if "[cpu:" not in line)


@pytest.mark.root
@pytest.mark.promise(1, 22)
def test_a_disk_without_room_costs_a_post_mortem_and_no_job(serve: Serve, tmp_path: Path) -> None:
    place = tmp_path / "run" / "postmortems"
    (tmp_path / "run").mkdir(mode=0o700)
    server = serve(before=mounted(small(place, "16k")))
    with (inside(server, place) / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        file.writelines(repeat(bytes(1024)))
    for number in range(2):
        assert server.ask("die", text="SIGSEGV", times=number)["error"]["kind"] == "child_died"
        assert text_of(server.ask("echo", text="on")) == "on"
    until(lambda: "no space left" in server.log().lower(), what="the news of it")
    assert "Traceback" not in server.log()
    server.signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0


@pytest.mark.root
def test_a_run_directory_that_is_full_from_the_start_is_told_in_words(tmp_path: Path) -> None:
    full = f"head -c 2m /dev/zero > '{tmp_path}/run/filler' || true"
    with launch(tmp_path, before=mounted(small(tmp_path / "run", "64k"), full)) as process:
        assert process.wait(PATIENCE_S) == 2
    log = (tmp_path / "log").read_text()
    assert "no space left" in log
    assert "hint: " in log
    assert "Traceback" not in log


@pytest.mark.root
@pytest.mark.promise(30)
def test_values_of_any_length_need_no_shared_memory_of_the_system(serve: Serve) -> None:
    server = serve(before=mounted("mount -t tmpfs -o size=64k none /dev/shm"))
    assert text_of(server.ask("echo", text="x" * 4 * MIB)) == "x" * 4 * MIB
    assert list(inside(server, Path("/dev/shm")).iterdir()) == []


# --- nothing left of what the kernel gives ----------------------------------------------------------------------------


@pytest.mark.promise(32)
def test_without_free_descriptors_it_waits_for_some_without_spinning(serve: Serve) -> None:
    server = serve()
    server.status()
    limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    with server.connect() as known, ExitStack() as stack:
        known.send("echo", text="known")
        assert text_of(known.frame()) == "known"
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (len(descriptors(server.pid)) + 1, limits[1]))
        waiting = [stack.enter_context(server.connect()) for _ in range(8)]
        until(lambda: "cannot accept: Too many open files" in server.log(), what="the news of it")
        began, before = time.monotonic(), cpu_s(server.pid)
        while time.monotonic() - began < 1.0:
            known.send("echo", text="served on")
            assert text_of(known.frame()) == "served on"
            time.sleep(0.1)
        assert cpu_s(server.pid) - before < 0.05 * (time.monotonic() - began) + 0.02  # ticks of 10 ms
        known.send("echo", "large", text="x" * MIB)  # for which there may be no descriptor either
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
        frame = known.frame()
        assert frame["ok"] or frame["error"]["retryable"], frame
        for each in waiting:
            each.send("echo", text="late")
            assert text_of(each.frame()) == "late"
    assert server.log().count("cannot accept") <= len(waiting)  # not with every try
    assert "Traceback" not in server.log()


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.root
def test_without_free_processes_a_child_is_missed_and_comes_when_there_are_some(tmp_path: Path) -> None:
    with counted() as group:
        before = ["sh", "-ec", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
        with serving(tmp_path, devices="cpu:2", before=before) as server, Witness(server) as witness:
            victim = server.pids()["cpu:0"]
            (group / "pids.max").write_text("1")
            os.kill(victim, signal.SIGKILL)
            until(lambda: "child not started" in server.log(), what="the news of it")
            witness.until_served(20)
            saved = server.ask("save-bytes", text="kept.bin", times=MIB)
            assert "cannot be kept: can't start new thread" in saved["error"]["message"], saved
            (group / "pids.max").write_text("max")
            until(lambda: server.pids().get("cpu:0", victim) != victim, what="the next child")
            server.until_idle()
            witness.until_served()
            assert server.ask("save-bytes", text="kept.bin", times=MIB)["ok"]
            assert witness.wrong == []
            assert "Traceback" not in "".join(line for line in server.log().splitlines() if "[cpu:" not in line)


@contextmanager
def counted() -> Iterator[Path]:
    """Make a control group that counts processes; skip where there is none to be had."""
    group = Path(f"/sys/fs/cgroup/pids/gw-tests-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group for processes here: {error.strerror}")
    try:
        yield group
    finally:
        until(lambda: not (group / "cgroup.procs").read_text(), what="the end of the group's processes")
        group.rmdir()


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise(33)
@pytest.mark.parametrize("closed", ["2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"])
def test_a_server_whose_streams_are_closed_serves_and_mistakes_nothing_for_them(serve: Serve, closed: str) -> None:
    server = serve("--no-stdin", devices="cpu:2", before=["sh", "-c", f'exec "$@" {closed}', "sh"])
    assert text_of(server.ask("echo", text="x" * MIB)) == "x" * MIB
    assert server.ask("die", text="SIGSEGV")["error"]["detail"]["cause"] == "SIGSEGV"
    assert server.ask("talk", text="to nobody")["ok"]
    assert text_of(server.ask("echo", text="on")) == "on"
    server.until_idle()
    server.signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0


@pytest.mark.promise(33)
def test_a_log_that_nobody_reads_holds_neither_loop_nor_jobs(serve: Serve, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "unread")
    reader = os.open(tmp_path / "unread", os.O_RDONLY | os.O_NONBLOCK)
    try:
        server = serve(devices="cpu:2", log=tmp_path / "unread")
        with Witness(server) as witness:
            for number in range(20):
                assert text_of(server.ask("chatter", text=str(number), times=2000)) == str(number)
            witness.until_served()
        status = server.status()
        assert witness.wrong == []
        assert status.loop_lag_p99_s is not None
        assert status.loop_lag_p99_s < 0.05
        server.close()
    finally:
        os.close(reader)


# --- signals ----------------------------------------------------------------------------------------------------------


def test_signals_that_mean_nothing_to_a_server_cost_nothing(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    pids = server.pids()
    with server.connect() as connection:
        connection.send("gated", "running", text="undisturbed", gate="go")
        server.until_running("running")
        for number in (signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD, signal.SIGWINCH, signal.SIGURG):
            server.signal(number)
            assert text_of(server.ask("echo", text="on")) == "on"
        server.open("go")
        assert text_of(connection.frame()) == "undisturbed"
    assert server.pids() == pids
    assert server.runs() == {"running": 1}


@pytest.mark.promise(14)
def test_a_signal_under_load_answers_everybody_and_ends_in_order(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    with server.connect() as connection, server.connect() as waiting:
        for number in range(40):
            waiting.send("poll", f"job-{number}")
        for number in range(2000):
            connection.send("echo", f"echo-{number}", text=str(number))
        server.signal(signal.SIGTERM)
        connection.end()
        waiting.end()
        answers, ended = answers_of(connection), answers_of(waiting)
        assert server.process.wait(PATIENCE_S) == 0
    assert set(answers.values()) <= {"ok", "draining", "retryable"}
    assert len(ended) == 40
    assert set(ended.values()) <= {"draining", "retryable"}
    assert not server.socket.exists()
    assert "Traceback" not in server.log()


def answers_of(connection: Connection) -> dict[str, str]:
    """Return how each request was answered until the end of the connection; none is twice."""
    found: dict[str, str] = {}
    while (frame := connection.read()) is not None:
        assert frame["request_id"] not in found
        found[frame["request_id"]] = "ok" if frame["ok"] else frame["error"]["kind"]
    return found


STAGES = 16
START_S = 0.6


@pytest.mark.promise(14)
def test_a_signal_at_any_moment_of_the_start_ends_it_and_leaves_nothing(tmp_path: Path) -> None:
    codes = set()
    for stage in range(STAGES):
        folder = tmp_path / str(stage)
        folder.mkdir()
        with launch(folder) as process:
            try:
                process.wait(START_S * stage / STAGES)  # it does not end by itself: so this is when the signal comes
            except subprocess.TimeoutExpired:
                process.terminate()
            codes.add(process.wait(5.0))
        assert "Traceback" not in (folder / "log").read_text(), stage
        assert not (folder / "gw.sock").exists(), stage
        assert list((folder / "run").rglob("*.json")) == [], stage
    assert codes <= {0, -signal.SIGTERM}


# --- what grandchildren leave -----------------------------------------------------------------------------------------


@pytest.mark.promise(13)
def test_grandchildren_that_nobody_waits_for_are_reaped(serve: Serve) -> None:
    server = serve()
    for _ in range(5):
        assert server.ask("leave-orphans", times=20)["ok"]
    until(lambda: zombies(server) == [], what="no zombie")
    assert text_of(server.ask("echo", text="on")) == "on"


def zombies(server: Server) -> list[int]:
    """Return the processes of a server that have ended and were not waited for."""
    return [pid for pid in server.processes() if not alive(pid)]


# --- a run directory of somebody else's -------------------------------------------------------------------------------


def open_to_all(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


def another_users(place: Path) -> None:
    place.mkdir(mode=0o700)
    os.chown(place, 65534, 65534)


def a_link_to_another_users(place: Path) -> None:
    another_users(place.with_name("theirs"))
    place.symlink_to(place.with_name("theirs"))


def a_link_to_nothing(place: Path) -> None:
    place.symlink_to(place.with_name("nothing"))


@pytest.mark.promise(40)
@pytest.mark.parametrize(
    "make",
    [
        open_to_all,
        a_link_to_nothing,
        pytest.param(another_users, marks=pytest.mark.root),
        pytest.param(a_link_to_another_users, marks=pytest.mark.root),
    ],
)
def test_a_run_directory_that_is_not_for_this_user_alone_is_refused(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "run")
    with launch(tmp_path) as process:
        assert process.wait(PATIENCE_S) == 2
    log = (tmp_path / "log").read_text()
    assert log.startswith("error: cannot open the control socket in ")
    assert "hint: set `GEN_WORKER_RUN_DIR` to a folder of yours" in log
    assert not (tmp_path / "gw.sock").exists()
    assert not (tmp_path / "nothing").exists()


# --- a worker ---------------------------------------------------------------------------------------------------------

CHATTERS = """
import msgspec
from gen_worker import RequestContext, endpoint

class Text(msgspec.Struct):
    text: str = ""

@endpoint
def chatter(ctx: RequestContext, payload: Text) -> Text:
    for _ in range(2000):
        print("x" * 200)
    return payload
"""


@contextmanager
def working(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a worker whose orchestrator cannot be reached, and read nothing of what it writes."""
    (folder / "app" / ".cozy").mkdir(parents=True)
    (folder / "app" / "shop.py").write_text(CHATTERS)
    promised = '{"functions":[{"name":"chatter","module":"shop","kind":"inference"}]}'
    (folder / "app" / ".cozy" / "manifest.json").write_text(promised)
    own = {
        "GEN_WORKER_DEVICES": "cpu:1",
        "TENSORHUB_CACHE_DIR": str(folder / "cache"),
        "ORCHESTRATOR_PUBLIC_ADDR": "127.0.0.1:1",
        "ENDPOINT_LOCK_PATH": str(folder / "none.lock"),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "gen_worker.entrypoint"],
        cwd=folder / "app",
        env={**environment(folder), **own},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.promise(33)
def test_a_worker_whose_streams_nobody_reads_works_and_ends(tmp_path: Path) -> None:
    with working(tmp_path) as process:
        control = tmp_path / "run" / str(process.pid) / "control.sock"
        until(control.exists, what="its control socket")
        with Client(control) as client:
            for number in range(4):
                assert client.call("chatter", {"text": str(number)}) == {"text": str(number)}
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.promise(14)
def test_a_signal_at_any_moment_of_a_worker_s_start_ends_it_and_leaves_nothing(tmp_path: Path) -> None:
    codes = set()
    for stage in range(STAGES // 2):
        with working(tmp_path / str(stage)) as process:
            try:
                process.wait(2 * START_S * stage / (STAGES // 2))
            except subprocess.TimeoutExpired:
                process.terminate()
            codes.add(process.wait(5.0))
            assert process.stdout is not None
            assert b"Traceback" not in process.stdout.read(), stage
        assert list((tmp_path / str(stage) / "run").rglob("*.sock")) == [], stage
    assert codes <= {0, -signal.SIGTERM}
