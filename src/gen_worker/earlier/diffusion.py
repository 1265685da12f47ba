"""Make a pipeline of diffusers from files, and have it on its device. Loads torch and diffusers when it is asked to."""

import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from gen_worker.models.selection import INDEX, OPTIONAL_COMPONENTS
from gen_worker.models.weights import precision_named, weight_sets

_ENCODERS = ("__call__", "encode", "tokenize")
_DTYPES = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32"}
_log = logging.getLogger("gen_worker")


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
    """Of a folder: what diffusers takes by this name, as the path of a file with a pipeline's code."""

    dtype: str | None = None
    """`fp16`, `bf16` or `fp32`; unset: `fp16` on a GPU, else `fp32`."""

    device: str = "cuda"
    enable_vae_tiling: bool = True
    enable_vae_slicing: bool = True
    enable_model_cpu_offload: bool = False
    enable_sequential_cpu_offload: bool = False
    scheduler_class: str | None = None
    """The name of a scheduler's class of diffusers, made of the model's own settings; unset: the model's."""

    warmup_steps: int = 4
    """So many steps are run once it is loaded, so that the first request need not wait for kernels; 0: none."""

    variant: str | None = None
    """Which weights of a folder, as `fp16`; unset: those of the dtype where there are such, else what there is."""


# --- from files to an object ------------------------------------------------------------------------------------------


def dtype_name(config: PipelineConfig) -> str:
    """Return the dtype that weights are loaded as."""
    return config.dtype or ("fp16" if _is_cuda(config) else "fp32")


def _is_cuda(config: PipelineConfig) -> bool:
    return config.device.startswith("cuda")


def check_device(model_id: str, config: PipelineConfig, limit_gb: float) -> None:
    """Refuse a GPU that is not there before anything is loaded for it."""
    if _is_cuda(config) and limit_gb == 0:
        import torch

        if not torch.cuda.is_available():
            told = 'there is no GPU: `PipelineConfig(device="cpu")` loads it on the CPU'
            raise PipelineLoaderError(f"`{model_id}` cannot be loaded on `{config.device}`: {told}", model_id)


def pipeline_of(model_id: str, path: Path, config: PipelineConfig) -> tuple[Any, str]:
    """Return what diffusers makes of files, on the CPU, and the format that they had."""
    import torch

    named = precision_named(dtype_name(config))
    if named not in _DTYPES:
        raise PipelineLoaderError(f"`{model_id}`: no dtype `{named}`, there are `fp16`, `bf16` and `fp32`", model_id)
    cls = _class_named(model_id, config.pipeline_class or "DiffusionPipeline")
    arguments: dict[str, Any] = {"dtype": getattr(torch, _DTYPES[named]), "local_files_only": True}
    packed = path.is_dir() and any(path.rglob("*.flashpack"))
    try:
        if packed and find_spec("flashpack") is not None and hasattr(cls, "from_pretrained_flashpack"):
            return cls.from_pretrained_flashpack(str(path)), "flashpack"
        if (path / INDEX).is_file() and any(path.rglob("*.safetensors")):
            return _of_folder(cls, path, config, arguments), "safetensors"
        file = path if path.is_file() else next(iter(sorted(path.glob("*.safetensors"))), None)
        if file is not None:
            return _of_file(model_id, cls, file, arguments), "single_file"
    except (OSError, ValueError, TypeError, AttributeError, ImportError, KeyError, RuntimeError) as error:
        raise PipelineLoaderError(f"`{model_id}` cannot be loaded from `{path}`: {error}", model_id) from error
    if packed:
        told = "its weights are flashpack only: install `flashpack`, and name a `pipeline_class` that reads them"
        raise PipelineLoaderError(f"`{model_id}` cannot be loaded from `{path}`: {told}", model_id)
    raise ModelNotFoundError(model_id, (str(path),))


def _of_folder(cls: Any, path: Path, config: PipelineConfig, arguments: dict[str, Any]) -> Any:
    index = msgspec.json.decode((path / INDEX).read_bytes(), type=dict[str, Any])
    absent = [name for name in OPTIONAL_COMPONENTS if name in index and not (path / name).is_dir()]
    named = {"custom_pipeline": config.custom_pipeline} if config.custom_pipeline else {}
    variant = config.variant or _variant(path, precision_named(dtype_name(config))) or None
    return cls.from_pretrained(
        str(path), **arguments, **named, **dict.fromkeys(absent), use_safetensors=True, variant=variant
    )


def _of_file(model_id: str, cls: Any, file: Path, arguments: dict[str, Any]) -> Any:
    if not hasattr(cls, "from_single_file"):
        told = 'name the class that it is of, as `PipelineConfig(pipeline_class="StableDiffusionXLPipeline")`'
        raise PipelineLoaderError(f"`{model_id}` is one file, `{file.name}`: {told}", model_id)
    if any((file.parent / name).is_file() for name in (INDEX, "config.json")):  # what its parts are, without a network
        arguments["config"] = str(file.parent)
    return cls.from_single_file(str(file), **arguments)


