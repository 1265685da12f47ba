"""What of the worker's environment the author's code sees, and what a log must not show."""

from pathlib import Path
from typing import Literal

import pytest

from gen_worker.environment import author_environment, secret_values
from gen_worker.settings import VARIABLES, Secret, Settings
from gen_worker_supervisor.core.state import Device
from gen_worker_supervisor.processes.environment import child_environment, threads_of_each

SECRET = [
    *("WORKER_JWT", "WORKER_TOKEN", "AUTH_TOKEN", "GEN_WORKER_TOKEN", "COZY_HUB_TOKEN", "FILE_API_TOKEN"),
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "HUGGINGFACEHUB_API_TOKEN"),
    *("CIVITAI_TOKEN", "CIVITAI_API_KEY"),
]
COLLECTOR = ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"]


@pytest.mark.parametrize(
    "name", [*SECRET, *COLLECTOR, "SCHEDULER_JWKS_URL", "ORCHESTRATOR_ADDR", "RUNPOD_POD_ID", "TENSORHUB_X"]
)
def test_what_belongs_to_the_worker_does_not_pass(name: str) -> None:
    assert "canary" not in author_environment({name: "canary"}).values()


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "HOME", "OPENAI_API_KEY", "MY_TENANTS_SECRET", "HF_HOME", "LD_LIBRARY_PATH"),
        *("WORKER_MAX_VRAM_GB", "WORKER_VRAM_SAFETY_MARGIN_GB", "WORKER_MODEL_CACHE_DIR", "COZY_HUB_URL"),
    ],
)
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


@pytest.mark.parametrize(
    ("kinds", "cores", "threads"),
    [
        (["cpu"], 8, {}),
        (["cpu", "cpu"], 8, {"OMP_NUM_THREADS": "4"}),
        (["cpu"] * 16, 8, {"OMP_NUM_THREADS": "1"}),
        (["cuda", "cuda", "cpu"], 96, {"OMP_NUM_THREADS": "48"}),
        (["cuda", "cpu"], 96, {}),
    ],
)
def test_children_share_the_cores(kinds: list[Literal["cpu", "cuda"]], cores: int, threads: dict[str, str]) -> None:
    devices = [Device(f"{kind}:{number}", kind) for number, kind in enumerate(kinds)]
    assert threads_of_each({}, devices, cores) == threads
    assert threads_of_each({"OMP_NUM_THREADS": "3"}, devices, cores) == {}


def test_no_secret_of_the_settings_passes() -> None:
    settings = Settings(run_dir=Path("/run"), cache_dir=Path("/cache"), token=Secret("x"))
    names = [
        name for field, each in VARIABLES.items() if isinstance(getattr(settings, field), Secret) for name in each.names
    ]
    assert names
    assert "canary" not in author_environment(dict.fromkeys(names, "canary")).values()


# --- what a log must not show -----------------------------------------------------------------------------------------


def hidden(environment: dict[str, str], **settings: str) -> tuple[str, ...]:
    return secret_values(environment, Settings.load(settings, env={}, folder=Path("/nowhere"), root=Path("/nowhere")))


@pytest.mark.parametrize("name", [*SECRET, "ACME_API_KEY", "DB_PASSWORD", "CLIENT_SECRET", "aws_credentials"])
def test_the_value_of_a_variable_that_is_named_like_a_secret_is_one(name: str) -> None:
    assert hidden({name: " 12345678\n"}) == ("12345678",)


@pytest.mark.parametrize("name", COLLECTOR)
def test_the_key_for_a_collector_is_one(name: str) -> None:
    assert hidden({name: "x-api-key=12345678-key,b=87654321"}) == ("12345678-key", "87654321")


def test_a_secret_that_stands_in_a_file_is_one_too() -> None:
    assert hidden({}, token="open sesame", worker_jwt="a.b.c.d.e", hf_token="short") == ("open sesame", "a.b.c.d.e")


def test_what_is_short_or_named_otherwise_is_no_secret() -> None:
    assert hidden({"API_KEY": "1234567", "API_KEY_PATH": "/etc/acme/key", "KEYBOARD": "querty-standard"}) == ()


def test_longer_secrets_come_before_what_they_contain() -> None:
    assert hidden({"A_KEY": "12345678", "B_KEY": "12345678-9", "C_KEY": "12345678"}) == ("12345678-9", "12345678")


def test_each_line_of_a_long_secret_that_is_not_short_is_one() -> None:
    value = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nx==\n-----END KEY-----"
    assert hidden({"SIGNING_KEY": value}) == ("-----BEGIN KEY-----", "-----END KEY-----", "MIIEvQIBADANBg")


def test_a_secret_shows_as_one_where_it_is_only_looked_at() -> None:
    assert (repr(Secret("canary")), str(Secret("canary")), repr(Secret(""))) == ("<secret>", "canary", "''")
