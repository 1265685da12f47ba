"""A child that SIGKILL does not end, as one that a driver holds in the kernel: its device is given up in two steps."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.served import GEN_WORKER, Serve, alive, environment, text_of, until

pytestmark = [pytest.mark.process, pytest.mark.root]

FREEZER = Path("/sys/fs/cgroup/freezer")


@pytest.fixture
def ice() -> Iterator[Path]:
    """A group of processes that the kernel may hold: what is sent to them waits."""
    group = FREEZER / f"gen-worker-tests-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"needs the freezer of cgroup v1: {error.strerror}")
    yield group
    (group / "freezer.state").write_text("THAWED")
    until(lambda: not (group / "cgroup.procs").read_text(), what="an empty group")
    group.rmdir()


@pytest.mark.promise(8)
@pytest.mark.timeout(60)
def test_a_child_that_sigkill_does_not_end_costs_its_device_and_nobody_else(serve: Serve, ice: Path) -> None:
    server = serve(devices="cpu:2")
    with server.connect() as connection:
        connection.send("gated", "held", gate="never")
        server.until_running("held")
        (child,) = server.homes("held")
        name = next(name for name, pid in server.pids().items() if pid == child)
        (ice / "cgroup.procs").write_text(str(child))
        (ice / "freezer.state").write_text("FROZEN")
        began = time.monotonic()
        command = [*GEN_WORKER, "restart", name, "--now", "--socket", str(server.socket)]
        restart = subprocess.Popen(
            command, env=environment(server.folder), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        frame = connection.frame()
        assert 10 < time.monotonic() - began < 14
        assert (frame["request_id"], frame["error"]["retryable"]) == ("held", True)
        device = server.devices()[name]
        assert (device.health, device.state) == ("wedged", "wedged")
        assert device.reason == f"child {child} is not dead 10 s after SIGKILL"
        assert text_of(server.ask("echo", text="on")) == "on"
        assert alive(child)
        assert server.homes("held") == [child]  # nobody else was put at risk
        _, said = restart.communicate(timeout=40)
        assert restart.returncode != 0
        assert said
        until(lambda: server.devices()[name].health == "retired", 40, what="a retired device")
        assert 30 < time.monotonic() - began < 36
    assert server.devices()[name].reason == f"child {child} is not dead 30 s after SIGKILL"
    assert {function.state for function in server.status().functions} == {"available"}
    assert f"device `{name}` is retired: child {child} is not dead" in server.run("ps").stdout
    (ice / "freezer.state").write_text("THAWED")
    until(lambda: not alive(child), what="the child gone")
    assert server.devices()[name].health == "retired"
    assert text_of(server.ask("echo", text="still on")) == "still on"
