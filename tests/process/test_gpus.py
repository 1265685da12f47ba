"""A server on GPUs that are not there: what it does when their driver says that something is wrong."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from gen_worker_supervisor.core.state import Device
from gen_worker_supervisor.devices.cuda_probe import unusable
from tests.nvml.simulated import DOUBLE_BIT_ECC, GIB, GPU_IS_LOST, Simulated, World
from tests.served import ENDPOINTS, GEN_WORKER, Serve, Server, alive, environment, launch, serving, text_of, until

pytestmark = pytest.mark.process


def served(serve: Serve, world: Simulated, devices: str = "auto", **variables: str) -> Server:
    """Serve plain functions from GPUs."""
    return serve(module="gpus", devices=devices, variables=world.variables | variables)


def refused(folder: Path, world: Simulated, devices: str = "auto", **variables: str) -> str:
    """Start a second server in a folder of its own, which ends with 2; return what it says."""
    folder.mkdir(exist_ok=True)
    process = launch(folder, module="gpus", devices=devices, variables=world.variables | variables)
    assert process.wait(20) == 2
    return (folder / "log").read_text()


# --- whose GPU it is --------------------------------------------------------------------------------------------------


def test_a_second_supervisor_is_refused_with_which_gpu_and_whose(serve: Serve, world: World, tmp_path: Path) -> None:
    there = world(2)
    server = served(serve, there, "0")
    told = refused(tmp_path / "second", there, "0")
    whose = f"pid {server.pid} (`gen-worker serve gpus`), by its own account in `"
    assert f"error: cuda:0 ({there.uuid(0)}) is in use by {whose}" in told
    assert "hint: choose other devices with `--devices`" in told


def test_a_worker_that_a_person_starts_on_a_gpu_in_use_ends_with_2(serve: Serve, world: World, tmp_path: Path) -> None:
    there = world(1)
    server = served(serve, there)
    command = [*GEN_WORKER, "up", "--orchestrator", "127.0.0.1:1", "--module", "gpus", "--devices", "0"]
    variables = environment(tmp_path / "up") | there.variables | {"TENSORHUB_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(command, env=variables, cwd=ENDPOINTS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"is in use by pid {server.pid} (`gen-worker serve gpus`)" in done.stderr


def test_auto_takes_the_gpus_that_are_free_and_says_which_are_not(serve: Serve, world: World, tmp_path: Path) -> None:
    there = world(2)
    served(serve, there, "1")
    (tmp_path / "second").mkdir()
    with serving(tmp_path / "second", module="gpus", devices="auto", variables=there.variables) as second:
        assert list(second.devices()) == ["cuda:0", "cpu:0"]
        assert any(f"left out: cuda:1 ({there.uuid(1)}) is in use by pid" in event for event in second.events())
        told = refused(tmp_path / "third", there)
        assert "error: no GPU is free: cuda:0" in told
        assert "hint: end one of them, or serve without: `--devices cpu:1`" in told


def test_a_killed_supervisor_leaves_no_lock(serve: Serve, world: World, tmp_path: Path) -> None:
    there = world(1)
    server = served(serve, there)
    children = server.processes()
    server.signal(signal.SIGKILL)
    server.process.wait()
    until(lambda: not any(alive(pid) for pid in children), what="its children gone")
    (tmp_path / "second").mkdir()
    with serving(tmp_path / "second", module="gpus", devices="auto", variables=there.variables) as again:
        assert text_of(again.ask("where")) == there.uuid(0)


def test_cpu_slots_are_nobodys(serve: Serve, world: World, tmp_path: Path) -> None:
    there = world(1)
    served(serve, there, "cpu:1")
    (tmp_path / "second").mkdir()
    with serving(tmp_path / "second", module="gpus", devices="cpu:1", variables=there.variables) as second:
        assert list(second.devices()) == ["cpu:0"]


# --- which GPUs -------------------------------------------------------------------------------------------------------


def test_eight_gpus_have_a_child_each_that_sees_its_own_gpu_only(serve: Serve, world: World) -> None:
    there = world(8)
    server = served(serve, there)
    assert list(server.devices()) == [*(f"cuda:{index}" for index in range(8)), "cpu:0"]
    with server.connect() as connection:
        for index in range(8):
            connection.send("where", f"r{index}", gate="open")
        server.until_running(*(f"r{index}" for index in range(8)))
        server.open("open")
        answers = connection.frames(8)
    assert {text_of(answer) for answer in answers.values()} == {there.uuid(index) for index in range(8)}
    assert text_of(server.ask("plain")) == ""


def test_variables_that_hide_gpus_are_kept_and_said(serve: Serve, world: World, tmp_path: Path) -> None:
    there = world(3)
    server = served(serve, there, CUDA_VISIBLE_DEVICES=f"2,{there.uuid(0)[:12]}")
    assert list(server.devices()) == ["cuda:2", "cuda:0", "cpu:0"]
    assert any("cuda:1 not used: hidden by `CUDA_VISIBLE_DEVICES=2," in event for event in server.events())
    told = refused(tmp_path / "second", there, "1", CUDA_VISIBLE_DEVICES="2")
    assert "error: GPU `1` may not be used: hidden by `CUDA_VISIBLE_DEVICES=2`" in told


def test_a_gpu_that_was_lost_before_the_start_is_left_out(serve: Serve, world: World) -> None:
    there = world(2)
    there.gpus[0].error = GPU_IS_LOST
    server = served(serve, there)
    assert list(server.devices()) == ["cuda:1", "cpu:0"]
    assert any("GPU 0 is left out: the driver says: gpu is lost" in event for event in server.events())


# --- a dead child's memory --------------------------------------------------------------------------------------------


def test_the_next_child_comes_when_the_memory_is_back_or_after_ten_seconds_with_less(
    serve: Serve, world: World
) -> None:
    there = world(1)
    server = served(serve, there)
    gpu = there.gpus[0]
    baseline = int(gpu.used)
    before = server.pids()["cuda:0"]

    gpu.used = baseline + 2 * GIB
    os.kill(before, signal.SIGKILL)
    until(lambda: server.devices()["cuda:0"].phase == "settling", what="settling")
    gpu.used = baseline
    until(lambda: server.pids().get("cuda:0", before) != before, what="the next child")
    assert server.devices()["cuda:0"].health == "ok"
    server.until_idle()

    assert server.ask("where")["ok"]  # so that the next death is the first in a row
    gpu.used = baseline + 2 * GIB
    os.kill(server.pids()["cuda:0"], signal.SIGKILL)
    until(lambda: server.devices()["cuda:0"].health == "dirty", what="a dirty GPU")
    device = server.devices()["cuda:0"]
    assert device.vram_unattributed == 2 * GIB
    assert device.reason == "2048 MiB of its memory are in use and no child has them"
    assert f"device `cuda:0` is dirty: {device.reason}" in server.run("ps").stdout
    assert text_of(server.ask("where")) == there.uuid(0)  # the next child works all the same
    gpu.used = baseline
    until(lambda: server.devices()["cuda:0"].health == "ok", what="a clean GPU")
    assert server.devices()["cuda:0"].vram_unattributed == 0


# --- what the driver reports ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("report", ["xid", "ecc", "lost"])
def test_a_gpu_that_its_driver_gives_up_is_retired_with_the_reason_and_the_others_serve(
    serve: Serve, world: World, report: str
) -> None:
    there = world(2)
    for gpu in there.gpus:
        gpu.ecc = 1
    server = served(serve, there)
    with server.connect() as connection:
        connection.send("where", "doomed", gate="never")
        connection.send("where", "other", gate="open")
        server.until_running("doomed", "other")
        at = next(index for index in range(2) if server.devices()[f"cuda:{index}"].job == "doomed")
        if report == "lost":
            there.gpus[at].error = GPU_IS_LOST
        else:
            there.reports(at, **({"value": 79} if report == "xid" else {"kind": DOUBLE_BIT_ECC}))
        answer = connection.frame()
        assert (answer["request_id"], answer["error"]["kind"]) == ("doomed", "retryable")
        assert answer["error"]["detail"]["cause"] == "device_lost"
        server.open("open")
        assert connection.frame()["ok"]
    until(lambda: server.devices()[f"cuda:{at}"].pid is None, what="the child of the lost GPU gone")
    device = server.devices()[f"cuda:{at}"]
    reasons = {
        "xid": "XID 79: the GPU has fallen off the bus",
        "ecc": "double bit ECC error",
        "lost": "its driver says: gpu is lost",
    }
    assert (device.health, device.state, device.reason) == ("retired", "retired", reasons[report])
    assert text_of(server.ask("where")) == there.uuid(1 - at)


def test_a_gpu_that_is_lost_while_nothing_runs_is_retired_too(serve: Serve, world: World) -> None:
    there = world(2)
    server = served(serve, there)
    there.gpus[1].error = GPU_IS_LOST
    until(lambda: server.devices()["cuda:1"].health == "retired", what="a retired GPU")
    assert {text_of(server.ask("where")) for _ in range(3)} == {there.uuid(0)}


def test_the_last_gpu_that_is_lost_ends_the_server_with_1(serve: Serve, world: World, tmp_path: Path) -> None:
    there = world(1)
    process = launch(tmp_path, "--function", "where", module="gpus", devices="0", variables=there.variables)
    until((tmp_path / "gw.sock.json").exists, what="the sidecar")
    there.reports(0, value=62)
    assert process.wait(20) == 1
    assert (
        "no device can serve: cuda:0 is retired: XID 62: internal micro-controller halt"
        in (tmp_path / "log").read_text()
    )


def test_an_error_that_spoils_one_context_costs_its_job_and_names_it(serve: Serve, world: World) -> None:
    there = world(1)
    server = served(serve, there)
    with server.connect() as connection:
        connection.send("where", "spoilt", gate="open", error="CUDA error: an illegal memory access was encountered")
        server.until_running("spoilt")
        there.reports(0, value=31)
        until(lambda: any("XID 31: GPU memory page fault" in event for event in server.events()), what="the event")
        server.open("open")
        answer = connection.frame()
    assert answer["error"]["message"].endswith("(XID 31: GPU memory page fault)")
    assert server.devices()["cuda:0"].health == "ok"
    assert text_of(server.ask("where")) == there.uuid(0)


def test_a_driver_that_takes_its_time_holds_nobody_up(serve: Serve, world: World) -> None:
    there = world(1)
    server = served(serve, there)
    there.gpus[0].delay = 60_000
    for _ in range(20):
        began = time.monotonic()
        assert server.ask("where")["ok"]
        assert time.monotonic() - began < 0.5
    there.gpus[0].delay = 0


def test_a_start_that_a_hung_driver_holds_up_can_be_ended(world: World, tmp_path: Path) -> None:
    there = world(1)
    there.gpus[0].delay = 60_000
    process = launch(tmp_path, module="gpus", devices="auto", variables=there.variables)
    until(lambda: "libnvidia-ml" in Path(f"/proc/{process.pid}/maps").read_text(), what="the question")
    process.terminate()
    process.wait(5)


def test_a_driver_that_fails_at_the_start_is_named_with_what_tells_more(world: World, tmp_path: Path) -> None:
    there = world(1)
    there.gpus[0].error = 999
    told = refused(tmp_path / "failing", there)
    assert "error: GPU 0 cannot be measured: unknown error\nhint: `gen-worker doctor` looks at the driver" in told


def test_of_a_gpu_whose_driver_hangs_nothing_is_told_that_was_true_before_and_the_others_are_read_on(
    serve: Serve, world: World
) -> None:
    there = world(2)
    server = served(serve, there)
    hung, other = there.gpus
    hung.used = 5 * GIB
    until(lambda: server.devices()["cuda:0"].vram_used == 5 * GIB, what="what is in use")
    hung.delay = 3_600_000
    until(lambda: server.devices()["cuda:0"].vram_used is None, within_s=30, what="the silence")
    assert "cuda:0: its driver has not answered for 10 s" in server.events()
    other.used, other.busy = 7 * GIB, 50
    until(lambda: server.devices()["cuda:1"].vram_used == 7 * GIB, what="the other one")
    devices = server.devices()
    assert (devices["cuda:0"].util, devices["cuda:0"].temp, devices["cuda:0"].power_w) == (None, None, None)
    assert devices["cuda:1"].util == 0.5
    assert server.ask("where")["ok"]
    assert sum("has not answered" in event for event in server.events()) == 1
    hung.delay = 0
    until(lambda: server.devices()["cuda:0"].vram_used == 5 * GIB, what="the answer")


def test_what_the_driver_says_of_memory_and_work_stands_in_the_status(serve: Serve, world: World) -> None:
    there = world(1)
    server = served(serve, there)
    gpu = there.gpus[0]
    gpu.used, gpu.busy, gpu.temperature, gpu.power = 5 * GIB, 73, 64, 301_500
    until(lambda: server.devices()["cuda:0"].vram_used == 5 * GIB, what="what is in use")
    device = server.devices()["cuda:0"]
    assert (device.util, device.temp, device.power_w) == (0.73, 64.0, 301.5)


def test_programs_that_look_whether_cuda_can_use_them_find_that_it_can(world: World) -> None:
    there = world(2)
    owned = [Device(f"cuda:{index}", "cuda", index=index, uuid=there.uuid(index)) for index in range(2)]
    assert unusable(owned, os.environ | there.variables) == {}


def test_a_part_of_a_gpu_is_shown_as_what_it_is_and_not_as_idle(serve: Serve, world: World) -> None:
    there = world(2)
    parts = there.divide(1, "3g.12gb", "1g.3gb")
    server = served(serve, there)
    parts[0].used = GIB
    until(lambda: server.devices()["cuda:1:0"].vram_used == GIB, what="what is in use")
    devices = server.devices()
    assert list(devices) == ["cuda:0", "cuda:1:0", "cuda:1:1", "cpu:0"]
    part = devices["cuda:1:0"]
    assert (part.index, part.mig, part.vram_total) == (1, "3g.12gb", 12 * GIB)
    assert (part.uuid or "").startswith("MIG-")
    assert part.product == "NVIDIA GeForce RTX 4090 MIG 3g.12gb"
    assert (part.util, part.temp, part.power_w) == (None, None, None)
    assert (devices["cuda:0"].mig, devices["cuda:0"].util, devices["cpu:0"].util) == (None, 0.0, None)


def test_deaths_are_counted_by_cause_and_no_death_is_a_childs_that_an_operator_replaced(
    serve: Serve, world: World
) -> None:
    server = served(serve, world(1))
    assert server.ask("die")["error"]["kind"] == "child_died"  # it ran once more, alone
    until(lambda: server.devices()["cuda:0"].state == "idle", what="the next child")
    assert server.devices()["cuda:0"].deaths == {"SIGABRT": 2}
    assert server.run("restart", "cuda:0").returncode == 0
    device = server.devices()["cuda:0"]
    assert (device.deaths, device.restarts, device.jobs_done) == ({"SIGABRT": 2}, 3, 0)
    assert server.ask("where")["ok"]
    assert server.devices()["cuda:0"].jobs_done == 1


def test_what_a_child_does_not_say_of_its_gpus_memory_is_nobodys(serve: Serve, world: World) -> None:
    server = served(serve, world(1))
    device = server.devices()["cuda:0"]
    assert device.vram_used is not None
    assert (device.vram_ours, device.vram_other) == (None, None)
