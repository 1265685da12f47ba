"""Settings: what each variable does, and what a bad value says."""

from pathlib import Path

import pytest

from gen_worker.settings import Settings, SettingsError
from gen_worker.wire.messages import REGION_LIMIT


def test_without_variables_the_documented_defaults_hold() -> None:
    settings = Settings.load(env={"GEN_WORKER_RUN_DIR": "/somewhere"})
    assert settings == Settings(
        run_dir=Path("/somewhere"),
        max_queued=10_000,
        max_input_bytes=64 << 20,
        max_output_bytes=64 << 20,
        local_output_dir=Path(".gen-worker-run/outputs"),
        local_device=None,
    )


def test_each_variable_sets_its_field() -> None:
    settings = Settings.load(
        env={
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
    assert Settings.load(env={"GEN_WORKER_MAX_QUEUED": " ", "GEN_WORKER_LOCAL_DEVICE": ""}).max_queued == 10_000


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("GEN_WORKER_MAX_QUEUED", "many", "a whole number"),
        ("GEN_WORKER_MAX_QUEUED", "0", "above 0"),
        ("WORKER_MAX_INPUT_BYTES", "64MB", "a whole number of bytes, as `16777216` or `16M`"),
        ("WORKER_MAX_OUTPUT_BYTES", "-1", "a whole number of bytes, as `16777216` or `16M`"),
        ("GEN_WORKER_LOCAL_DEVICE", "gpu", "`cpu`, `cuda` or `cuda:N`"),
        ("GEN_WORKER_LOCAL_DEVICE", "cpu:1", "`cpu`, `cuda` or `cuda:N`"),
        ("GEN_WORKER_LOG_FORMAT", "xml", "`auto`, `text` or `json`"),
        ("WORKER_MODE", "training", "`inference` or `trainer`"),
        ("WORKER_DISCONNECTED_TIMEOUT_S", "nan", "a number of seconds, 0 or more"),
        ("WORKER_ID", "a\nb", "one line of text"),
    ],
)
def test_a_bad_value_names_the_variable_where_it_is_set_and_what_is_allowed(
    name: str, value: str, allowed: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load(env={name: value})
    shown = value.replace("\n", "\\n")
    assert str(caught.value) == f"`{name}` in the environment must be {allowed}, not `{shown}`"