def _variant(path: Path, wanted: str) -> str:
    """Return which weights to take of a folder: those of the dtype, else the plain ones, where all components can."""
    folders = [[file.name for file in each.iterdir()] for each in path.iterdir() if each.is_dir()]
    tags = [{each.tag for each in sets} for names in folders if (sets := weight_sets(names, ".safetensors"))]
    known = sorted(set().union(*tags), key=lambda tag: (tag != wanted, tag))

    def without(tag: str) -> int:
        return sum(1 for each in tags if not each & {tag, ""})

    return min(known, key=without, default="")


def _class_named(model_id: str, name: str) -> Any:
    import diffusers

    found = getattr(diffusers, name, None)
    if found is None:
        raise PipelineLoaderError(f"`{model_id}`: diffusers has no class `{name}`", model_id)
    return found


# --- on the device ----------------------------------------------------------------------------------------------------


def parts_of(made: Any) -> dict[str, Any]:
    """Return the components that a pipeline has, by name; of a single part of one, itself."""
    components: dict[str, Any] = getattr(made, "components", {type(made).__name__: made})
    return {name: part for name, part in components.items() if part is not None}


def serialize_tokenizers(made: Any) -> None:
    """Have each fast tokenizer of a pipeline serve one call at a time.

    It keeps padding and truncation of the call that runs in itself: of two threads, one would have its prompt padded as
    the other wants it, and draw something else without a word.
    """
    for part in parts_of(made).values():
        if getattr(part, "is_fast", False):
            cls = type(part)
            lock = threading.RLock()
            calls = {name: _one_at_a_time(lock, getattr(cls, name)) for name in _ENCODERS if hasattr(cls, name)}
            part.__class__ = type(cls.__name__, (cls,), {"__module__": cls.__module__, **calls})


def _one_at_a_time(lock: threading.RLock, call: Callable[..., Any]) -> Callable[..., Any]:
    def alone(self: Any, *args: Any, **named: Any) -> Any:
        with lock:
            return call(self, *args, **named)

    return alone


def gb_of(parts: Iterable[Any]) -> float:
    """Return how much the weights of some parts take, in GB of 2**30 bytes."""
    weights = [each for part in parts if hasattr(part, "parameters") for each in part.parameters()]
    return float(sum(each.numel() * each.element_size() for each in weights)) / (1 << 30)


def vram_gb_of(made: Any, config: PipelineConfig) -> float:
    """Return what a pipeline takes of the device while it rests there; offloaded ones hold a part at a time."""
    if not _is_cuda(config) or config.enable_sequential_cpu_offload:
        return 0.0
    if config.enable_model_cpu_offload:
        return max((gb_of([part]) for part in parts_of(made).values()), default=0.0)
    return gb_of(parts_of(made).values())


@contextmanager
def memory_counted(model_id: str, needed_gb: float) -> Iterator[None]:
    """Have a device that has no room after all told with its figures."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        free_bytes = torch.cuda.mem_get_info()[0]
        raise CudaOutOfMemoryError(model_id, needed_gb, free_bytes / (1 << 30)) from error


def place(model_id: str, made: Any, config: PipelineConfig) -> None:
    """Have a pipeline on its device, as its configuration says; raise `PipelineLoaderError` where that cannot be."""
    import torch

    if config.scheduler_class:
        cls, own = _class_named(model_id, config.scheduler_class), getattr(made, "scheduler", None)
        if own is None:
            told = f"it has no scheduler that `{config.scheduler_class}` could stand for"
            raise PipelineLoaderError(f"`{model_id}`: {told}", model_id)
        made.scheduler = cls.from_config(own.config)
    for wanted, name in ((config.enable_vae_tiling, "enable_tiling"), (config.enable_vae_slicing, "enable_slicing")):
        method = getattr(getattr(made, "vae", None), name, None)
        if wanted and inspect.ismethod(method):
            method()
    try:
        if config.enable_sequential_cpu_offload:
            made.enable_sequential_cpu_offload(device=config.device)
        elif config.enable_model_cpu_offload:
            made.enable_model_cpu_offload(device=config.device)
        else:
            made.to(config.device)
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        raise PipelineLoaderError(f"`{model_id}` cannot be had on `{config.device}`: {error}", model_id) from error


def warm(model_id: str, made: Any, config: PipelineConfig) -> None:
    """Run a few steps, where a prompt is enough for a run."""
    import torch

    taken = inspect.signature(type(made).__call__).parameters
    if config.warmup_steps < 1 or not {"prompt", "num_inference_steps"} <= taken.keys():
        return
    arguments: dict[str, Any] = {"prompt": "warm", "num_inference_steps": config.warmup_steps}
    if "output_type" in taken:
        arguments["output_type"] = "latent"
    with torch.random.fork_rng(devices=[config.device] if _is_cuda(config) else []), torch.inference_mode():
        try:
            made(**arguments)
        except (TypeError, ValueError, AttributeError) as error:  # it wants an image, or another thing that is not here
            _log.warning("`%s` is not warmed up, as a prompt is not enough for it: %s", model_id, error)
