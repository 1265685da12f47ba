"""A loader of diffusers pipelines for earlier functions that load models themselves. Loads torch when it loads one."""

import copy
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gen_worker.earlier.diffusion import (
    CudaOutOfMemoryError,
    ModelNotFoundError,
    PipelineConfig,
    PipelineLoaderError,
    check_device,
    dtype_name,
    gb_of,
    memory_counted,
    parts_of,
    pipeline_of,
    place,
    serialize_tokenizers,
    vram_gb_of,
    warm,
)
from gen_worker.earlier.managers import CozyHubDownloader, ModelDownloader
from gen_worker.earlier.refs import binding_of
from gen_worker.earlier.surroundings import surroundings
from gen_worker.earlier.values import finished
from gen_worker.model_cache import ModelCache
from gen_worker.models.placement import free_cache
from gen_worker.settings import Settings


@dataclass
class LoadedPipeline:
    """A pipeline that is loaded. Awaiting it gives itself, so that `load` may be awaited."""

    pipeline: Any
    model_id: str
    pipeline_class: str
    dtype: str
    size_gb: float
    load_format: str
    """`flashpack`, `safetensors` or `single_file`."""

    components: list[str] = field(default_factory=list)

    def __await__(self) -> Generator[Any, None, "LoadedPipeline"]:
        yield from ()
        return self


class PipelineLoader:
    """Loads pipelines and keeps them on the device; the least recently used goes where there is no room.

    Safe to use from several threads: one pipeline is loaded at a time, and those that are loaded can be had meanwhile.
    What it keeps is beside the models that the worker itself keeps; pipelines on the CPU take nothing of the device.
    """

    def __init__(
        self,
        models_dir: str | Path | None = None,
        local_cache_dir: str | Path | None = None,
        max_vram_gb: float | None = None,
        vram_safety_margin_gb: float = 3.5,
        cozy_hub_url: str | None = None,
        cozy_hub_token: str | None = None,
        downloader: ModelDownloader | None = None,
    ) -> None:
        self._models_dir = Path(models_dir or surroundings().cache)
        self._local_cache_dir = Path(local_cache_dir) if local_cache_dir else None
        self._cache = ModelCache(max_vram_gb, vram_safety_margin_gb, self._models_dir)
        self._downloader = downloader or _hub(cozy_hub_url, cozy_hub_token)
        self._loaded: dict[str, LoadedPipeline] = {}
        self._lock = threading.RLock()
        self._loading = threading.RLock()

    def load(self, model_id: str, config: PipelineConfig | None = None) -> LoadedPipeline:
        """Return a pipeline on its device, loading it where it is not there; it may be awaited.

        Raises `ModelNotFoundError` without files, `CudaOutOfMemoryError` where it cannot fit, `PipelineLoaderError`
        where diffusers cannot load it.
        """
        with self._loading:
            if (there := self.get(model_id)) is not None:
                return there
            chosen = config or PipelineConfig()
            check_device(model_id, chosen, self._cache.max_vram_gb)
            path = self._place_of(model_id, chosen)
            made, load_format = pipeline_of(model_id, path, chosen)
            serialize_tokenizers(made)
            vram_gb = vram_gb_of(made, chosen)
            if vram_gb > self._cache.max_vram_gb:
                raise CudaOutOfMemoryError(model_id, vram_gb, self._cache.max_vram_gb)
            self._make_room(model_id, path, made, vram_gb)
            try:
                with memory_counted(model_id, vram_gb):
                    place(model_id, made, chosen)
                    warm(model_id, made, chosen)
            except BaseException:
                self._cache.mark_cached_to_disk(model_id, path)
                raise
            loaded = LoadedPipeline(
                pipeline=made,
                model_id=model_id,
                pipeline_class=type(made).__name__,
                dtype=dtype_name(chosen),
                size_gb=gb_of(parts_of(made).values()),
                load_format=load_format,
                components=sorted(parts_of(made)),
            )
            with self._lock:
                self._loaded[model_id] = loaded
            return loaded

    def _make_room(self, model_id: str, path: Path, made: Any, vram_gb: float) -> None:
        """Have the least recently used leave the device for a pipeline that comes there."""
        with self._lock:
            self._cache.mark_cached_to_disk(model_id, path)
            self._cache.mark_loaded_to_vram(model_id, made, vram_gb)
            gone = set(self._loaded) - set(self._cache.get_vram_models())
            for each in gone:
                del self._loaded[each]
        if gone:
            free_cache()

    def unload(self, model_id: str) -> bool:
        """Let go of a pipeline; say whether there was one."""
        with self._lock:
            there = self._loaded.pop(model_id, None) is not None
            self._cache.unload_model(model_id)
            return there

    def get(self, model_id: str) -> LoadedPipeline | None:
        """Return a pipeline that is loaded, which counts as a use of it."""
        with self._lock:
            self._cache.get_pipeline(model_id)
            return self._loaded.get(model_id)

    def get_for_inference(self, model_id: str) -> Any:
        """Return a loaded pipeline with a scheduler of its own, so that two uses do not meet in one; None without."""
        loaded = self.get(model_id)
        if loaded is None:
            return None
        scheduler = getattr(loaded.pipeline, "scheduler", None)
        if scheduler is None or not hasattr(scheduler, "config"):
            return loaded.pipeline
        fresh = copy.copy(loaded.pipeline)
        fresh.scheduler = type(scheduler).from_config(scheduler.config)
        return fresh

    def get_loaded_models(self) -> list[str]:
        """Return the ids of what is loaded."""
        with self._lock:
            return list(self._loaded)

    def get_stats(self) -> dict[str, Any]:
        """Return what is loaded and how much of the device it takes, by name."""
        return self._cache.get_stats().to_dict()

    def _place_of(self, model_id: str, config: PipelineConfig) -> Path:
        """Return where a model lies: where it is said to, else in a folder by its id, else where it is fetched to."""
        name = surroundings().folder_of(model_id).name
        roots = [each for each in (self._local_cache_dir, self._models_dir) if each is not None]
        searched = [Path(config.model_path)] if config.model_path else [root / name for root in roots]
        for path in searched:
            if path.exists():
                return path
        if config.model_path or binding_of(model_id) is None:
            raise ModelNotFoundError(model_id, tuple(str(path) for path in searched))
        try:
            return Path(finished(self._downloader.download(model_id, self._models_dir)))
        except (RuntimeError, OSError) as error:
            raise PipelineLoaderError(f"`{model_id}` cannot be fetched: {error}", model_id) from error


def _hub(url: str | None, token: str | None) -> CozyHubDownloader:
    """Return the downloader of a hub; what is not said of it, the settings say."""
    settings = Settings.load()
    return CozyHubDownloader(
        settings.cozy_hub_url if url is None else url, str(settings.cozy_hub_token) if token is None else token
    )
