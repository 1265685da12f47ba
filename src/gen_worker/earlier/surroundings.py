"""What the environment says to earlier functions: where models lie, what loads them, which versions the host has."""

import importlib
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from gen_worker.api.errors import FatalError

ARTIFACTS, LOADERS = "WORKER_MODEL_ARTIFACTS_JSON", "WORKER_RUNTIME_LOADERS_JSON"
MANAGER = "MODEL_MANAGER_CLASS"
CACHES = ("WORKER_MODEL_CACHE_DIR", "MODEL_CACHE_DIR", "TENSORHUB_CACHE_DIR")
DEFAULT_CACHE = "/tmp/model_cache"
_HOST = {
    "cuda_version": ("WORKER_CUDA_VERSION", "CUDA_VERSION", "NVIDIA_CUDA_VERSION"),
    "tensorrt_version": ("WORKER_TENSORRT_VERSION",),
    "sm": ("WORKER_SM",),
}


class VariableError(FatalError):
    """A variable of the environment says what cannot be meant."""


class Described(msgspec.Struct, frozen=True):
    """Where the files of one model are, as the environment says."""

    root_dir: str = ""
    root: str = ""
    files: dict[str, str] = {}
    metadata: dict[str, Any] = {}

    @property
    def folder(self) -> str:
        """The folder, by either of its names."""
        return self.root_dir or self.root


class Surroundings(msgspec.Struct, frozen=True):
    """Everything that the environment says, read once."""

    artifacts: Mapping[str, Described] = {}
    loaders: Mapping[str, str] = {}
    manager: str = ""
    cache: str = DEFAULT_CACHE
    host: Mapping[str, str] = {}

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Surroundings":
        """Return what an environment says; raise `VariableError` for what cannot be meant."""
        host = {name: _first(environment, names) for name, names in _HOST.items()}
        return cls(
            artifacts=_document(environment, ARTIFACTS, dict[str, Described]),
            loaders=_document(environment, LOADERS, dict[str, str]),
            manager=environment.get(MANAGER, "").strip(),
            cache=_first(environment, CACHES) or DEFAULT_CACHE,
            host={name: value for name, value in host.items() if value},
        )

    def folder_of(self, model_id: str) -> Path:
        """Return where the files of a model are looked for that nothing else is said of."""
        name = "".join(each if each.isalnum() or each in "._-" else "_" for each in model_id).strip(".") or "model"
        return Path(self.cache, name)


@cache
def surroundings() -> Surroundings:
    """Return what the environment of this process says."""
    return Surroundings.read(os.environ)


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := environment.get(name, "").strip())), "")


def _document(environment: Mapping[str, str], name: str, type_: Any) -> Any:
    text = environment.get(name, "").strip()
    if not text:
        return {}
    try:
        return msgspec.json.decode(text, type=type_)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise VariableError(f"`{name}` is not the JSON that it must be: {error}") from None


def named_object(variable: str, name: str) -> Callable[..., Any]:
    """Return what `module:name` means; raise `VariableError` where that is nothing to call."""
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise VariableError(f"`{variable}` names `{name}`, which cannot be imported: {error}") from error
    if not callable(found):
        raise VariableError(f"`{variable}` names `{name}`, which is nothing to call")
    return found  # type: ignore[no-any-return]
