"""Start what is measured, wait until it serves, and end it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

HERE = Path(__file__).resolve().parent
READY_WITHIN_S = 60.0
GONE_WITHIN_S = 20.0


class Served(msgspec.Struct, frozen=True):
    """A running `gen-worker serve`."""

    pid: int
    socket: str
    control: str


@contextlib.contextmanager
def bare_pair() -> Iterator[str]:
    """The pair, as the path of its socket."""
    with tempfile.TemporaryDirectory(prefix="gw-bench-") as folder:
        path = f"{folder}/pair.sock"
        command = [sys.executable, "-m", "benchmarks.bare_pair", path]
        with subprocess.Popen(command, cwd=HERE.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as pair:
            assert pair.stdin is not None
            assert pair.stdout is not None
            if pair.stdout.readline() != b"ready\n":
                raise RuntimeError("the bare pair did not start")
            try:
                yield path
            finally:
                pair.stdin.close()
                pair.wait(GONE_WITHIN_S)


@contextlib.contextmanager
def product(
    module: str = "echoes", *, devices: str = "cpu:1", variables: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """`gen-worker serve` of a module of `benchmarks/endpoint`, on one CPU child unless told otherwise."""
    with tempfile.TemporaryDirectory(prefix="gw-bench-") as folder:
        path = Path(folder, "serve.sock")
        log = Path(folder, "serve.log")
        command = [str(Path(sys.executable).with_name("gen-worker")), "serve", "--module", module]
        command += ["--socket", str(path), "--devices", devices]
        with (
            log.open("wb") as stderr,
            subprocess.Popen(
                command,
                cwd=HERE / "endpoint",
                env={**os.environ, "GEN_WORKER_RUN_DIR": folder, **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            ) as server,
        ):
            try:
                wait_until_ready(server, Path(f"{path}.json"), log)
                yield Served(server.pid, str(path), f"{folder}/{server.pid}/control.sock")
            finally:
                server.send_signal(signal.SIGTERM)
                try:
                    server.wait(GONE_WITHIN_S)
                except subprocess.TimeoutExpired:
                    server.kill()
                    raise


def wait_until_ready(server: subprocess.Popen[bytes], sidecar: Path, log: Path) -> None:
    """Wait for the sidecar, which says that requests are taken."""
    deadline = time.monotonic() + READY_WITHIN_S
    while not sidecar.exists():
        if server.poll() is not None:
            raise RuntimeError(f"`gen-worker serve` ended with {server.returncode}:\n{log.read_text()}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"`gen-worker serve` was not ready after {READY_WITHIN_S:.0f} s:\n{log.read_text()}")
        time.sleep(0.002)
    json.loads(sidecar.read_bytes())
