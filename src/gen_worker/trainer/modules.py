"""What was trained of a module, as files that others load: the weights, the optimizer, and what they are."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from gen_worker.trainer.durable import damage, digest_of, publish, write_file

META = "checkpoint_meta.json"
OPTIMIZER = "optimizer.pt"
_OWN = ("format", "step", "final", "primary_path", "model_name_or_path", "optimizer_path", "files")


class DamagedCheckpointError(ValueError):
    """A checkpoint is not what was written."""


def save_trainable_module_checkpoint(
    *,
    module: Any,
    output_dir: str | os.PathLike[str],
    step: int,
    final: bool = False,
    optimizer: Any = None,
    model_name_or_path: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the parameters that can be trained as `lora.safetensors`, and the optimizer, into a folder.

    Returns what `checkpoint_meta.json` says, which is written last: `primary_path` among it, and what each file must
    be. Without safetensors the weights are `lora.pt`. Raises `ValueError` where nothing can be trained.
    """
    weights = {name: each.detach().cpu().contiguous() for name, each in module.named_parameters() if each.requires_grad}
    if not weights:
        raise ValueError("nothing of the module can be trained: no parameter has `requires_grad`")
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / META).unlink(missing_ok=True)  # what it says is of other files from now on
    primary = _save_weights(weights, folder)
    files = {primary.name: digest_of(primary)}
    if optimizer is not None:
        _save_torch(optimizer.state_dict(), folder / OPTIMIZER)
        files[OPTIMIZER] = digest_of(folder / OPTIMIZER)
    meta: dict[str, Any] = {key: value for key, value in (metadata or {}).items() if key not in _OWN}
    meta |= {
        "format": primary.suffix.removeprefix("."),
        "step": step,
        "final": final,
        "primary_path": str(primary),
        "model_name_or_path": model_name_or_path,
        "optimizer_path": str(folder / OPTIMIZER) if optimizer is not None else None,
        "files": files,
    }
    write_file(folder / META, msgspec.json.format(msgspec.json.encode(meta)) + b"\n")
    return meta


def load_trainable_module_checkpoint(
    *, module: Any, checkpoint_dir: str | os.PathLike[str], optimizer: Any = None
) -> dict[str, Any]:
    """Put back what `save_trainable_module_checkpoint` wrote; return what its `checkpoint_meta.json` says.

    The folder may have been moved. Raises `DamagedCheckpointError`, a `ValueError`, where a file is not what was
    written, and `ValueError` where the module has other parameters.
    """
    import torch

    folder = Path(checkpoint_dir)
    meta, weights = _meta(folder), verified_weights(folder)
    params = {name: each for name, each in module.named_parameters() if each.requires_grad}
    if odd := sorted(params.keys() ^ weights.keys()):
        raise ValueError(f"the checkpoint `{folder}` is of another module: only one of them has `{odd[0]}`")
    with torch.no_grad():
        for name, value in weights.items():
            if params[name].shape != value.shape:
                shapes = f"{tuple(value.shape)}, not {tuple(params[name].shape)}"
                raise ValueError(f"the checkpoint `{folder}` is of another module: `{name}` is {shapes}")
            params[name].copy_(value)
    if optimizer is not None and meta.get("optimizer_path"):
        optimizer.load_state_dict(torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True))
    return meta


def verified_weights(folder: Path) -> dict[str, Any]:
    """Return the weights that `save_trainable_module_checkpoint` wrote; raise `DamagedCheckpointError`."""
    meta = _meta(folder)
    if wrong := damage(folder, meta["files"]):
        raise DamagedCheckpointError(f"the checkpoint `{folder}` cannot be used: {wrong}")
    return _load_weights(folder / Path(meta["primary_path"]).name)


def _meta(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = msgspec.json.decode((folder / META).read_bytes())
        if isinstance(found, dict) and isinstance(found.get("files"), dict) and found.get("primary_path"):
            return found
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DamagedCheckpointError(f"`{folder}` is no checkpoint: `{META}`: {reason}") from None
    except msgspec.DecodeError as error:
        raise DamagedCheckpointError(f"`{folder}` is no checkpoint: `{META}`: {error}") from None
    raise DamagedCheckpointError(f"`{folder}` is no checkpoint: `{META}` names no files")


def _save_weights(weights: dict[str, Any], folder: Path) -> Path:
    if find_spec("safetensors") is None:
        return _save_torch(weights, folder / "lora.pt")
    from safetensors.torch import save_file

    part = folder / ".lora.safetensors.part"
    save_file(weights, part)
    return publish(part, folder / "lora.safetensors")


def _save_torch(value: Any, path: Path) -> Path:
    import torch

    part = path.with_name(f".{path.name}.part")
    torch.save(value, part)
    return publish(part, path)


def _load_weights(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        loaded: dict[str, Any] = load_file(path)
        return loaded
    import torch

    weights: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return weights
