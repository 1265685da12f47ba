"""Copies of models in another dtype, made once, so that every later load maps its files instead of casting them.

A cast costs about seven times the CPU and three times the memory of a load that maps. A copy is complete before it has
its name, and is never written to again. The model it was made of is never touched.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gen_worker.models.dtypes import Dtype
from gen_worker.wire.messages import SlotModel
from gen_worker_child.models.dtypes import WORTH_A_COPY
from gen_worker_child.models.loading import Source, loader_errors, quiet

_BUILDING = ".building."
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".ckpt", ".pt", ".pth")
LEFT_FREE_BYTES = 1 << 30


def derived_path(root: str, slot: SlotModel, dtype: Dtype) -> Path:
    """Return where the copy of a slot's model in a dtype is, once there is one."""
    part = f"-{slot.subfolder.replace('/', '-')}" if slot.subfolder else ""
    return Path(root) / f"{slot.key}{part}-{dtype}"


def worth_deriving(source: Source) -> bool:
    """Whether loading this model casts so much that a copy on disk pays."""
    return (
        source.target.family in ("pipeline", "model", "transformers")
        and source.precision.cast > WORTH_A_COPY
        and not source.weights.pickles
        and not source.repository.quantized
        and not source.slot.key.endswith(f"-{source.precision.dtype}")  # it is such a copy: what it kept stays
    )


def derive(made: Any, source: Source, folder: Path) -> None:
    """Write a model that was cast to a folder of its own, from which it loads without a cast.

    Raises OSError where that cannot be: the disk is full or may not be written to, or parts of the original are not in
    what was made, so that the copy would lack them.
    """
    repository = source.repository
    lacking = [name for name in repository.parts if (repository.path / name).is_dir() and not hasattr(made, name)]
    if lacking:
        raise OSError(f"its part `{lacking[0]}` is not in a `{type(made).__name__}`")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    needed = (source.sizes.total if source.sizes else 0) + LEFT_FREE_BYTES
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise OSError(f"{needed:,} bytes are needed at {folder.parent}, {free:,} are free")
    with _building(folder) as place, quiet():
        _save(made, place)
        if repository.checkpoint is None:
            _complete(place, repository.path)
        _settle(place)
        try:
            place.rename(folder)
        except OSError:
            if not folder.is_dir():  # else somebody was faster, and made the same
                raise
        _sync(folder.parent)


def _save(made: Any, place: Path) -> None:
    try:
        made.save_pretrained(place, safe_serialization=True)
    except loader_errors() as error:  # of a full disk safetensors raises an error of its own
        if isinstance(error, OSError):
            raise
        raise OSError(" ".join(str(error).split())) from error


@contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """Make a folder that is locked while it lives, and gone afterwards unless it got its name."""
    place = folder.with_name(f"{folder.name}{_BUILDING}{os.getpid()}")
    place.mkdir()
    lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # as on NFS, which locks no folders: then nobody sweeps either
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield place
    finally:
        os.close(lock)
        shutil.rmtree(place, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what a process that was killed has left of this copy: nobody holds its lock any more."""
    for place in folder.parent.glob(f"{folder.name}{_BUILDING}*"):
        with suppress(OSError):
            lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place)
            finally:
                os.close(lock)


def _complete(place: Path, original: Path) -> None:
    """Bring over the original's other files: another slot may ask for its tokenizer, another class for its index."""
    for file in original.rglob("*"):
        there = place / file.relative_to(original)
        is_weight = file.name.endswith(_WEIGHTS) or ".safetensors.index." in file.name
        if file.is_file() and not is_weight and (not there.exists() or file.name == "model_index.json"):
            there.parent.mkdir(parents=True, exist_ok=True)
            there.unlink(missing_ok=True)
            shutil.copyfile(file, there)


def _settle(place: Path) -> None:
    """Make the files readable to whoever runs children, unwritable to all, and safe on the disk."""
    for folder, _, names in os.walk(place):
        for name in names:
            path = Path(folder, name)
            path.chmod(0o444)
            _sync(path)
        Path(folder).chmod(0o755)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
