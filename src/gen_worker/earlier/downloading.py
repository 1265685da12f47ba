"""Fetch a model for an author who asks for it, with the worker's own fetcher, in this process."""

import os
from pathlib import Path

import msgspec

from gen_worker.earlier.refs import binding_of
from gen_worker.earlier.snapshots import have_snapshot
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.fetcher import Fetcher
from gen_worker.models.errors import ModelError
from gen_worker.models.wanted import Wanted
from gen_worker.settings import Settings


def downloaded(ref: str, folder: Path, filename: str | None, hub_url: str, token: str, timeout_s: float) -> str:
    """Have a model below a folder; return its path, or that of one file of it.

    `timeout_s` is how long no byte may come. Raises ValueError for what is no ref, RuntimeError where the model, or
    the file in it, cannot be had.
    """
    binding = binding_of(ref)
    if binding is None:
        raise ValueError(f"`{ref}` is no ref: write `cozy:owner/name:tag` or `hf:owner/name`")
    wanted, folder = binding.wanted, folder.absolute()
    config = msgspec.structs.replace(
        FetchConfig.of(Settings.load()),
        root=str(folder),
        hf_cache=str(folder / "hub"),
        cozy_hub_url=hub_url,
        cozy_hub_token=token,
        stall_timeout_s=timeout_s,
    )
    try:
        path = (
            have_snapshot(wanted, folder, config)
            if wanted.provider == "tensorhub"
            else _of_hugging_face(wanted, config)
        )
    except ModelError as error:
        raise RuntimeError(f"{error}; {error.hint}" if error.hint else str(error)) from error
    except OSError as error:
        raise RuntimeError(f"`{ref}` cannot be kept below `{folder}`: {error}") from error
    if filename is None:
        return str(path)
    inside = path / filename
    if not inside.is_file() or not inside.absolute().is_relative_to(path) or ".." in inside.parts:
        raise RuntimeError(f"`{ref}` has no file `{filename}`")
    return str(inside)


def _of_hugging_face(wanted: Wanted, config: FetchConfig) -> Path:
    fetcher = Fetcher(config)
    try:
        found = fetcher.fetch(wanted)
    finally:
        fetcher.close()
    os.close(found.lease)
    return Path(found.snapshot.path)
