"""Pipelines that a server keeps on its devices: built from annotations, swapped, and back at once after a crash."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gen_worker.testing import LoopbackHub, make_tiny
from tests.served import Server, serving, until

pytestmark = [
    pytest.mark.process,
    pytest.mark.needs("torch", "diffusers", "transformers", "accelerate"),
    pytest.mark.timeout(240),
]

Serving = Callable[..., Server]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("sdxl", tmp_path_factory.mktemp("repositories") / "xl", dtype="fp32", seed=1)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, large: Path) -> Iterator[LoopbackHub]:
    repositories = tmp_path_factory.mktemp("repositories")
    with LoopbackHub() as hub:
        hub.add_repo("acme/small", make_tiny("sd15", repositories / "small", dtype="fp32"))
        hub.add_repo("acme/xl", large)
        yield hub


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def server(hub: LoopbackHub, cache: Path, tmp_path: Path) -> Iterator[Serving]:
    with ExitStack() as stack:

        def start(*arguments: str, **options: Any) -> Server:
            own = {**hub.variables(), "TENSORHUB_CACHE_DIR": str(cache), "HF_HOME": "", "HF_TOKEN": ""}
            own |= options.pop("variables", {})
            options = {"devices": "cpu:1", **options}
            return stack.enter_context(serving(tmp_path, *arguments, module="pipelines", variables=own, **options))

        yield start


def answer(frame: dict[str, Any]) -> dict[str, Any]:
    """Return what a job answered."""
    assert frame["ok"], frame
    answered: dict[str, Any] = frame["events"][-1]["value"]
    return answered


def resident(server: Server) -> set[str]:
    """Return the models that the first device holds."""
    (device, *_) = server.status().gpus
    return {model.ref for model in device.models}


def bytes_of(server: Server, ref: str) -> int:
    """Return what a model takes of the device that holds it."""
    return sum(model.bytes or 0 for device in server.status().gpus for model in device.models if model.ref == ref)


@pytest.mark.promise(46)
def test_a_killed_child_is_replaced_by_one_that_has_its_weights_without_the_disk(
    server: Serving, cache: Path, tmp_path: Path
) -> None:
    running = server()
    before = answer(running.ask("xl"))
    until(lambda: any("acme/xl` is in host memory" in line for line in running.events()), what="the copy in memory")
    hidden = cache.rename(cache.with_name("hidden"))
    try:
        os.kill(before["pid"], signal.SIGKILL)
        after = answer(running.ask("xl"))
    finally:
        hidden.rename(cache)
    assert after["pid"] != before["pid"]
    assert after["latents"] == before["latents"]
    assert not running.devices()["cpu:0"].models[0].rung


def test_weights_that_were_damaged_on_disk_cost_a_waiting_job_nothing_but_time(server: Serving, cache: Path) -> None:
    started = server(variables={"GEN_WORKER_HOST_CACHE_BYTES": "0"})
    before = answer(started.ask("small", "r1"))
    weights = next(path for path in cache.rglob("unet/*.safetensors") if "small" in str(path)).resolve()
    mode = weights.stat().st_mode
    weights.chmod(0o644)
    with weights.open("r+b") as file:
        file.write(b"\xff" * 64)
    weights.chmod(mode)
    os.kill(before["pid"], signal.SIGKILL)
    after = answer(started.ask("small", "r2"))
    assert after["latents"] == before["latents"]
    assert weights.read_bytes()[:64] != b"\xff" * 64


def test_two_pipelines_that_do_not_fit_together_take_turns_and_come_back_the_same(server: Serving) -> None:
    first = server("--vram-budget", "1")
    latents = {name: answer(first.ask(name))["latents"] for name in ("small", "xl")}
    assert resident(first) == {"acme/small", "acme/xl"}
    largest = max(bytes_of(first, ref) for ref in ("acme/small", "acme/xl"))
    first.close()

    second = server("--vram-budget", str(1.2 * largest / (1 << 30)))
    for _ in range(2):
        for name in ("small", "xl"):
            assert answer(second.ask(name))["latents"] == latents[name]
            assert resident(second) == {f"acme/{name}"}
    assert sum("unloaded: its device has no room" in line for line in second.events()) == 3
    assert second.status().gpus[0].restarts == 0


def test_a_pinned_pipeline_makes_room_for_no_other_and_is_back_after_a_crash_before_anybody_asks(
    server: Serving, large: Path
) -> None:
    size = sum(file.stat().st_size for file in large.rglob("*.safetensors"))
    chosen = ("--function", "small", "--function", "xl", "--vram-budget", str(1.002 * size / (1 << 30)))
    running = server(*chosen)
    operator = running.client
    assert operator.model("pin", "acme/xl").devices == ["cpu:0"]
    assert operator.model("load", "acme/xl").outcome == "done"
    assert [(each.ref, each.pinned) for each in running.devices()["cpu:0"].models] == [("acme/xl", True)]

    told = running.ask("small")["error"]
    assert "are of what is pinned: `acme/xl`" in told["message"]
    assert told["detail"]["hint"] == "`gen-worker models unpin acme/xl` lets it go for others"
    refused = operator.model("load", "small")
    assert refused.outcome == "failed"
    assert "insufficient_vram" in refused.message

    victim = running.devices()["cpu:0"].pid
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    until(lambda: running.devices()["cpu:0"].pid != victim and resident(running) == {"acme/xl"}, what="its return")

    assert operator.model("unpin", "xl").outcome == "done"
    assert running.ask("small")["ok"]
    assert resident(running) == {"acme/small"}
    assert operator.model("unload", "small").devices == ["cpu:0"]
    assert resident(running) == set()


def test_a_pipeline_larger_than_its_device_runs_on_a_lower_rung_that_is_told(server: Serving) -> None:
    first = server("--vram-budget", "1")
    latents = answer(first.ask("xl"))["latents"]
    size = bytes_of(first, "acme/xl")
    first.close()

    second = server("--vram-budget", str(0.8 * size / (1 << 30)))
    assert answer(second.ask("xl"))["latents"] == pytest.approx(latents, abs=1e-4)  # memory is aligned otherwise
    (model,) = second.devices()["cpu:0"].models
    assert model.rung in ("model_offload", "group_offload")
    assert any(f"degraded to {model.rung}" in line for line in second.events())


def test_a_pipeline_that_fits_on_no_rung_is_gated_with_the_figures(server: Serving) -> None:
    running = server("--vram-budget", "0.000001")
    told = running.ask("small")["error"]
    assert (told["kind"], told["retryable"]) == ("unavailable", True)
    assert (
        "insufficient_vram: `acme/small`: weights and margin need 8.1 MB, and 0.0 MB of the device can be had"
        in told["message"]
    )
    assert running.status().gpus[0].restarts == 0


def test_a_repository_of_another_class_than_the_annotation_is_refused_before_anything_loads(server: Serving) -> None:
    running = server("--function", "mistaken")
    told = running.ask("mistaken")["error"]
    assert told["kind"] == "model_resolution"
    assert "acme/xl" in told["message"]
    assert "StableDiffusionXLPipeline" in told["message"]
    assert "StableDiffusionPipeline" in told["message"]


def test_steps_of_a_pipeline_reach_the_caller_and_a_cancel_ends_it_between_two(server: Serving) -> None:
    running = server("--function", "small")
    answer(running.ask("small"))
    with running.connect() as connection:
        connection.line({"function": "small", "payload": {"steps": 900}, "request_id": "long", "events": True})
        progress = connection.frame()
        assert progress["event"] == "progress"
        assert progress["value"]["progress"] > 0
        with running.connect() as other:
            other.cancel("long")
            assert other.frame()["canceled"] is True
        while "ok" not in (last := connection.frame()):
            pass
    assert last["error"]["kind"] == "canceled"
    assert running.status().gpus[0].restarts == 0
