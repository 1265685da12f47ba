"""Fetch a model for an author who asks for it, with the worker's own fetcher, in this process."""

import os
from pathlib import Path

import msgspec

from gen_worker.earlier.refs import binding_of
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.fetcher import Fetcher
from gen_worker.models.errors import ModelError
from gen_worker.settings import Settings


def downloaded(ref: str, folder: Path, filename: str | None, hub_url: str, token: str, timeout_s: float) -> str:
    """Have a model below a folder; return its path, or that of one file of it.

    `timeout_s` is how long no byte may come. Raises ValueError for what is no ref, RuntimeError where the model, or
    the file in it, cannot be had.
    """
    binding = binding_of(ref)
    if binding is None:
        raise ValueError(f"`{ref}` is no ref: write `cozy:owner/name:tag` or `hf:owner/name`")
    folder.mkdir(parents=True, exist_ok=True)
    config = msgspec.structs.replace(
        FetchConfig.of(Settings.load()),
        root=str(folder.absolute()),
        hf_cache=str(folder.absolute() / "hub"),
        cozy_hub_url=hub_url,
        cozy_hub_token=token,
        stall_timeout_s=timeout_s,
    )
    fetcher = Fetcher(config)
    try:
        found = fetcher.fetch(binding.wanted)
    except ModelError as error:
        raise RuntimeError(f"{error}; {error.hint}" if error.hint else str(error)) from error
    finally:
        fetcher.close()
    os.close(found.lease)
    path = Path(found.snapshot.path)
    if filename is None:
        return str(path)
    inside = path / filename
    if not inside.is_file() or not inside.absolute().is_relative_to(path) or ".." in inside.parts:
        raise RuntimeError(f"`{ref}` has no file `{filename}`")
    return str(inside)
