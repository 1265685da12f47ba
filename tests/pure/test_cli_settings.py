"""Settings: what each variable does, and what a bad value says."""

from pathlib import Path

import pytest

from gen_worker.settings import Settings, SettingsError
from gen_worker.wire.messages import REGION_LIMIT


def test_without_variables_the_documented_defaults_hold() -> None:
    settings = Settings.from_env({"GEN_WORKER_RUN_DIR": "/somewhere"})
    assert settings == Settings(
        run_dir=Path("/somewhere"),
        max_queued=10_000,
        max_input_bytes=64 << 20,
        max_output_bytes=64 << 20,
        local_output_dir=Path(".gen-worker-run/outputs"),
        local_device=None,
    )


def test_each_variable_sets_its_field() -> None:
    settings = Settings.from_env(
        {
            "GEN_WORKER_RUN_DIR": "/somewhere",
            "GEN_WORKER_MAX_QUEUED": "5",
            "WORKER_MAX_INPUT_BYTES": "1000",
            "WORKER_MAX_OUTPUT_BYTES": "0",
            "GEN_WORKER_LOCAL_OUTPUT_DIR": "/outputs",
            "GEN_WORKER_LOCAL_DEVICE": "cuda:1",
        }
    )
    assert settings == Settings(
        run_dir=Path("/somewhere"),
        max_queued=5,
        max_input_bytes=1000,
        max_output_bytes=REGION_LIMIT,
        local_output_dir=Path("/outputs"),
        local_device="cuda:1",
    )


def test_an_empty_variable_counts_as_unset() -> None:
    assert Settings.from_env({"GEN_WORKER_MAX_QUEUED": " ", "GEN_WORKER_LOCAL_DEVICE": ""}).max_queued == 10_000


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("GEN_WORKER_MAX_QUEUED", "many", "`GEN_WORKER_MAX_QUEUED` must be a whole number, not `many`"),
        ("GEN_WORKER_MAX_QUEUED", "0", "`GEN_WORKER_MAX_QUEUED` must be above 0, not `0`"),
        ("WORKER_MAX_INPUT_BYTES", "64MiB", "`WORKER_MAX_INPUT_BYTES` must be a whole number, not `64MiB`"),
        ("WORKER_MAX_OUTPUT_BYTES", "-1", "`WORKER_MAX_OUTPUT_BYTES` must be a whole number, not `-1`"),
        ("GEN_WORKER_LOCAL_DEVICE", "gpu", "`GEN_WORKER_LOCAL_DEVICE` must be `cpu`, `cuda` or `cuda:N`, not `gpu`"),
        (
            "GEN_WORKER_LOCAL_DEVICE",
            "cpu:1",
            "`GEN_WORKER_LOCAL_DEVICE` must be `cpu`, `cuda` or `cuda:N`, not `cpu:1`",
        ),
    ],
)
def test_a_bad_value_names_the_variable(name: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({name: value})
    assert str(caught.value) == message
