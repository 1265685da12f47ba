"""What endpoint authors import: the decorator, the context, bindings, errors and values.

A name is imported when it is first used, so that `import gen_worker` costs next to nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gen_worker import io
    from gen_worker.api import (
        HF,
        Asset,
        AudioAsset,
        BatchItemDelta,
        CanceledError,
        Civitai,
        Done,
        Error,
        ExpectedOutput,
        FatalError,
        Hub,
        ImageAsset,
        IncrementalTokenDelta,
        ModelScope,
        Resources,
        RetryableError,
        StringEnum,
        ValidationError,
        VideoAsset,
        emit_diagnostic_log,
        endpoint,
        iter_transformers_text_deltas,
    )
    from gen_worker.api.batch import Batch as Batch
    from gen_worker.api.batch_context import BatchContext as BatchContext
    from gen_worker.api.context import RequestContext
    from gen_worker.api.errors import AuthError as AuthError
    from gen_worker.api.producers import ConversionContext, DatasetContext, TrainingContext
    from gen_worker.earlier.context import ActionContext as ActionContext
    from gen_worker.earlier.diffusion import CudaOutOfMemoryError as CudaOutOfMemoryError
    from gen_worker.earlier.diffusion import ModelNotFoundError as ModelNotFoundError
    from gen_worker.earlier.diffusion import PipelineConfig as PipelineConfig
    from gen_worker.earlier.diffusion import PipelineLoaderError as PipelineLoaderError
    from gen_worker.earlier.functions import ResourceRequirements as ResourceRequirements
    from gen_worker.earlier.functions import worker_function as worker_function
    from gen_worker.earlier.functions import worker_websocket as worker_websocket
    from gen_worker.earlier.injection import ModelArtifacts as ModelArtifacts
    from gen_worker.earlier.injection import ModelRef as ModelRef
    from gen_worker.earlier.injection import ModelRefSource as ModelRefSource
    from gen_worker.earlier.managers import CozyHubDownloader as CozyHubDownloader
    from gen_worker.earlier.managers import ModelDownloader as ModelDownloader
    from gen_worker.earlier.managers import ModelManager as ModelManager
    from gen_worker.earlier.pipelines import LoadedPipeline as LoadedPipeline
    from gen_worker.earlier.pipelines import PipelineLoader as PipelineLoader
    from gen_worker.earlier.project import ProjectValidationResult as ProjectValidationResult
    from gen_worker.earlier.project import validate_project as validate_project
    from gen_worker.earlier.realtime import RealtimeSocket as RealtimeSocket
    from gen_worker.model_cache import ModelCache as ModelCache
    from gen_worker.model_cache import ModelCacheStats as ModelCacheStats
    from gen_worker.model_cache import ModelLocation as ModelLocation

    __version__: str

__all__ = [
    "HF",
    "Asset",
    "AudioAsset",
    "BatchItemDelta",
    "CanceledError",
    "Civitai",
    "ConversionContext",
    "DatasetContext",
    "Done",
    "Error",
    "ExpectedOutput",
    "FatalError",
    "Hub",
    "ImageAsset",
    "IncrementalTokenDelta",
    "ModelScope",
    "RequestContext",
    "Resources",
    "RetryableError",
    "StringEnum",
    "TrainingContext",
    "ValidationError",
    "VideoAsset",
    "emit_diagnostic_log",
    "endpoint",
    "io",
    "iter_transformers_text_deltas",
]

_HOMES = {
    "RequestContext": "gen_worker.api.context",
    "ConversionContext": "gen_worker.api.producers",
    "DatasetContext": "gen_worker.api.producers",
    "TrainingContext": "gen_worker.api.producers",
}
_BESIDE = {
    "Batch": "gen_worker.api.batch",
    "BatchContext": "gen_worker.api.batch_context",
}
"""Names that `from gen_worker import *` leaves out."""

_EARLIER = {
    "ActionContext": "gen_worker.earlier.context",
    "AuthError": "gen_worker.errors",
    "CozyHubDownloader": "gen_worker.earlier.managers",
    "CudaOutOfMemoryError": "gen_worker.earlier.diffusion",
    "LoadedPipeline": "gen_worker.earlier.pipelines",
    "ModelArtifacts": "gen_worker.injection",
    "ModelCache": "gen_worker.model_cache",
    "ModelCacheStats": "gen_worker.model_cache",
    "ModelDownloader": "gen_worker.earlier.managers",
    "ModelLocation": "gen_worker.model_cache",
    "ModelManager": "gen_worker.earlier.managers",
    "ModelNotFoundError": "gen_worker.earlier.diffusion",
    "ModelRef": "gen_worker.injection",
    "ModelRefSource": "gen_worker.injection",
    "PipelineConfig": "gen_worker.earlier.diffusion",
    "PipelineLoader": "gen_worker.earlier.pipelines",
    "PipelineLoaderError": "gen_worker.earlier.diffusion",
    "ProjectValidationResult": "gen_worker.earlier.project",
    "RealtimeSocket": "gen_worker.earlier.realtime",
    "ResourceRequirements": "gen_worker.earlier.functions",
    "validate_project": "gen_worker.earlier.project",
    "worker_function": "gen_worker.earlier.functions",
    "worker_websocket": "gen_worker.earlier.functions",
}
"""Names of the earlier API: they are had, and not listed."""


if not TYPE_CHECKING:  # else a type checker takes every misspelt name for one that is there

    def __getattr__(name: str) -> Any:
        import importlib

        if name == "__version__":
            value = importlib.import_module("importlib.metadata").version("gen-worker")
        elif name == "io":
            value = importlib.import_module("gen_worker.io")
        elif (home := _BESIDE.get(name) or _EARLIER.get(name)) is not None:
            value = getattr(importlib.import_module(home), name)
        elif name in __all__:
            value = getattr(importlib.import_module(_HOMES.get(name, "gen_worker.api")), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
