"""A record of which models an endpoint has, for endpoints that load models themselves.

It keeps account and lets go of pipelines; it neither downloads nor loads. Models that the worker loads for `setup()`
are not in it.
"""

import os
import threading
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from gen_worker.models.placement import free_cache
from gen_worker.models.rungs import GB
from gen_worker.settings import Settings

__all__ = ["ModelCache", "ModelCacheStats", "ModelLocation"]


class ModelLocation(StrEnum):
    """Where a model is."""

    VRAM = "vram"
    DISK = "disk"
    DOWNLOADING = "downloading"


class ModelCacheStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a `ModelCache` holds at one moment. Lists begin with the least recently used model."""

    vram_models: list[str]
    disk_models: list[str]
    downloading_models: list[str]
    vram_used_gb: float
    vram_total_gb: float
    """What models may take."""

    vram_available_gb: float
    total_models: int
    vram_model_count: int
    disk_model_count: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures by name, GB with two decimals."""
        figures = msgspec.structs.asdict(self)
        return {name: round(value, 2) if isinstance(value, float) else value for name, value in figures.items()}


class _Entry(msgspec.Struct):
    location: ModelLocation
    size_gb: float = 0.0
    pipeline: Any = None
    disk_path: Path | None = None
    progress: float = 0.0


