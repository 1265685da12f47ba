"""What of the worker's environment the author's code sees."""

import pytest

from gen_worker_supervisor.environment import author_environment, child_environment
from gen_worker_supervisor.state import Device

SECRET = ["HF_TOKEN", "WORKER_TOKEN", "AUTH_TOKEN", "HUGGINGFACE_TOKEN", "GEN_WORKER_TOKEN", "CIVITAI_TOKEN"]


@pytest.mark.parametrize("name", [*SECRET, "SCHEDULER_JWKS_URL", "ORCHESTRATOR_ADDR", "RUNPOD_POD_ID", "TENSORHUB_X"])
def test_what_belongs_to_the_worker_does_not_pass(name: str) -> None:
    assert "canary" not in author_environment({name: "canary"}).values()


@pytest.mark.parametrize("name", ["PATH", "HOME", "OPENAI_API_KEY", "MY_TENANTS_SECRET", "HF_HOME", "LD_LIBRARY_PATH"])
def test_what_belongs_to_the_endpoint_passes(name: str) -> None:
    assert author_environment({name: "value"})[name] == "value"


def test_nothing_is_fetched_by_the_authors_libraries() -> None:
    assert author_environment({"HF_HUB_OFFLINE": "0"})["HF_HUB_OFFLINE"] == "1"


def test_a_child_sees_its_own_gpu_only() -> None:
    gpu = Device("cuda:1", "cuda", index=1, uuid="GPU-111")
    seen = child_environment({"CUDA_VISIBLE_DEVICES": "0,1"}, gpu)
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["GEN_WORKER_LOCAL_DEVICE"]) == ("GPU-111", "cuda")


def test_a_child_on_the_cpu_sees_no_gpu() -> None:
    seen = child_environment({"CUDA_VISIBLE_DEVICES": "0,1"}, Device("cpu:0", "cpu"))
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["GEN_WORKER_LOCAL_DEVICE"]) == ("", "cpu")
