"""What safetensors files say of themselves, and what their weights take on a device. Reads headers only; no torch.

The format: 8 bytes with the header's length (little-endian), the header as JSON, then the tensors' bytes without gaps
(https://huggingface.co/docs/safetensors).
"""

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import msgspec

from gen_worker.models.errors import ModelError

LENGTH_BYTES = 8
HEADER_LIMIT = 100_000_000  # what the safetensors library takes
POINTER = b"version https://git-lfs.github.com/spec/"

_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_PRECISIONS = {"F64": "fp32", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}
_FLOAT_BITS = {"fp32": 32, "float32": 32, "fp16": 16, "float16": 16, "bf16": 16, "bfloat16": 16}


class Tensor(msgspec.Struct, frozen=True):
    """One tensor of a file; `begin` and `end` count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.begin


class Header(msgspec.Struct, frozen=True):
    """What a safetensors file holds."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    bytes_before: int
    """Where the tensors' bytes begin in the file."""

    @property
    def precision(self) -> str:
        """What most of the bytes are: `fp32`, `fp16`, `bf16`, `fp8`, or the format's own name of another dtype."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            named = "fp8" if tensor.dtype.startswith("F8_") else _PRECISIONS.get(tensor.dtype, tensor.dtype)
            sizes[named] = sizes.get(named, 0) + tensor.size
        return max(sizes, key=lambda name: sizes[name], default="")

    def resident_bytes(self, dtype: str = "") -> int:
        """Return what the tensors take when those of floating point are made `dtype`; empty: as they are stored."""
        bits = _FLOAT_BITS.get(dtype, 0)
        return sum(
            prod(tensor.shape) * bits // 8 if bits and "F" in tensor.dtype else tensor.size
            for tensor in self.tensors.values()
        )


def header_length(start: bytes, file: str) -> int:
    """Return the bytes before the tensors, from the first 8 of a file; raise `ModelError` for what is no such file."""
    if start.startswith(POINTER[:LENGTH_BYTES]):
        raise _damaged(file, "is a pointer of Git LFS instead of the file it stands for")
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if len(start) < LENGTH_BYTES or not 2 <= length <= HEADER_LIMIT:
        raise _damaged(file, f"is no safetensors file: it begins with {start[:LENGTH_BYTES].hex() or 'nothing'}")
    return LENGTH_BYTES + length


def parse_header(start: bytes, size: int | None, file: str) -> Header:
    """Return the header at the start of a file of `size` bytes; raise `ModelError`, naming `file`, for a bad one."""
    before = header_length(start, file)
    if len(start) < before:
        raise _damaged(file, f"ends in its header: {len(start):,} of {before:,} bytes")
    try:
        fields = msgspec.json.decode(start[LENGTH_BYTES:before], type=dict[str, dict[str, Any]])
        metadata = msgspec.convert(fields.pop("__metadata__", {}), dict[str, str])
        tensors = {name: _tensor(entry) for name, entry in fields.items()}
    except (ValueError, KeyError, RecursionError) as error:  # those of msgspec are ValueErrors
        raise _damaged(file, f"has a header that cannot be read: {error}") from None
    _check_layout(tensors, None if size is None else size - before, file)
    return Header(tensors, metadata, before)


def read_header(path: Path) -> Header:
    """Return the header of a file on this disk; raise `ModelError`, naming it, for one that is damaged."""
    with path.open("rb") as file:
        start = file.read(LENGTH_BYTES)
        before = header_length(start, str(path))
        size = path.stat().st_size
        return parse_header(start + file.read(min(before, size) - LENGTH_BYTES), size, str(path))


def footprint(folder: Path | str, dtype: str = "") -> int:
    """Return the bytes that the weights in a folder take on a device, with `dtype` as what they are made; 0: unknown.

    Of a pipeline those of the components in its `model_index.json`, else those of the folder itself. Weights that lie
    there in several precisions count once. Files that are no safetensors count as they are. Raises `ModelError` for
    damaged files.
    """
    root = Path(folder)
    if root.is_file():
        return _resident((root,), dtype)
    return sum(_resident(_weights(part, dtype), dtype) for part in _parts(root))


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    begin, end = msgspec.convert(entry["data_offsets"], tuple[int, int])
    shape = msgspec.convert(entry["shape"], tuple[int, ...])
    dtype = msgspec.convert(entry["dtype"], str)
    if any(length < 0 for length in shape) or not 0 <= begin <= end:
        raise ValueError(f"a tensor of shape {list(shape)} at {begin}-{end}")
    if dtype in _BITS and (prod(shape) * _BITS[dtype] + 7) // 8 != end - begin:
        raise ValueError(f"a tensor of {dtype} and shape {list(shape)} in {end - begin} bytes")
    return Tensor(dtype, shape, begin, end)


def _check_layout(tensors: Mapping[str, Tensor], size: int | None, file: str) -> None:
    """Refuse tensors that overlap, leave gaps, or end elsewhere than the file."""
    at = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != at:
            raise _damaged(file, f"has bytes for two tensors, or for none, before `{name[:100]}`")
        at = tensor.end
    if size is not None and size < at:
        raise _damaged(file, f"is cut off: {size:,} of {at:,} bytes of weights")
    if size is not None and size > at:
        raise _damaged(file, f"has {size - at:,} bytes after its weights")


def _parts(root: Path) -> list[Path]:
    """Return the folders with weights: a pipeline's components, else the folder and what it has below it."""
    index = root / "model_index.json"
    if not index.is_file():
        below = sorted({path.parent for path in root.rglob("*") if path.suffix in _WEIGHTS} - {root})
        return [root, *below]
    try:
        components = msgspec.json.decode(index.read_bytes(), type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise _damaged(str(index), f"cannot be read: {error}") from None
    named = [name for name, value in components.items() if isinstance(value, list) and any(value)]
    return [root / name for name in named if not name.startswith("_") and (root / name).is_dir()]


_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt")


def _weights(folder: Path, dtype: str) -> tuple[Path, ...]:
    from gen_worker.models.weights import preferred, weight_sets

    names = [path.name for path in folder.iterdir() if path.is_file()]
    for suffix in _WEIGHTS:
        chosen = preferred(weight_sets(names, suffix), dtype, lambda each: _precision(folder, each.files))
        if chosen is not None:
            return tuple(folder / name for name in chosen.files)
    return ()


def _precision(folder: Path, names: tuple[str, ...]) -> str:
    if not names or not names[0].endswith(".safetensors"):
        return "unknown"
    return read_header(folder / names[0]).precision


def _resident(files: Iterable[Path], dtype: str) -> int:
    return sum(
        read_header(file).resident_bytes(dtype) if file.suffix == ".safetensors" else file.stat().st_size
        for file in files
    )


def _damaged(file: str, what: str) -> ModelError:
    hint = "`gen-worker cache verify` finds damaged files, so that they are fetched again"
    return ModelError("load_failed", f"`{file}` {what}", hint, file=file)
