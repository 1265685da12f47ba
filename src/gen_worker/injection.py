"""What earlier functions are given models by: the module of the earlier API."""

from gen_worker.earlier.injection import (
    Injection,
    ModelArtifacts,
    ModelRef,
    ModelRefSource,
    parse_injection,
    register_runtime_loader,
    type_qualname,
)

__all__ = [
    "Injection",
    "ModelArtifacts",
    "ModelRef",
    "ModelRefSource",
    "parse_injection",
    "register_runtime_loader",
    "type_qualname",
]
