"""A loader of diffusers pipelines for earlier functions that load models themselves. Loads torch when it loads one."""

import copy
import inspect
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gen_worker.earlier.managers import CozyHubDownloader, ModelDownloader
from gen_worker.earlier.refs import binding_of
from gen_worker.earlier.surroundings import surroundings
from gen_worker.earlier.values import finished
from gen_worker.model_cache import ModelCache, ModelLocation

_DTYPES = {
    "fp16": "float16",
    "float16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp32": "float32",
    "float32": "float32",
}


class PipelineLoaderError(Exception):
    """A pipeline cannot be loaded; `model_id` says which."""

    def __init__(self, message: str, model_id: str = "") -> None:
        super().__init__(message)
        self.model_id = model_id


class ModelNotFoundError(PipelineLoaderError):
    """There are no files of a model."""

    def __init__(self, model_id: str, searched: tuple[str, ...] = ()) -> None:
        told = f"; it was looked for at {', '.join(f'`{each}`' for each in searched)}" if searched else ""
        super().__init__(f"no model `{model_id}`{told}", model_id)
        self.searched = searched


class CudaOutOfMemoryError(PipelineLoaderError):
    """The device has no room for a model; figures are GB of 2**30 bytes."""

    def __init__(self, model_id: str, required_gb: float = 0.0, available_gb: float = 0.0) -> None:
        text = f"`{model_id}` needs {required_gb:.2f} GB of the device, {available_gb:.2f} GB may be taken"
        super().__init__(text, model_id)
        self.required_gb = required_gb
        self.available_gb = available_gb


@dataclass
class PipelineConfig:
    """What is loaded, and how it is placed."""

    model_path: str | None = None
    """A folder or a file; unset: the model is looked for by its id, and fetched."""

    pipeline_class: str | None = None
    """The name of a class of diffusers; unset: what the model says."""

    custom_pipeline: str | None = None
    dtype: str | None = None
    """`fp16`, `bf16` or `fp32`; unset: `fp16` on a GPU, else `fp32`."""

    device: str = "cuda"
    enable_vae_tiling: bool = True
    enable_vae_slicing: bool = True
    enable_model_cpu_offload: bool = False
    enable_sequential_cpu_offload: bool = False
    scheduler_class: str | None = None
    warmup_steps: int = 4
    variant: str | None = None


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

    Safe to use from several threads. What it keeps is beside the models that the worker itself keeps.
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
        self._downloader = downloader or CozyHubDownloader(cozy_hub_url or "", cozy_hub_token)
        self._loaded: dict[str, LoadedPipeline] = {}
        self._lock = threading.RLock()

    def load(self, model_id: str, config: PipelineConfig | None = None) -> LoadedPipeline:
        """Return a pipeline on its device, loading it where it is not there; it may be awaited.

        Raises `ModelNotFoundError` without files, `CudaOutOfMemoryError` where it cannot fit, `PipelineLoaderError`
        where diffusers cannot load it.
        """
        with self._lock:
            if (there := self.get(model_id)) is not None:
                return there
            chosen = config or PipelineConfig()
            path = self._place_of(model_id, chosen)
            made, load_format = _made(model_id, path, chosen)
            size_gb = _size_gb(made)
            if chosen.device.startswith("cuda") and not self._cache.can_fit_in_vram(size_gb):
                raise CudaOutOfMemoryError(model_id, size_gb, self._cache.max_vram_gb)
            self._cache.mark_loaded_to_vram(model_id, made, size_gb)
            for gone in set(self._loaded) - set(self._cache.get_vram_models()):
                del self._loaded[gone]
            _place(made, chosen)
            loaded = LoadedPipeline(
                pipeline=made,
                model_id=model_id,
                pipeline_class=type(made).__name__,
                dtype=_dtype_name(chosen),
                size_gb=size_gb,
                load_format=load_format,
                components=sorted(getattr(made, "components", {})),
            )
            self._loaded[model_id] = loaded
            return loaded

    def unload(self, model_id: str) -> bool:
        """Let go of a pipeline; say whether there was one."""
        with self._lock:
            self._loaded.pop(model_id, None)
            return self._cache.unload_model(model_id)

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
        """Return what is loaded and how much it takes, by name."""
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
            path = Path(finished(self._downloader.download(model_id, self._models_dir)))
        except (RuntimeError, OSError) as error:
            raise PipelineLoaderError(f"`{model_id}` cannot be fetched: {error}", model_id) from error
        self._cache.register_model(model_id, ModelLocation.DISK, disk_path=path)
        return path


