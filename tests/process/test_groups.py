"""Groups of GPUs: one child has several, beside children that have one each."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gen_worker.wire.status import DeviceStatus
from tests.nvml.simulated import GIB, GPU_IS_LOST, Simulated, World
from tests.served import Serve, Server, alive, launch, serving, text_of, until

pytestmark = pytest.mark.process


def served(serve: Serve, world: Simulated, devices: str = "auto", **variables: str) -> Server:
    """Serve functions for one, two and eight GPUs."""
    return serve(module="grouped", devices=devices, variables=world.variables | variables)


def value(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what a buffered answer of one value carries."""
    assert answer["ok"], answer
    return dict(answer["events"][-1]["value"])


def test_four_gpus_are_a_group_of_two_and_two_single_ones_that_work_side_by_side(serve: Serve, world: World) -> None:
    there = world(4)
    server = served(serve, there)
    assert list(server.devices()) == ["cuda:0+1", "cuda:2", "cuda:3"]
    with server.connect() as connection:
        for name, request in (("double", "d"), ("single", "s"), ("single", "t"), ("double", "waits")):
            connection.send(name, request, gate="open")
        server.until_running("d", "s", "t")
        server.open("open")
        answers = connection.frames(4)
    pair = ",".join(there.uuid(index) for index in range(2))
    assert {text_of(answers[name]) for name in ("d", "waits")} == {pair}
    assert {text_of(answers[name]) for name in ("s", "t")} == {there.uuid(2), there.uuid(3)}
    assert (value(answers["d"])["gpus"], value(answers["s"])["gpus"]) == (2, 1)
    refused = server.ask("eightfold")["error"]
    told = "`eightfold` is unavailable: insufficient_gpus: it needs 8 GPUs in one group, the largest group here has 2"
    assert (refused["kind"], refused["message"]) == ("unavailable", told)

    before = there.gpus[0].used, there.gpus[1].used
    there.gpus[0].used, there.gpus[1].used = 3 * GIB, 5 * GIB
    there.gpus[0].temperature, there.gpus[1].temperature = 50, 70
    group = device(server, "cuda:0+1", lambda it: it.vram_used == 8 * GIB and it.temp == 70)
    assert (group.index, group.uuid, group.vram_total, group.temp) == (0, None, 48 * GIB, 70)
    assert [(each.name, each.uuid, each.vram_used) for each in group.members] == [
        ("cuda:0", there.uuid(0), 3 * GIB),
        ("cuda:1", there.uuid(1), 5 * GIB),
    ]
    there.gpus[0].used, there.gpus[1].used = before  # a child that goes leaves nothing
    assert "0+1 cuda:0+1" in server.run("ps").stdout
    assert "`cuda:0+1` is drained" in server.run("drain", "1").stdout
    assert server.ask("double")["error"]["kind"] == "unavailable"
    assert server.run("undrain", there.uuid(1)).returncode == 0
    assert server.run("restart", "cuda:1").returncode == 0
    assert text_of(server.ask("double")) == pair


def device(server: Server, name: str, that: Callable[[DeviceStatus], bool]) -> DeviceStatus:
    """Return a device as soon as something holds of it."""
    until(lambda: that(server.devices()[name]), what=f"{name} as it is to be")
    return server.devices()[name]


def test_the_crash_of_a_groups_child_leaves_the_others_serving(serve: Serve) -> None:
    server = serve(module="grouped", devices="cpu:3")
    assert list(server.devices()) == ["cpu:0+1", "cpu:2"]
    with server.connect() as connection:
        connection.send("double", "lost", gate="open")
        connection.send("single", "kept", gate="open")
        server.until_running("lost", "kept")
        before = server.pids()
        os.kill(before["cpu:0+1"], signal.SIGKILL)
        until(lambda: server.pids().get("cpu:0+1", before["cpu:0+1"]) != before["cpu:0+1"], what="the next child")
        server.open("open")
        answers = connection.frames(2)
    assert (value(answers["kept"])["pid"], value(answers["lost"])["gpus"]) == (before["cpu:2"], 2)
    assert server.pids()["cpu:2"] == before["cpu:2"]


def test_a_lost_member_retires_its_group_and_the_single_gpu_serves(serve: Serve, world: World) -> None:
    there = world(3)
    server = served(serve, there)
    there.gpus[1].error = GPU_IS_LOST
    group = device(server, "cuda:0+1", lambda it: it.health == "retired")
    assert group.reason == "cuda:1: its driver says: gpu is lost"
    assert server.ask("double")["error"]["kind"] == "unavailable"
    assert text_of(server.ask("single")) == there.uuid(2)


def test_who_names_no_group_is_told_what_to_name(serve: Serve, world: World) -> None:
    there = world(2)
    server = served(serve, there, "0,1")
    told = (server.folder / "log").read_text()
    assert "insufficient_gpus: it needs 2 GPUs in one group, and no device here is a group" in told
    assert "hint: `--devices 0+1` makes these GPUs a group" in told
    assert list(server.devices()) == ["cuda:0", "cuda:1"]


def test_each_member_is_locked_and_auto_makes_groups_of_what_is_free(
    serve: Serve, world: World, tmp_path: Path
) -> None:
    there = world(4)
    server = served(serve, there, "1+2")
    assert list(server.devices()) == ["cuda:1+2"]
    assert text_of(server.ask("single")) == f"{there.uuid(1)},{there.uuid(2)}"  # there is no smaller device
    (tmp_path / "second").mkdir()
    process = launch(tmp_path / "second", module="grouped", devices="0+1", variables=there.variables)
    assert process.wait(20) == 2
    assert f"error: cuda:1 ({there.uuid(1)}) is in use by pid {server.pid}" in (tmp_path / "second/log").read_text()
    (tmp_path / "third").mkdir()
    with serving(tmp_path / "third", module="grouped", devices="auto", variables=there.variables) as third:
        assert list(third.devices()) == ["cuda:0+3"]


@pytest.mark.needs("torch")
def test_ranks_that_a_groups_child_started_compute_together_and_die_with_it(serve: Serve) -> None:
    server = serve(module="ranks", devices="cpu:2")
    answer = value(server.ask("add", value=2.0))
    assert answer["text"] == "6.0"  # 2 times 1, and 2 times 2
    assert all(alive(pid) for pid in answer["ranks"])
    os.kill(server.pids()["cpu:0+1"], signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in answer["ranks"]), what="no rank without its child")
