"""An endpoint's image runs where containers run: as the first process, as nobody special, in a read-only root."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from gen_worker.wire.status import Status
from tests.container import REPOSITORY, UID, Container, Image
from tests.served import until

CANARY = "canary-of-the-worker"
pytestmark = [pytest.mark.process, pytest.mark.root]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return Image(REPOSITORY / "examples/marco-polo", tmp_path_factory.mktemp("image") / "app")


class Mock:
    """The orchestrator that sends one request."""

    def __init__(self, function: str, payload: dict[str, object]) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "gen_worker.testing.mock_orchestrator", "--listen", f"127.0.0.1:{self.port}"]
        command += ["--run", function, "--payload-json", json.dumps(payload)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def ended(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


class Run:
    """A container, and the orchestrator that it serves."""

    def __init__(self, image: Image, folder: Path, function: str, payload: dict[str, object]) -> None:
        self.mock = Mock(function, payload)
        root = folder / "root"
        root.mkdir()
        settings = {
            "ORCHESTRATOR_PUBLIC_ADDR": f"127.0.0.1:{self.mock.port}",
            "GEN_WORKER_DEVICES": "cpu:2",
            "GEN_WORKER_RUN_DIR": "/run/gen-worker",
            "TENSORHUB_CACHE_DIR": "/cache",
            "WORKER_JWT": CANARY,
        }
        self.container = Container(image, root, settings)

    def status(self) -> Status:
        """What `docker exec … gen-worker ps --json` says."""
        looked = self.container.execute(sys.executable, "-m", "gen_worker.cli", "ps", "--json")
        assert looked.returncode == 0, looked.stderr
        return msgspec.json.decode(looked.stdout, type=Status)

    def close(self) -> None:
        self.container.close()
        self.mock.process.kill()
        self.mock.process.communicate()


@pytest.fixture
def run(image: Image, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    with contextlib.ExitStack() as ends:

        def started(function: str, payload: dict[str, object]) -> Run:
            made = Run(image, tmp_path, function, payload)
            ends.callback(made.close)
            return made

        yield started


def test_the_image_says_what_it_serves(image: Image) -> None:
    assert "marco-polo-stream" in (image.app / ".cozy/manifest.json").read_text()


def test_a_container_serves_answers_its_health_check_and_ends_in_order(run: Callable[..., Run]) -> None:
    started = run("marco-polo", {"text": "marco"})
    container = started.container
    code, out, err = started.mock.ended()
    assert code == 0, (out, err, container.log.read_text())
    assert "[output]" in out
    assert "polo" in out

    status = started.status()
    assert status.pid == 1
    assert [device.state for device in status.gpus] == ["idle", "idle"]
    for pid in (1, *fetchers(container)):
        for secret in ("environ", "mem", "maps"):
            looked = container.execute("head", "-c", "1", f"/proc/{pid}/{secret}")
            assert "Permission denied" in looked.stderr, (pid, secret)
    for device in status.gpus:
        assert CANARY not in container.execute("cat", f"/proc/{device.pid}/environ").stdout
        assert f"Uid:\t{UID}" in container.execute("cat", f"/proc/{device.pid}/status").stdout

    assert container.stop() == 0
    log = container.log.read_text()
    assert "stopped" in log
    assert CANARY not in log


def test_orphans_are_reaped_by_the_first_process(run: Callable[..., Run]) -> None:
    started = run("marco-polo", {"text": "marco"})
    started.mock.ended()
    started.container.execute("sh", "-c", "sleep 0 & sleep 0 & exit 0")

    def zombies() -> list[str]:
        shown = started.container.execute("sh", "-c", "cat /proc/[0-9]*/stat").stdout.splitlines()
        return [line for line in shown if line.rpartition(")")[2].split()[:1] == ["Z"]]

    until(lambda: not zombies(), what="no zombie being left")
    assert started.container.stop() == 0


def test_a_second_signal_ends_a_container_whose_job_runs_on(run: Callable[..., Run]) -> None:
    started = run("marco-polo-slow", {"text": "marco", "seconds": 60})
    container = started.container
    until(lambda: "connected to" in container.log.read_text(), what="the worker being connected")
    until(lambda: [job.status for job in started.status().jobs] == ["running"], what="the job running")
    container.signal(signal.SIGTERM)
    until(lambda: "draining" in container.log.read_text(), what="the drain")
    assert started.status().draining
    until(lambda: _ended_by_another(container), what="its end")
    assert container.wait() == 1
    assert "ending at once" in container.log.read_text()


def fetchers(container: Container) -> list[int]:
    """Return the pids of what moves files in a container."""
    shown = container.execute("sh", "-c", "grep -l gen_worker[.]fetch /proc/[0-9]*/cmdline").stdout.split()
    return [int(path.split("/")[2]) for path in shown if path.split("/")[2] != "1"]


def _ended_by_another(container: Container) -> bool:
    """Send one more signal, since one that follows the first too closely is the same wish."""
    container.signal(signal.SIGTERM)
    return container.has_ended()