def _dtype_name(config: PipelineConfig) -> str:
    return config.dtype or ("fp16" if config.device.startswith("cuda") else "fp32")


def _made(model_id: str, path: Path, config: PipelineConfig) -> tuple[Any, str]:
    import torch

    named = _dtype_name(config)
    if named not in _DTYPES:
        raise PipelineLoaderError(f"`{model_id}`: no dtype `{named}`, there are `fp16`, `bf16` and `fp32`", model_id)
    cls = _class_named(model_id, config.pipeline_class or "DiffusionPipeline")
    arguments: dict[str, Any] = {"torch_dtype": getattr(torch, _DTYPES[named]), "local_files_only": True}
    try:
        if _is_flashpack(path) and hasattr(cls, "from_pretrained_flashpack"):
            return cls.from_pretrained_flashpack(str(path)), "flashpack"
        if path.is_dir() and (path / "model_index.json").is_file():
            return _of_folder(cls, path, config, arguments), "safetensors"
        file = path if path.is_file() else next(iter(sorted(path.glob("*.safetensors"))), None)
        if file is None:
            raise ModelNotFoundError(model_id, (str(path),))
        return cls.from_single_file(str(file), **arguments), "single_file"
    except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise PipelineLoaderError(f"`{model_id}` cannot be loaded from `{path}`: {error}", model_id) from error


def _of_folder(cls: Any, path: Path, config: PipelineConfig, arguments: dict[str, Any]) -> Any:
    more: dict[str, Any] = {"use_safetensors": True, "variant": config.variant}
    if config.custom_pipeline:
        more["custom_pipeline"] = config.custom_pipeline
    absent = [name for name in ("safety_checker", "feature_extractor") if not (path / name).is_dir()]
    try:
        return cls.from_pretrained(str(path), **arguments, **more)
    except (OSError, ValueError):
        return cls.from_pretrained(str(path), **arguments, **more, **dict.fromkeys(absent))


def _class_named(model_id: str, name: str) -> Any:
    import diffusers

    found = getattr(diffusers, name, None)
    if found is None:
        raise PipelineLoaderError(f"`{model_id}`: diffusers has no class `{name}`", model_id)
    return found


def _is_flashpack(path: Path) -> bool:
    return path.is_dir() and find_spec("flashpack") is not None and any(path.rglob("*.flashpack"))


def _size_gb(made: Any) -> float:
    parts = getattr(made, "components", {}).values()
    weights = [each for part in parts if hasattr(part, "parameters") for each in part.parameters()]
    return float(sum(each.numel() * each.element_size() for each in weights)) / (1 << 30)


def _place(made: Any, config: PipelineConfig) -> None:
    if config.scheduler_class:
        made.scheduler = _class_named("", config.scheduler_class).from_config(made.scheduler.config)
    for wanted, name in ((config.enable_vae_tiling, "enable_tiling"), (config.enable_vae_slicing, "enable_slicing")):
        method = getattr(getattr(made, "vae", None), name, None)
        if wanted and inspect.ismethod(method):
            method()
    if config.enable_sequential_cpu_offload:
        made.enable_sequential_cpu_offload()
    elif config.enable_model_cpu_offload:
        made.enable_model_cpu_offload()
    else:
        made.to(config.device)
