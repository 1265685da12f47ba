"""The commands and the Python client together with a real server: serve, invoke, ps, kill."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gen_worker.client import Client, JobError, SupervisorUnreachable
from gen_worker.rundir import SeveralSupervisors, live_supervisors
from gen_worker.wire.status import Status

GEN_WORKER = [sys.executable, "-m", "gen_worker.cli"]
pytestmark = pytest.mark.process

MAIN = """
import asyncio, os, time
from collections.abc import Iterator
import msgspec
from gen_worker import RequestContext, RetryableError, ValidationError, endpoint

class In(msgspec.Struct):
    text: str = ""
    times: int = 1

class Blob(msgspec.Struct):
    data: bytes

@endpoint
def echo(ctx: RequestContext, payload: In) -> In:
    return payload

@endpoint
def echo_blob(ctx: RequestContext, payload: Blob) -> Blob:
    return payload

@endpoint
def count(ctx: RequestContext, payload: In) -> Iterator[In]:
    for number in range(payload.times):
        yield In(str(number), number)

@endpoint
def blobs(ctx: RequestContext, payload: In) -> Iterator[Blob]:
    for number in range(payload.times):
        yield Blob(bytes([number]) * 300_000)

@endpoint
def wait(ctx: RequestContext, payload: In) -> In:
    ctx.progress(0.25, stage="waiting")
    while True:
        ctx.raise_if_cancelled()
        time.sleep(0.005)

@endpoint
def hold(ctx: RequestContext, payload: In) -> In:
    ctx.progress(0.25, stage="holding")
    sum(range(10**12))
    return payload

@endpoint
def refuse(ctx: RequestContext, payload: In) -> In:
    raise ValidationError("say please")

@endpoint
def crash(ctx: RequestContext, payload: In) -> In:
    os._exit(7)
"""


class Blob(msgspec.Struct):
    data: bytes


class Look(msgspec.Struct):
    data: memoryview


class Number(msgspec.Struct):
    text: str
    times: int


@contextmanager
def serving(folder: Path, *, devices: str = "cpu:2") -> Iterator[subprocess.Popen[bytes]]:
    (folder / "cases.py").write_text(MAIN)
    command = [*GEN_WORKER, "serve", "--module", "cases", "--devices", devices]
    with (
        (folder / "serve.log").open("wb") as log,
        subprocess.Popen(command, cwd=folder, stderr=log, stdin=subprocess.DEVNULL) as server,
    ):
        try:
            until(lambda: (folder / ".gen-worker.sock.json").exists() or server.poll() is not None)
            assert server.poll() is None, (folder / "serve.log").read_text()
            with Client(folder / ".gen-worker.sock") as client:
                until(lambda: all(device.state == "idle" for device in client.list().gpus))
            yield server
        finally:
            server.terminate()
            server.wait(20)


def until(condition: Callable[[], Any], within_s: float = 20.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)
    return found


@contextmanager
def served_home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gw-") as made, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEN_WORKER_RUN_DIR", f"{made}/run")
        with serving(Path(made)):
            yield Path(made)


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    with served_home() as home:
        yield home


@pytest.fixture
def server(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server that many tests use: they must not cost it a child."""
    monkeypatch.setenv("GEN_WORKER_RUN_DIR", str(shared / "run"))
    monkeypatch.chdir(shared)
    return shared


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server of this test's own, whose children may die."""
    with served_home() as home:
        monkeypatch.setenv("GEN_WORKER_RUN_DIR", str(home / "run"))
        monkeypatch.chdir(home)
        yield home


@pytest.fixture
def client(server: Path) -> Iterator[Client]:
    with Client() as made:
        yield made


def gen_worker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*GEN_WORKER, *arguments], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )


def running(client: Client, request_id: str) -> bool:
    return any(job.id == request_id and job.stage is not None for job in client.list().jobs)


def pids(client: Client) -> list[int | None]:
    return [device.pid for device in client.list().gpus]


# --- invoke -----------------------------------------------------------------------------------------------------------


def test_a_word_goes_in_and_the_output_comes_out(server: Path) -> None:
    done = gen_worker("invoke", "echo", "hello", "times=3")
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, {"text": "hello", "times": 3}, "")