class ModelCache:
    """Which models are in the device's memory, on disk, or on their way; safe to use from several threads.

    Models may take `max_vram_gb` of the device, else `WORKER_MAX_VRAM_GB`, else what the device has less
    `vram_safety_margin_gb`, else less `WORKER_VRAM_SAFETY_MARGIN_GB`; without a GPU nothing. `model_cache_dir` is made
    when it is not there; unset, it is the folder of the worker's models. A GB has 2**30 bytes.
    """

    def __init__(
        self,
        max_vram_gb: float | None = None,
        vram_safety_margin_gb: float | None = None,
        model_cache_dir: str | Path | None = None,
        *,
        settings: Settings | None = None,
    ) -> None:
        settings = settings or Settings.load()
        margin_gb = settings.vram_margin_gb if vram_safety_margin_gb is None else vram_safety_margin_gb
        limit_gb = settings.max_vram_gb or None if max_vram_gb is None else max_vram_gb
        self.max_vram_gb = max(0.0, _device_gb() - margin_gb) if limit_gb is None else float(limit_gb)
        self.model_cache_dir = Path(model_cache_dir or settings.cache_dir)
        self.model_cache_dir.mkdir(parents=True, exist_ok=True)
        self._max_concurrent_downloads = settings.max_concurrent_downloads
        self._lock = threading.RLock()
        self._entries: dict[str, _Entry] = {}  # the least recently used first

    # --- what happens to models ---

    def register_model(
        self,
        model_id: str,
        location: ModelLocation | str,
        size_gb: float = 0.0,
        pipeline: Any = None,
        disk_path: str | Path | None = None,
    ) -> None:
        """Add a model, or say anew where it is. Nothing is evicted for it."""
        self._put(model_id, _Entry(ModelLocation(location), size_gb, pipeline, _path(disk_path)))

    def mark_loaded_to_vram(self, model_id: str, pipeline: Any, size_gb: float) -> None:
        """Say that a model is in the device's memory; the least recently used others leave it as far as that needs.

        Those that are on disk as well stay known as such, others are forgotten.
        """
        self._put(model_id, _Entry(ModelLocation.VRAM, size_gb, pipeline), evict=True)

    def _evict_for(self, size_gb: float) -> bool:
        """Have others leave; return whether that let go of a pipeline."""
        victims = [each for each, entry in self._entries.items() if entry.location is ModelLocation.VRAM]
        let_go = False
        for victim in victims:
            if self._used_gb() + size_gb <= self.max_vram_gb:
                break
            entry = self._entries[victim]
            let_go = let_go or entry.pipeline is not None
            entry.location, entry.pipeline = ModelLocation.DISK, None
            if entry.disk_path is None:
                del self._entries[victim]
        return let_go

    def mark_cached_to_disk(self, model_id: str, disk_path: str | Path, size_gb: float = 0.0) -> None:
        """Say that a model is on disk and nowhere else; its size stays as it was where none is given."""
        self._put(model_id, _Entry(ModelLocation.DISK, size_gb, None, _path(disk_path)))

    def mark_downloading(self, model_id: str, progress: float = 0.0) -> None:
        """Say that a model is on its way, and which part of it is there, from 0 to 1."""
        self._put(model_id, _Entry(ModelLocation.DOWNLOADING, progress=progress))

    def update_download_progress(self, model_id: str, progress: float) -> None:
        """Say which part of a model is there; of one that is not on its way, nothing is noted."""
        with self._lock:
            entry = self._entries.get(model_id)
            if entry is not None and entry.location is ModelLocation.DOWNLOADING:
                entry.progress = progress

    def get_download_progress(self, model_id: str) -> float | None:
        """Return which part of a model is there, None for one that is not on its way."""
        with self._lock:
            entry = self._entries.get(model_id)
            return entry.progress if entry is not None and entry.location is ModelLocation.DOWNLOADING else None

    def unload_model(self, model_id: str) -> bool:
        """Forget a model and let go of its pipeline, and say whether it was known. Files stay."""
        return self._put(model_id, None)

    def _put(self, model_id: str, entry: _Entry | None, *, evict: bool = False) -> bool:
        """Have an entry, or none, in the place of the one before; return whether there was one.

        What it does not say is as before: where the files are, and of what is on disk the size. What pipelines that
        were let go held of the device is given back.
        """
        with self._lock:
            before = self._entries.pop(model_id, None)
            known = before is not None
            let_go = before is not None and before.pipeline is not None
            if entry is not None and before is not None:
                entry.disk_path = entry.disk_path or before.disk_path
                if entry.location is ModelLocation.DISK:
                    entry.size_gb = entry.size_gb or before.size_gb
            del before
            if entry is not None:
                let_go = (self._evict_for(entry.size_gb) if evict else False) or let_go
                self._entries[model_id] = entry
        if let_go:
            free_cache()
        return known

    # --- what is known of them ---

    def get_pipeline(self, model_id: str) -> Any:
        """Return the pipeline of a model in the device's memory, which counts as a use of it; None without one."""
        with self._lock:
            entry = self._entries.get(model_id)
            if entry is None or entry.location is not ModelLocation.VRAM:
                return None
            self._entries[model_id] = self._entries.pop(model_id)
            return entry.pipeline

    def has_model(self, model_id: str) -> bool:
        """Say whether a model is known."""
        with self._lock:
            return model_id in self._entries

    def is_in_vram(self, model_id: str) -> bool:
        """Say whether a model is in the device's memory."""
        return model_id in self.get_vram_models()

    def is_on_disk(self, model_id: str) -> bool:
        """Say whether a model is on disk and not in the device's memory."""
        return model_id in self.get_disk_models()

    def can_fit_in_vram(self, size_gb: float) -> bool:
        """Say whether a model of this size fits, if others leave for it."""
        return size_gb <= self.max_vram_gb

    def get_vram_models(self) -> list[str]:
        """Return the models in the device's memory."""
        return self._at(ModelLocation.VRAM)

    def get_disk_models(self) -> list[str]:
        """Return the models that are on disk only."""
        return self._at(ModelLocation.DISK)

    def get_downloading_models(self) -> list[str]:
        """Return the models that are on their way."""
        return self._at(ModelLocation.DOWNLOADING)

    def get_available_models(self) -> list[str]:
        """Return the models in the device's memory and those on disk."""
        with self._lock:
            return [*self.get_vram_models(), *self.get_disk_models()]

    def get_all_models(self) -> list[str]:
        """Return all models that are known."""
        with self._lock:
            return list(self._entries)

    def are_models_available(self, model_ids: Iterable[str]) -> bool:
        """Say whether all of these are known, and none of them only on its way."""
        return set(model_ids) <= set(self.get_available_models())

    def get_max_concurrent_downloads(self) -> int:
        """Return how many models are downloaded at once: `WORKER_MAX_CONCURRENT_DOWNLOADS`."""
        return self._max_concurrent_downloads

    def get_stats(self) -> ModelCacheStats:
        """Return what there is at this moment."""
        with self._lock:
            loaded, on_disk, coming = self.get_vram_models(), self.get_disk_models(), self.get_downloading_models()
            used_gb = self._used_gb()
        return ModelCacheStats(
            vram_models=loaded,
            disk_models=on_disk,
            downloading_models=coming,
            vram_used_gb=used_gb,
            vram_total_gb=self.max_vram_gb,
            vram_available_gb=max(0.0, self.max_vram_gb - used_gb),
            total_models=len(loaded) + len(on_disk) + len(coming),
            vram_model_count=len(loaded),
            disk_model_count=len(on_disk),
        )

    def _at(self, location: ModelLocation) -> list[str]:
        with self._lock:
            return [model_id for model_id, entry in self._entries.items() if entry.location is location]

    def _used_gb(self) -> float:
        return sum(entry.size_gb for entry in self._entries.values() if entry.location is ModelLocation.VRAM)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _device_gb() -> float:
    """Return the memory of the first GPU that this process sees, 0 without one. Torch would take a share of it."""
    import pynvml

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0.0
    try:
        if visible.startswith(("GPU-", "MIG-")):
            device = pynvml.nvmlDeviceGetHandleByUUID(visible)
        elif visible.isdecimal():
            device = pynvml.nvmlDeviceGetHandleByIndex(int(visible))
        else:
            return 0.0
        return float(pynvml.nvmlDeviceGetMemoryInfo(device).total / GB)
    except pynvml.NVMLError:  # there is no such device
        return 0.0
    finally:
        pynvml.nvmlShutdown()
