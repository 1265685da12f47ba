"""Weights by themselves, as a training may begin with: a safetensors file, or a folder of some."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gen_worker.trainer.checkpoints import CheckpointError
from gen_worker.trainer.modules import META, DamagedCheckpointError, verified_weights

_LENGTH_BYTES, _MOST_HEADER_BYTES = 8, 100 << 20  # as safetensors has it


def is_weights(path: Path) -> bool:
    """Whether this is a safetensors file, whatever it is called; none that cannot be read is."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            return 1 < length < _MOST_HEADER_BYTES and isinstance(json.loads(file.read(length)), dict)
    except (OSError, ValueError):
        return False


def weights_in(path: Path) -> Mapping[str, Any] | None:
    """Return the tensors of a file, or of all safetensors files right in a folder, by name; None where there are none.

    Raises `CheckpointError` for a file that is damaged, and for two that have a tensor of one name.
    """
    if path.is_dir() and (path / META).exists():
        return _of_checkpoint(path)
    files = sorted(each for each in path.iterdir() if is_weights(each)) if path.is_dir() else [path]
    found: dict[str, Any] = {}
    for file in files:
        tensors = _loaded(file)
        if twice := sorted(found.keys() & tensors.keys()):
            raise CheckpointError(f"`{path}` has `{twice[0]}` twice: name one of its files")
        found |= tensors
    return found or None


def _of_checkpoint(folder: Path) -> Mapping[str, Any]:
    try:
        return verified_weights(folder)
    except DamagedCheckpointError as error:
        raise CheckpointError(str(error)) from None


def _loaded(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Any] = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"`{path}` is damaged: {error}") from None
    return tensors
