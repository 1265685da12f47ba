"""What the end-to-end tests of the examples stand on: an example served by the installed command, in its own folder."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from gen_worker.client import Client
from gen_worker.testing import LoopbackHub

GEN_WORKER = Path(sys.executable).with_name("gen-worker")
READY_S = 150.0  # torch and diffusers are imported from a cold disk, beside other tests
STOP_S = 20.0


class Server:
    """A running `gen-worker serve`."""

    def __init__(self, folder: Path, place: Path, options: Sequence[str], variables: dict[str, str]) -> None:
        self.folder = folder
        self._options = options
        self.socket = place / "serve.sock"
        self.outputs = place / "outputs"
        self._log = place / "serve.log"
        self._environment = {
            **os.environ,
            "GEN_WORKER_RUN_DIR": str(place / "run"),
            "GEN_WORKER_LOCAL_OUTPUT_DIR": str(self.outputs),
            "TMPDIR": str(place),  # torch makes a cache there
            **variables,
        }

    @contextmanager
    def running(self, devices: str) -> Iterator[None]:
        """Start it, wait until it is ready, and end it; it must end well."""
        command = [str(GEN_WORKER), "serve", "--socket", str(self.socket), "--devices", devices, *self._options]
        with (
            self._log.open("wb") as log,
            subprocess.Popen(
                command, cwd=self.folder, env=self._environment, stdin=subprocess.DEVNULL, stderr=log
            ) as process,
        ):
            try:
                self._wait_until_ready(process)
                self.control = self.socket.parent / "run" / str(process.pid) / "control.sock"
                yield
            finally:
                process.terminate()
                try:
                    process.wait(STOP_S)
                finally:
                    process.kill()
        assert process.returncode == 0, self.log

    def _wait_until_ready(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + READY_S
        while not Path(f"{self.socket}.json").exists():
            assert process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.005)

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text()

    def client(self) -> Client:
        """A new connection to it."""
        return Client(self.control)

    def invoke(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run `gen-worker invoke`."""
        return self._command("invoke", "--socket", str(self.socket), *arguments)

    def ps(self) -> str:
        """Return what `gen-worker ps --json` prints."""
        return self._command("ps", "--json", "--socket", str(self.control)).stdout

    def _command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [GEN_WORKER, *arguments],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=READY_S,
            check=False,
        )


@contextmanager
def serving(folder: Path, devices: str = "cpu:1", *, options: Sequence[str] = (), **variables: str) -> Iterator[Server]:
    """Serve the example in a folder, with these options and environment variables."""
    with tempfile.TemporaryDirectory(prefix="gw-example-") as place:
        server = Server(folder, Path(place), options, {"TENSORHUB_CACHE_DIR": f"{place}/models", **variables})
        with server.running(devices):
            yield server


@pytest.fixture(scope="session")
def serve() -> Callable[..., object]:
    """Give what serves an example for the length of a `with` block."""
    return serving


MAKE_TINY = """
import sys
from pathlib import Path
from gen_worker.testing import make_tiny
sd15, sdxl = Path(sys.argv[1], "sd15"), Path(sys.argv[1], "sdxl")
make_tiny("sd15", sd15, dtype="fp32")
make_tiny("sd15", sd15, dtype="bf16", variant="bf16")
make_tiny("sdxl", sdxl)
"""


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder of tiny models: `sd15`, in fp32 and bf16, and `sdxl`, in bf16."""
    folder = tmp_path_factory.mktemp("tiny-models")
    subprocess.run([sys.executable, "-c", MAKE_TINY, str(folder)], check=True, timeout=READY_S, capture_output=True)
    return folder


@pytest.fixture
def hub(tiny_models: Path) -> Iterator[LoopbackHub]:
    """Give a hub that has the tiny models as `acme/tiny-sd15` and `acme/tiny-sdxl`."""
    with LoopbackHub() as hub:
        for name in ("sd15", "sdxl"):
            hub.add_repo(f"acme/tiny-{name}", tiny_models / name)
        yield hub
