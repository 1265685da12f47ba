"""Jobs whose device runs out of memory: what the server makes of them, and what is left of the child."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gen_worker.testing import LoopbackHub, make_tiny
from tests.served import Server, serving

pytestmark = [
    pytest.mark.process,
    pytest.mark.needs("torch", "diffusers", "transformers", "accelerate"),
    pytest.mark.timeout(240),
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    repository = make_tiny("sd15", tmp_path_factory.mktemp("tiny"), dtype="fp32")
    with LoopbackHub() as hub:
        for name in ("small", "other", "third"):
            hub.add_repo(f"acme/{name}", repository)
        yield hub


@pytest.fixture
def server(hub: LoopbackHub, tmp_path: Path) -> Iterator[Server]:
    own = {**hub.variables(), "TENSORHUB_CACHE_DIR": str(tmp_path / "cache"), "HF_HOME": "", "HF_TOKEN": ""}
    with serving(tmp_path, "--vram-budget", "1", module="hungry", variables=own) as running:
        yield running


@pytest.mark.promise(5)
def test_a_job_gets_more_room_step_by_step_and_a_job_that_gets_none_costs_nobody_else(server: Server) -> None:
    rested = server.ask("rest")
    assert rested["ok"], rested
    (pid,) = server.pids().values()

    fed = server.ask("eat", enough="model_offload")
    assert fed["ok"], fed
    assert fed["events"][-1]["value"] == {"rung": "model_offload", "calls": 5, "pid": pid}
    told = [line for line in server.events() if "out of memory" in line]
    assert [line.partition("out of memory: ")[2] for line in told] == [
        "memory that was kept for later was given back",
        "let go of `hungry:Other`",
        "`StableDiffusionPipeline` placed as `vae_only`",
        "`StableDiffusionPipeline` placed as `model_offload`",
    ]
    (model,) = server.devices()["cpu:0"].models
    assert (model.ref, model.rung) == ("acme/small", "model_offload")

    starved = server.ask("eat", enough="never")
    error = starved["error"]
    assert (error["kind"], error["retryable"]) == ("out_of_memory", True)
    assert error["message"].startswith("out of memory after free_cache, group_offload")

    again = server.ask("eat", enough="group_offload")
    assert again["events"][-1]["value"] == {"rung": "group_offload", "calls": 1, "pid": pid}
    assert server.ask("rest")["ok"]
    assert server.pids() == {"cpu:0": pid}
    assert server.status().gpus[0].restarts == 0


@pytest.mark.parametrize("asked", ["sip", "drink", "nibble"])
def test_an_asynchronous_job_gets_the_room_of_models_whose_shutdown_needs_the_loop_or_its_own_thread(
    asked: str, server: Server
) -> None:
    for other in ("rest", "wait"):
        answered = server.ask(other)
        assert answered["ok"], answered
    fed = server.ask(asked)
    assert fed["ok"], fed
    assert [event["value"]["calls"] for event in fed["events"] if "calls" in event["value"]] == [3]
    assert {ref for each in server.devices().values() for ref in [model.ref for model in each.models]} == {"acme/small"}
    assert "shut down where it was set up: True" in server.log()
    assert server.status().gpus[0].restarts == 0