def test_a_stream_is_printed_item_by_item(server: Path) -> None:
    done = gen_worker("invoke", "count", "times=2", "--stream")
    values = [json.loads(line) for line in done.stdout.splitlines()]
    assert values == [{"text": "0", "times": 0}, {"text": "1", "times": 1}, {"yielded": 2}]


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["refuse"], 2, "error: say please\n"),
        (["echo", '{"text": 5}'], 2, r"error: .*Expected `str`, got `int` - at `\$\.text`"),
    ],
)
def test_a_failure_is_told_with_its_exit_code(server: Path, arguments: list[str], code: int, error: str) -> None:
    done = gen_worker("invoke", *arguments)
    assert re.search(error, done.stderr)
    assert (done.returncode, done.stdout) == (code, "")


def test_the_death_of_a_child_is_told_with_its_cause(own_server: Path) -> None:
    done = gen_worker("invoke", "crash")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(r"error: .*exit code 7", done.stderr)


def test_ctrl_c_cancels_the_request_on_the_server(server: Path, client: Client) -> None:
    command = [*GEN_WORKER, "invoke", "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: [job for job in client.list().jobs if job.stage == "waiting"])
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "error: " in stderr
    assert client.list().jobs == []


# --- the client -------------------------------------------------------------------------------------------------------


def test_values_of_every_size_come_back_as_they_went(client: Client) -> None:
    for size in (0, 1, 40_000, 50_000, 65_536, 100_000, 1 << 20, 33 << 20):
        data = os.urandom(size)
        assert client.call("echo-blob", Blob(data), type=Blob).data == data
        assert client.call("echo-blob", {"data": data}) == {"data": data}


def test_a_view_of_an_output_stays_right_while_other_jobs_run(client: Client) -> None:
    looks = [client.call("echo-blob", Blob(bytes([number]) * 200_000), type=Look) for number in range(20)]
    assert [set(look.data) for look in looks] == [{number} for number in range(20)]


def test_many_jobs_on_one_connection_come_back_to_who_asked(client: Client) -> None:
    jobs = [client.submit("echo", {"text": str(number), "times": number}, type=Number) for number in range(200)]
    assert [job.result(timeout_s=30).times for job in jobs] == list(range(200))


def test_a_stream_longer_than_its_window_comes_whole(client: Client) -> None:
    assert [item.times for item in client.stream("count", {"times": 500}, type=Number)] == list(range(500))
    blobs = list(client.stream("blobs", {"times": 40}, type=Blob))
    assert [set(blob.data) for blob in blobs] == [{number} for number in range(40)]


def test_leaving_a_stream_frees_its_child(client: Client) -> None:
    for item in client.stream("count", {"times": 10**9}, type=Number):
        if item.times == 100:
            break
    until(lambda: not client.list().jobs)


def test_events_reach_who_asked_for_them(client: Client) -> None:
    seen: list[Any] = []
    job = client.submit("wait", {}, request_id="events", on_event=lambda kind, value: seen.append((kind, value)))
    until(lambda: running(client, "events"))
    assert client.cancel("events") is True
    with pytest.raises(JobError) as caught:
        job.result(timeout_s=10)
    assert caught.value.kind == "canceled"
    assert seen == [("progress", {"progress": 0.25, "stage": "waiting"})]


def test_a_deadline_ends_the_job(client: Client) -> None:
    with pytest.raises(JobError) as caught:
        client.call("wait", {}, timeout_s=0.2)
    assert caught.value.kind == "deadline"


def test_a_job_outlives_its_clients_connection(server: Path) -> None:
    with Client() as first:
        first.submit("echo", {"text": "kept"}, request_id="outlive")
    with Client() as second:
        assert second.submit("echo", {"text": "another"}, request_id="outlive").result(timeout_s=10)["text"] == "kept"


def test_an_unknown_function_is_refused_with_the_known_ones(client: Client) -> None:
    with pytest.raises(JobError, match=r"no function `nothing`; there are: .*`echo`") as caught:
        client.call("nothing", {})
    assert caught.value.kind == "not_found"


# --- ps and kill ------------------------------------------------------------------------------------------------------


def test_ps_shows_devices_and_jobs(server: Path, client: Client) -> None:
    job = client.submit("wait", {}, request_id="shown")
    until(lambda: running(client, "shown"))
    table = gen_worker("ps").stdout
    assert re.search(r"^cpu:\d +busy +\d+ +\d+ MiB +1 +\d+ +shown$", table, re.MULTILINE)
    assert re.search(r"^shown +wait +running +cpu:\d +\d+\.\ds +- +25% waiting$", table, re.MULTILINE)
    document = gen_worker("ps", "--json").stdout
    status = msgspec.json.decode(document, type=Status)
    assert [each.id for each in status.jobs] == ["shown"]
    assert json.loads(document)["schema"] == 1
    client.cancel("shown")
    with pytest.raises(JobError):
        job.result(timeout_s=10)


def test_kill_ends_a_request_that_holds_the_interpreter_and_no_other_child(own_server: Path) -> None:
    with Client() as client:
        _kill_the_holder(client)


def _kill_the_holder(client: Client) -> None:
    job = client.submit("hold", {}, request_id="stuck")
    busy = until(lambda: next((device.pid for device in client.list().gpus if device.job == "stuck"), None))
    others = [pid for pid in pids(client) if pid != busy]
    began = time.monotonic()
    done = gen_worker("kill", "stuck", "--now")
    assert time.monotonic() - began < 3
    assert done.returncode == 0
    assert re.match(r"killed `stuck` after \d\.\ds by rung 4, SIGTERM to its child\n", done.stdout)
    assert "in hold" in done.stdout
    assert done.stderr == "waiting for `stuck` to end\n"
    with pytest.raises(JobError) as caught:
        job.result(timeout_s=10)
    assert caught.value.kind == "killed"
    assert set(others) <= set(pids(client))
    assert client.call("echo", {"text": "on"})["text"] == "on"


def test_kill_asks_first(server: Path, client: Client) -> None:
    job = client.submit("wait", {}, request_id="polite")
    until(lambda: running(client, "polite"))
    done = gen_worker("kill", "polite")
    assert re.match(r"killed `polite` after \d\.\ds by rung 1, it ended when it was asked to\n", done.stdout)
    with pytest.raises(JobError):
        job.result(timeout_s=10)


def test_kill_of_nothing_exits_5_and_touches_nothing(server: Path, client: Client) -> None:
    job = client.submit("wait", {}, request_id="spared")
    until(lambda: running(client, "spared"))
    done = gen_worker("kill", "sparef")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == "error: no request `sparef`\nhint: did you mean `spared`?\n"
    assert not job.done
    client.cancel("spared")
    with pytest.raises(JobError):
        job.result(timeout_s=10)


def test_either_socket_names_the_supervisor(server: Path) -> None:
    (file,) = live_supervisors(server / "run")
    assert file.serve == str(server / ".gen-worker.sock")
    for socket in (".gen-worker.sock", str(file.serve), file.control):
        assert gen_worker("ps", "--socket", socket).returncode == 0
        with Client(socket) as client:
            assert client.supervisor.pid == file.pid


def test_without_a_supervisor_the_operators_commands_exit_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEN_WORKER_RUN_DIR", str(tmp_path))
    for command in (["ps"], ["kill", "a"]):
        done = gen_worker(*command)
        assert (done.returncode, done.stdout) == (4, "")
        assert (
            done.stderr == f"error: no supervisor is alive in `{tmp_path}`\nhint: start one with `gen-worker serve`\n"
        )
    done = gen_worker("ps", "--socket", str(tmp_path / "nothing"))
    assert done.returncode == 4
    with pytest.raises(SupervisorUnreachable):
        Client()


def test_among_several_supervisors_one_must_be_named_or_serve_the_folder(
    server: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="gw-") as folder, serving(Path(folder), devices="cpu:1") as second:
        monkeypatch.chdir(folder)
        assert f"supervisor {second.pid}," in gen_worker("ps").stdout
        monkeypatch.chdir(tmp_path)
        done = gen_worker("ps")
        assert done.returncode == 2
        assert done.stderr.startswith("error: 2 supervisors are alive:\n")
        assert f"(pid {second.pid})" in done.stderr
        assert done.stderr.endswith("hint: choose one with `--socket`\n")
        with pytest.raises(SeveralSupervisors):
            Client()
        assert f"supervisor {second.pid}," in gen_worker("ps", "--socket", f"{folder}/.gen-worker.sock").stdout
    assert gen_worker("ps").returncode == 0


@pytest.mark.promise(13)
def test_a_supervisor_that_is_killed_leaves_nothing_that_counts_as_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEN_WORKER_RUN_DIR", str(tmp_path / "run"))
    with serving(tmp_path, devices="cpu:1") as server:
        with Client() as client:
            server.kill()
            server.wait(20)
            with pytest.raises(SupervisorUnreachable, match="gone"):
                client.list()
        assert live_supervisors(tmp_path / "run") == []
        assert gen_worker("ps").returncode == 4
