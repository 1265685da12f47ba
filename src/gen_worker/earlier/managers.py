"""Interfaces of the earlier API for authors who keep or fetch models themselves."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

__all__ = ["CozyHubDownloader", "ModelDownloader", "ModelManager"]


class ModelManager(ABC):
    """Keeps the models that earlier functions are given; `MODEL_MANAGER_CLASS` names a subclass as `module:Class`.

    One is made in each child, without arguments. Each method may be a coroutine function.
    """

    @abstractmethod
    def load(self, model_id: str) -> Any:
        """Have a model on the device; return whether it is."""

    @abstractmethod
    def get(self, model_id: str) -> Any:
        """Return a model that is on the device, None for another.

        A subclass that hands out something fresh for each use has a method `get_for_inference` besides.
        """

    @abstractmethod
    def unload(self, model_id: str) -> Any:
        """Let go of a model; return whether there was one."""

    @abstractmethod
    def stats(self) -> Any:
        """Return what there is, as a dict."""


class ModelDownloader(ABC):
    """Fetches the files of models."""

    @abstractmethod
    async def download(self, model_ref: str, dest_dir: str | Path, filename: str | None = None) -> str:
        """Have a model below a folder, and return its path, or that of one file of it."""


class CozyHubDownloader(ModelDownloader):
    """Fetches models from the platform's hub at `base_url`; refs of Hugging Face, `hf:…`, come from there.

    What is fetched is verified, and what is there is not fetched again. A snapshot of the hub lies at
    `cozy/snapshots/<digest>` in the folder, its objects at `cozy/objects/<digest>`; a repository of Hugging Face in the
    layout of its libraries, below `hub`. `timeout_seconds` is how long no byte may come.
    """

    def __init__(self, base_url: str, token: str | None = None, timeout_seconds: float = 120) -> None:
        self.base_url = base_url.rstrip("/")
        self._token = token or ""
        self._timeout_s = timeout_seconds

    async def download(self, model_ref: str, dest_dir: str | Path, filename: str | None = None) -> str:
        """Have a model below a folder, and return its path, or that of one file of it.

        Raises ValueError for what is no ref, RuntimeError where the model cannot be had.
        """
        import asyncio

        return await asyncio.to_thread(self._download, model_ref, Path(dest_dir), filename)

    def _download(self, model_ref: str, folder: Path, filename: str | None) -> str:
        from gen_worker.earlier.downloading import downloaded

        return downloaded(model_ref, folder, filename, self.base_url, self._token, self._timeout_s)
