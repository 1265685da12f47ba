"""Headers of safetensors: damaged files are told with their names, and footprints come from what is stored."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.models.errors import ModelError
from gen_worker.models.headers import HEADER_LIMIT, Header, footprint, header_length, parse_header, read_header

BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8, "U8": 1}


def safetensors(tensors: Mapping[str, tuple[str, int]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a file of one-dimensional tensors, each a dtype and a length."""
    at, entries = 0, dict[str, Any]({"__metadata__": metadata} if metadata else {})
    for name, (dtype, length) in tensors.items():
        end = at + BYTES[dtype] * length
        entries[name] = {"dtype": dtype, "shape": [length], "data_offsets": [at, end]}
        at = end
    return with_header(json.dumps(entries).encode(), bytes(at))


def with_header(header: bytes, rest: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + rest


def entry(dtype: str = "U8", shape: tuple[int, ...] = (4,), at: tuple[int, int] = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": at}


def header_of(**tensors: Any) -> bytes:
    return with_header(json.dumps(tensors).encode(), bytes(4))


# --- what a file says -------------------------------------------------------------------------------------------------


def test_a_header_has_its_tensors_and_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors({"a": ("F16", 10), "b": ("F32", 3)}, {"format": "pt"}))
    header = read_header(path)
    assert {name: (tensor.dtype, tensor.shape, tensor.size) for name, tensor in header.tensors.items()} == {
        "a": ("F16", (10,), 20),
        "b": ("F32", (3,), 12),
    }
    assert header.metadata == {"format": "pt"}
    assert header.bytes_before + 32 == path.stat().st_size


@pytest.mark.parametrize(
    ("tensors", "precision"),
    [
        ({"a": ("F16", 100), "b": ("F32", 3)}, "fp16"),
        ({"a": ("BF16", 100), "b": ("I64", 20)}, "bf16"),
        ({"a": ("F32", 100), "b": ("F16", 100)}, "fp32"),
        ({"a": ("F8_E4M3", 100), "b": ("F32", 1)}, "fp8"),
        ({"a": ("U8", 100), "b": ("F16", 10)}, "U8"),
        ({}, ""),
    ],
)
def test_the_precision_of_a_file_is_that_of_most_of_its_bytes(
    tensors: dict[str, tuple[str, int]], precision: str
) -> None:
    content = safetensors(tensors)
    assert parse_header(content, len(content), "x").precision == precision


def test_a_header_can_be_read_without_the_rest_of_the_file() -> None:
    content = safetensors({"a": ("F16", 1000)})
    before = header_length(content[:8], "x")
    assert parse_header(content[:before], None, "x") == parse_header(content, len(content), "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no safetensors file: it begins with nothing"),
        (b"short", "is no safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "is no safetensors file"),
        ((HEADER_LIMIT + 1).to_bytes(8, "little") + b"{}", "is no safetensors file"),
        ((100).to_bytes(8, "little") + b"{}", "ends in its header: 10 of 108 bytes"),
        (with_header(b"{nonsense}"), "has a header that cannot be read"),
        (with_header(b"\xff\xff"), "has a header that cannot be read"),
        (with_header(b"[" * 5000 + b"]" * 5000), "has a header that cannot be read"),
        (with_header(b'{"a":' + b"[" * 50000 + b"]" * 50000 + b"}"), "has a header that cannot be read"),
        (with_header(b"[1]"), "has a header that cannot be read"),
        (with_header(b'{"a":{}}'), "has a header that cannot be read"),
        (header_of(a=entry(at=(4, 0))), "has a header that cannot be read"),
        (header_of(a=entry(shape=(-4,))), "has a header that cannot be read"),
        (header_of(a=entry("F32")), "a tensor of F32 and shape"),
        (header_of(a=entry(), b=entry()), "has bytes for two tensors"),
        (header_of(a=entry(), b=entry(at=(2, 6))), "has bytes for two tensors"),
        (header_of(a=entry(at=(8, 12))), "has bytes for two tensors, or for none, before `a`"),
        (header_of(a=entry(shape=(8,), at=(0, 8))), "is cut off: 4 of 8 bytes"),
        (header_of(a=entry(shape=(2,), at=(0, 2))), "has 2 bytes after its weights"),
    ],
)
def test_a_damaged_file_is_told_with_its_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_header(path)
    assert caught.value.kind == "load_failed"
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "cache verify" in caught.value.hint


@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_are_a_header_or_a_typed_error(rest: bytes, length: int) -> None:
    content = length.to_bytes(8, "little") + rest
    with suppress(ModelError):
        assert isinstance(parse_header(content, len(content), "x"), Header)


# --- what weights take ------------------------------------------------------------------------------------------------


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


PIPELINE = {
    "model_index.json": json.dumps(
        {
            "_class_name": "P",
            "unet": ["d", "U"],
            "vae": ["d", "V"],
            "tokenizer": ["t", "T"],
            "safety_checker": [None, None],
        }
    ).encode(),
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors": safetensors({"a": ("F16", 1000)}),
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors": safetensors({"b": ("F16", 500)}),
    "unet/diffusion_pytorch_model.safetensors.index.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": safetensors({"a": ("F32", 100), "ids": ("I64", 10)}),
    "tokenizer/vocab.json": b"{}",
}


def test_a_pipeline_takes_what_its_components_take(tmp_path: Path) -> None:
    root = write(tmp_path, PIPELINE)
    assert footprint(root) == 3000 + 400 + 80


@pytest.mark.parametrize(("dtype", "expected"), [("fp16", 3280), ("bfloat16", 3280), ("fp32", 6480)])
def test_only_floating_point_changes_with_the_dtype(tmp_path: Path, dtype: str, expected: int) -> None:
    assert footprint(write(tmp_path, PIPELINE), dtype) == expected


def test_weights_in_several_precisions_count_once(tmp_path: Path) -> None:
    both = {
        "vae/diffusion_pytorch_model.fp16.safetensors": safetensors({"a": ("F16", 100), "ids": ("I64", 10)}),
        "stray.safetensors": safetensors({"a": ("F16", 10_000)}),
    }
    root = write(tmp_path, {**PIPELINE, **both})
    assert footprint(root) == 3000 + 200 + 80
    assert footprint(root, "fp32") == 6480


def test_a_model_in_the_root_takes_what_its_shards_take(tmp_path: Path) -> None:
    files = {f"model-0000{n}-of-00002.safetensors": safetensors({f"w{n}": ("BF16", 50)}) for n in (1, 2)}
    root = write(tmp_path, {"config.json": b"{}", "2_Dense/model.safetensors": safetensors({"w": ("F32", 5)}), **files})
    assert footprint(root) == 220
    assert footprint(root / "model-00001-of-00002.safetensors") == 100


def test_what_is_no_safetensors_counts_as_it_is(tmp_path: Path) -> None:
    assert footprint(write(tmp_path, {"x-Q4_K_M.gguf": bytes(77), "README.md": b"x"}), "fp32") == 77
    assert footprint(write(tmp_path / "none", {"README.md": b"x"})) == 0


def test_a_damaged_file_in_a_pipeline_is_told_with_its_name(tmp_path: Path) -> None:
    root = write(
        tmp_path, {**PIPELINE, "vae/diffusion_pytorch_model.safetensors": b"version https://git-lfs.github.com"}
    )
    with pytest.raises(ModelError, match=r"vae/diffusion_pytorch_model\.safetensors` is a pointer of Git LFS"):
        footprint(root)
    write(tmp_path, {"model_index.json": b"{"})
    with pytest.raises(ModelError, match=r"model_index\.json` cannot be read"):
        footprint(root)
