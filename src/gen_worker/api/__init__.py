"""What endpoint authors write with, but for the contexts their handlers receive."""

from gen_worker import io
from gen_worker.api.bindings import HF, Binding, Civitai, Hub, ModelScope
from gen_worker.api.decorator import endpoint
from gen_worker.api.diagnostics import emit_diagnostic_log
from gen_worker.api.errors import (
    AuthError,
    CanceledError,
    FatalError,
    InputTooLargeError,
    OutputTooLargeError,
    RefCompatibilitySurprise,
    ResourceError,
    RetryableError,
    ValidationError,
    WorkerError,
)
from gen_worker.api.resources import Resources
from gen_worker.api.streaming import BatchItemDelta, Done, Error, IncrementalTokenDelta, TokenStreamSignal
from gen_worker.api.text_streams import iter_transformers_text_deltas
from gen_worker.api.types import (
    Asset,
    AudioAsset,
    Compute,
    ExpectedOutput,
    ImageAsset,
    MediaAsset,
    NegativePrompt,
    PositivePrompt,
    PromptRole,
    StringEnum,
    Tensors,
    VideoAsset,
)

__all__ = [
    "HF",
    "Asset",
    "AudioAsset",
    "AuthError",
    "BatchItemDelta",
    "Binding",
    "CanceledError",
    "Civitai",
    "Compute",
    "Done",
    "Error",
    "ExpectedOutput",
    "FatalError",
    "Hub",
    "ImageAsset",
    "IncrementalTokenDelta",
    "InputTooLargeError",
    "MediaAsset",
    "ModelScope",
    "NegativePrompt",
    "OutputTooLargeError",
    "PositivePrompt",
    "PromptRole",
    "RefCompatibilitySurprise",
    "ResourceError",
    "Resources",
    "RetryableError",
    "StringEnum",
    "Tensors",
    "TokenStreamSignal",
    "ValidationError",
    "VideoAsset",
    "WorkerError",
    "emit_diagnostic_log",
    "endpoint",
    "io",
    "iter_transformers_text_deltas",
]
