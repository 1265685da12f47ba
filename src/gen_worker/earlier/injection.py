"""Marks that say which model an earlier function is given, and what it may be given of one.

Pure but for the table of runtime loaders, which the author's module fills while it is imported.
"""

import enum
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

Loader = TypeVar("Loader", bound=Callable[..., Any])


class ModelRefSource(enum.StrEnum):
    """Who says which model it is."""

    DEPLOYMENT = "deployment"
    """The project: the key stands in `[tool.cozy.models]`, or is a ref itself."""

    PAYLOAD = "payload"
    """The caller: the key names a field of the payload, whose text is a key or a ref."""


class ModelRef(msgspec.Struct, frozen=True):
    """A mark in `Annotated[T, ModelRef(source, key)]`: the parameter is given this model, as a `T`."""

    source: ModelRefSource
    key: str

    def __post_init__(self) -> None:
        if not isinstance(self.key, str) or not self.key.strip():
            raise ValueError(f"`ModelRef` needs a key, got {self.key!r}")
        msgspec.structs.force_setattr(self, "source", ModelRefSource(self.source))


class ModelArtifacts:
    """The files of a model: what an earlier function gets that loads models itself."""

    __slots__ = ("files", "metadata", "model_id", "root_dir")

    def __init__(
        self,
        model_id: str,
        root_dir: str | Path,
        files: Mapping[str, str | Path],
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.model_id = model_id
        self.root_dir = Path(root_dir)
        self.files: Mapping[str, Path] = MappingProxyType({key: Path(path) for key, path in files.items()})
        self.metadata: Mapping[str, Any] = MappingProxyType(dict(metadata or {}))

    def path(self, key: str) -> Path:
        """Return where a file is; raise `KeyError` where there is none of this key."""
        return self.files[key]

    def get_path(self, key: str, default: Path | None = None) -> Path | None:
        """Return where a file is, the default where there is none of this key."""
        return self.files.get(key, default)

    def __repr__(self) -> str:
        return f"ModelArtifacts(model_id={self.model_id!r}, root_dir={str(self.root_dir)!r}, files={len(self.files)})"


class Injection(msgspec.Struct, frozen=True):
    """A parameter that is given a model: which, and as what."""

    param: str
    type: Any
    model_ref: ModelRef


def parse_injection(name: str, annotation: Any) -> Injection | None:
    """Return what a parameter's annotation asks for; None where it is no `Annotated[T, ModelRef(…)]`.

    Raises ValueError for one with several marks.
    """
    if typing.get_origin(annotation) is not typing.Annotated:
        return None
    marks = [mark for mark in annotation.__metadata__ if isinstance(mark, ModelRef)]
    if len(marks) > 1:
        raise ValueError(f"`{name}` has {len(marks)} marks `ModelRef`: a parameter is given one model")
    return Injection(name, annotation.__origin__, marks[0]) if marks else None


def type_qualname(type_: Any) -> str:
    """Return `module.qualname` of a type, as `WORKER_RUNTIME_LOADERS_JSON` names it."""
    module, name = getattr(type_, "__module__", ""), getattr(type_, "__qualname__", "") or str(type_)
    return f"{module}.{name}" if module else name


LOADERS: dict[Any, Callable[..., Any]] = {}
"""What makes objects of a type, by the type."""


def register_runtime_loader(type: Any, loader: Loader) -> Loader:
    """Have `loader(ctx, artifacts)` make the objects of a type that earlier functions are given; return the loader.

    It is called once for each model, with the context of the job that needs it first.
    """
    if not callable(loader):
        raise TypeError(f"`register_runtime_loader` takes something to call, got {loader!r}")
    LOADERS[type] = loader
    return loader
