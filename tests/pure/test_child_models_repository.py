"""What a model on disk says it is, and which of its files are loaded."""

import json
from pathlib import Path

import pytest

from gen_worker.models.errors import ModelError
from gen_worker_child.models.repository import choose_weights, read_repository, refuse_code


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def pipeline(folder: Path, *names: str, parts: tuple[str, ...] = ("unet", "vae")) -> Path:
    files(folder, *names)
    index = {"_class_name": "SDPipeline", **{part: ["diffusers", "Part"] for part in parts}}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def chosen(folder: Path, wanted: str = "") -> tuple[str, list[str]]:
    choice = choose_weights(read_repository(folder, "acme/it"), wanted, "acme/it")
    return choice.variant, [str(file.relative_to(folder)) for file in choice.files]


UNET, VAE = "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"


def test_plain_weights_are_no_variant(tmp_path: Path) -> None:
    folder = pipeline(tmp_path, f"{UNET}.safetensors", f"{VAE}.safetensors")
    assert chosen(folder) == ("", [f"{UNET}.safetensors", f"{VAE}.safetensors"])


def test_a_variant_is_chosen_when_there_is_nothing_else(tmp_path: Path) -> None:
    folder = pipeline(tmp_path, f"{UNET}.fp16.safetensors", f"{VAE}.fp16.safetensors")
    assert chosen(folder) == ("fp16", [f"{UNET}.fp16.safetensors", f"{VAE}.fp16.safetensors"])


def test_a_part_without_the_variant_is_loaded_as_it_is(tmp_path: Path) -> None:
    folder = pipeline(tmp_path, f"{UNET}.fp16.safetensors", f"{VAE}.safetensors")
    assert chosen(folder) == ("fp16", [f"{UNET}.fp16.safetensors", f"{VAE}.safetensors"])


def test_of_two_precisions_the_wanted_one_is_chosen(tmp_path: Path) -> None:
    folder = pipeline(tmp_path, *(f"{part}{tag}.safetensors" for part in (UNET, VAE) for tag in ("", ".fp16", ".bf16")))
    assert chosen(folder)[0] == ""
    assert chosen(folder, "bf16")[0] == "bf16"


def test_both_ways_to_name_the_shards_of_a_variant_are_read(tmp_path: Path) -> None:
    new = files(tmp_path / "new", *(f"model.fp16-0000{shard}-of-00002.safetensors" for shard in (1, 2)), "config.json")
    old = files(tmp_path / "old", *(f"model-0000{shard}-of-00002.fp16.safetensors" for shard in (1, 2)), "config.json")
    for folder in (new, old):
        (folder / "config.json").write_text("{}")
        variant, shards = chosen(folder)
        assert (variant, len(shards)) == ("fp16", 2)


def test_a_missing_shard_is_told(tmp_path: Path) -> None:
    folder = pipeline(tmp_path, f"{UNET}-00001-of-00003.safetensors", f"{VAE}.safetensors")
    with pytest.raises(ModelError, match="is not complete: `unet` has 1 of 3 shards"):
        chosen(folder)


def test_pickles_are_seen_only_where_there_is_nothing_else(tmp_path: Path) -> None:
    folder = pipeline(tmp_path, f"{UNET}.safetensors", f"{UNET}.bin", f"{VAE}.bin")
    choice = choose_weights(read_repository(folder, "acme/it"), "", "acme/it")
    assert [file.parent.name for file in choice.pickles] == ["vae"]


def test_parts_that_are_null_or_not_named_as_parts_are_none(tmp_path: Path) -> None:
    index = {
        "_class_name": "P",
        "_ignore": ["diffusers", "X"],
        "../up": ["diffusers", "X"],
        "checker": [None, None],
        "sizes": [1, 2],
        "unet": ["diffusers", "X"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert set(read_repository(tmp_path, "acme/it").parts) == {"unet"}


def test_one_file_alone_is_everything(tmp_path: Path) -> None:
    files(tmp_path, "dream.safetensors")
    repository = read_repository(tmp_path, "acme/it")
    assert (repository.kind, repository.checkpoint) == ("file", tmp_path / "dream.safetensors")
    assert read_repository(tmp_path / "dream.safetensors", "acme/it").kind == "file"
    files(tmp_path, "another.safetensors")
    assert read_repository(tmp_path, "acme/it").kind == "other"


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"_class_name": 3}', b"\xff\xfe", b"[" * 100_000])
def test_an_index_that_cannot_be_read_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"`acme/it`: `model_index.json`") as raised:
        read_repository(tmp_path, "acme/it")
    assert (raised.value.kind, raised.value.file) == ("load_failed", "model_index.json")


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="`acme/it`: there is nothing at"):
        read_repository(tmp_path / "gone", "acme/it")


def test_python_files_are_refused(tmp_path: Path) -> None:
    folder = pipeline(tmp_path, "unet/modeling.py")
    with pytest.raises(ModelError, match=r"brings its own code, which is never run: unet/modeling\.py") as raised:
        refuse_code(read_repository(folder, "acme/it"), "acme/it")
    assert raised.value.kind == "remote_code_refused"


def test_a_pipeline_that_names_its_own_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": ["my_pipeline", "Mine"]}))
    with pytest.raises(ModelError, match="my_pipeline") as raised:
        read_repository(tmp_path, "acme/it")
    assert raised.value.kind == "remote_code_refused"
