"""What a worker says of its host and of itself."""

import base64
import os
from pathlib import Path

import msgspec
import pytest

from gen_worker.entrypoint import Identity, identity
from gen_worker.settings import Settings
from gen_worker.wire.scheduler import WorkerResources
from gen_worker_supervisor.core.phases import Health
from gen_worker_supervisor.core.state import Device
from gen_worker_supervisor.link.resources import resources


def load(**variables: str) -> Settings:
    return Settings.load(env=variables, folder=Path("/nowhere"), root=Path("/nowhere"))


def gpu(index: int, product: str = "NVIDIA L40S", sm: str = "89", vram_gb: int = 48) -> Device:
    return Device(f"cuda:{index}", "cuda", index=index, vram_total=vram_gb << 30, product=product, sm=sm)


def jwt(claims: object) -> str:
    parts = [msgspec.json.encode({"alg": "RS256"}), msgspec.json.encode(claims), b"signature"]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def test_memory_is_summed_over_the_gpus_of_the_worker() -> None:
    settings = load(WORKER_IMAGE_DIGEST="sha256:abc", WORKER_GIT_COMMIT="0123", RUNPOD_POD_ID="pod-7")
    devices = [gpu(0), gpu(1), Device("cpu:0", "cpu")]
    assert resources(devices, ["torchao"], settings) == WorkerResources(
        gpu_count=2,
        vram_total_bytes=96 << 30,
        gpu_name="NVIDIA L40S",
        gpu_sm="89",
        installed_libs=("torchao",),
        image_digest="sha256:abc",
        git_commit="0123",
        instance_id="pod-7",
    )


def test_a_gpu_that_is_lost_does_not_count_any_more() -> None:
    devices = [gpu(0), gpu(1), gpu(2)]
    devices[0].health, devices[1].given_up = Health.RETIRED, "its child died 3 times before it was ready"
    told = resources(devices, [], load())
    assert (told.gpu_count, told.vram_total_bytes) == (1, 48 << 30)


def test_of_different_gpus_each_name_is_said_and_the_capability_that_all_have() -> None:
    told = resources([gpu(0, "NVIDIA B200", "100"), gpu(1)], [], load())
    assert (told.gpu_name, told.gpu_sm) == ("NVIDIA B200, NVIDIA L40S", "89")


def test_a_host_without_gpus_has_none() -> None:
    assert resources([Device("cpu:0", "cpu")], [], load()) == WorkerResources()


@pytest.mark.parametrize(
    ("variables", "who"),
    [
        ({}, Identity(f"py-worker-{os.getpid()}", "")),
        ({"WORKER_JWT": jwt({"sub": "w-1", "release_id": "r-2"})}, Identity("w-1", "r-2")),
        ({"WORKER_JWT": jwt({"sub": "w-1"}), "WORKER_ID": "mine"}, Identity("mine", "")),
        ({"WORKER_JWT": jwt({"sub": 7, "release_id": None})}, Identity(f"py-worker-{os.getpid()}", "")),
        ({"WORKER_JWT": "opaque"}, Identity(f"py-worker-{os.getpid()}", "")),
    ],
)
def test_a_worker_is_who_its_settings_say_else_who_its_token_says(variables: dict[str, str], who: Identity) -> None:
    assert identity(load(**variables)) == who
