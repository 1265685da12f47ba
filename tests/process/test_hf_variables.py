"""What `COZY_HF_…` says of the files of Hugging Face, from the variable to what the hub's own client finds."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.fetcher import Fetcher
from gen_worker.fetch.network.patience import Patience
from gen_worker.models.errors import ModelError
from gen_worker.models.snapshot import Snapshot
from gen_worker.models.wanted import Wanted
from gen_worker.settings import Settings
from gen_worker.testing import LoopbackHub

pytestmark = pytest.mark.process

TINY = Wanted("hf", "acme/tiny")
SOON = Patience(tries=2, seconds=5.0, first_delay_s=0.01, longest_delay_s=0.02)


def weights(dtype: str) -> bytes:
    """Return a safetensors file with one tensor."""
    size = 200 * {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}[dtype]
    header = json.dumps({"w": {"dtype": dtype, "shape": [200], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


def model_index(*components: str) -> bytes:
    return json.dumps({"_class_name": "Any"} | {each: ["diffusers", "Any"] for each in components}).encode()


FILES: Mapping[str, bytes] = {
    "README.md": b"# tiny",
    "config.json": b'{"at": "the root"}',
    "model_index.json": model_index("unet", "vae", "scheduler", "tokenizer", "safety_checker", "feature_extractor"),
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.bin": b"pickle" * 100,
    "unet/diffusion_pytorch_model.fp16.safetensors": weights("F16"),
    "unet/diffusion_pytorch_model.fp8.safetensors": weights("F8_E4M3"),
    "unet/diffusion_pytorch_model.safetensors": weights("F32"),
    "vae/config.json": b'{"a": 1}',
    "vae/diffusion_pytorch_model.fp16.safetensors": weights("F16"),
    "vae/diffusion_pytorch_model.fp8.safetensors": weights("F8_E4M3"),
    "vae/diffusion_pytorch_model.safetensors": weights("F32"),
    "scheduler/scheduler_config.json": b"{}",
    "tokenizer/vocab.json": b"{}",
    "tokenizer/deep/merges.txt": b"a b",
    "safety_checker/config.json": b'{"b": 1}',
    "safety_checker/model.safetensors": weights("F16"),
    "feature_extractor/preprocessor_config.json": b"{}",
    "tiny.safetensors": weights("BF16"),
}
SMALL = {"model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/deep/merges.txt"}
CONFIGS = {"unet/config.json", "vae/config.json"}
DEFAULT = SMALL | CONFIGS | {f"{each}/diffusion_pytorch_model.fp16.safetensors" for each in ("unet", "vae")}
OPTIONAL = {"safety_checker/config.json", "safety_checker/model.safetensors"}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo("acme/tiny", FILES)
        yield hub


def fetched(wanted: Wanted, home: Path, environment: Mapping[str, str]) -> Snapshot:
    """Fetch a model as a worker with this environment does."""
    settings = Settings.load(
        env={"HF_HOME": str(home), "TENSORHUB_CACHE_DIR": str(home / "cache"), **environment}, folder=home
    )
    fetcher = Fetcher(FetchConfig.of(settings, env={}), for_questions=SOON, for_files=SOON)
    try:
        found = fetcher.fetch(wanted)
    finally:
        fetcher.close()
    os.close(found.lease)
    return found.snapshot


def seen_by_its_client(home: Path) -> set[str]:
    """Return the files that `huggingface_hub` has of the model without a network."""
    from huggingface_hub import try_to_load_from_cache

    return {path for path in FILES if isinstance(try_to_load_from_cache("acme/tiny", path, home / "hub"), str)}


@pytest.mark.parametrize(
    ("environment", "files"),
    [
        ({}, DEFAULT),
        (
            {"COZY_HF_COMPONENTS": "vae, scheduler"},
            {each for each in DEFAULT if each.startswith(("vae", "sch", "mod"))},
        ),
        (
            {"COZY_HF_INCLUDE_OPTIONAL_COMPONENTS": "yes"},
            DEFAULT | OPTIONAL | {"feature_extractor/preprocessor_config.json"},
        ),
        (
            {"COZY_HF_WEIGHT_PRECISIONS": "fp32"},
            SMALL | CONFIGS | {f"{each}/diffusion_pytorch_model.safetensors" for each in ("unet", "vae")},
        ),
        (
            {"COZY_HF_WEIGHT_PRECISIONS": "fp8,fp16"},
            SMALL | CONFIGS | {f"{each}/diffusion_pytorch_model.fp8.safetensors" for each in ("unet", "vae")},
        ),
        ({"COZY_HF_ALLOW_ROOT_JSON": "t"}, DEFAULT | {"config.json"}),
        ({"COZY_HF_FULL_REPO_DOWNLOAD": "1"}, {each for each in FILES if not each.endswith(".bin")}),
        (
            {"COZY_HF_FULL_REPO_DOWNLOAD": "TRUE", "GEN_WORKER_ALLOW_PICKLE": "acme/*"},
            set(FILES),
        ),
        ({"COZY_HF_FULL_REPO_DOWNLOAD": "0", "COZY_HF_ALLOW_ROOT_JSON": "no"}, DEFAULT),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_variable_decides_which_files_come(
    hub: LoopbackHub, tmp_path: Path, environment: dict[str, str], files: set[str]
) -> None:
    snapshot = fetched(TINY, tmp_path, {**hub.variables(), **environment})
    assert {entry.path for entry in snapshot.files} == files == seen_by_its_client(tmp_path)


def test_a_component_that_nobody_has_and_weights_of_no_such_precision_name_their_variable(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    for environment in ({"COZY_HF_COMPONENTS": "prior"}, {"COZY_HF_WEIGHT_PRECISIONS": "bf16"}):
        with pytest.raises(ModelError) as told:
            fetched(TINY, tmp_path, {**hub.variables(), **environment})
        assert next(iter(environment)) in told.value.hint
    assert "COZY_HF_FULL_REPO_DOWNLOAD" in told.value.hint
    with pytest.raises(ValueError, match="COZY_HF_WEIGHT_PRECISIONS"):
        fetched(TINY, tmp_path, {**hub.variables(), "COZY_HF_WEIGHT_PRECISIONS": "fp12"})


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGINGFACE_TOKEN", "HUGGINGFACEHUB_API_TOKEN"])
def test_a_token_by_any_of_its_names_is_shown_to_the_hub_alone(hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    hub.add_repo("acme/tiny", FILES, private=True)
    with pytest.raises(ModelError) as told:
        fetched(TINY, tmp_path / "without", hub.variables())
    assert told.value.kind == "not_found"
    assert fetched(TINY, tmp_path, {**hub.variables(), name: hub.token}).files
    assert hub.leaks == []


PROGRAM = """
import sys
from huggingface_hub import snapshot_download
print(snapshot_download("acme/tiny", revision=sys.argv[1], allow_patterns=sys.argv[2:]))
"""


def test_what_its_own_client_has_fetched_whole_is_used_without_a_network(tmp_path: Path) -> None:
    """And so in an offline worker, and where the hub cannot be reached."""
    with LoopbackHub() as hub:
        commit = hub.add_repo("acme/tiny", FILES)
        environment = {**os.environ, **hub.variables(), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", PROGRAM, "main", *DEFAULT]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        gone = hub.variables()
    offline = fetched(TINY, tmp_path, {**gone, "HF_HUB_OFFLINE": "1"})
    assert offline.path == done.stdout.strip()
    assert fetched(TINY, tmp_path, gone).path == offline.path
    pinned = fetched(msgspec.structs.replace(TINY, revision=commit), tmp_path, {**gone, "HF_HUB_OFFLINE": "1"})
    assert pinned.path == offline.path


def test_what_its_own_client_has_fetched_in_part_is_no_model(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        hub.add_repo("acme/tiny", FILES)
        environment = {**os.environ, **hub.variables(), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", PROGRAM, "main", "model_index.json", "unet/*"]
        subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    with pytest.raises(ModelError) as told:
        fetched(TINY, tmp_path, {"HF_HUB_OFFLINE": "1"})
    assert told.value.kind == "offline"
