"""What an endpoint needs of its host."""

from collections.abc import Iterable
from math import inf
from typing import Any

import msgspec
from msgspec.structs import force_setattr

from gen_worker.api.handlers import not_taken


class _Told(msgspec.StructMeta):
    """Says of an option that is not there which is meant."""

    def __call__(cls, *given: Any, **options: Any) -> Any:
        known = list(cls.__struct_fields__)
        for name in options:
            if name not in known:
                raise TypeError(f"`Resources` {not_taken(name, known)}")
        return super().__call__(*given, **options)


class _Positional(msgspec.Struct, frozen=True, metaclass=_Told):
    """The needs that may be given by their place."""

    gpu: bool = False
    vram_gb: float | None = None
    compute_capability: float | None = None
    libraries: tuple[str, ...] = ()


class Resources(_Positional, frozen=True, kw_only=True):
    """What a function needs to run; memory, a compute capability or several GPUs imply that it needs a GPU.

    With `gpu_count=N` it runs in a child that has N GPUs, and `vram_gb` is what it needs of all of them together.
    """

    gpu_count: int = 1

    def __post_init__(self) -> None:
        for field in ("vram_gb", "compute_capability"):
            if (value := getattr(self, field)) is None:
                continue
            force_setattr(self, field, _positive(field, value))
            force_setattr(self, "gpu", True)
        if _count(self.gpu_count) > 1:
            force_setattr(self, "gpu", True)
        force_setattr(self, "gpu", bool(self.gpu))
        force_setattr(self, "libraries", _names(self.libraries))


def _positive(field: str, value: float | str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"`Resources({field}=)` takes a number, got {value!r}") from None
    except TypeError:
        raise TypeError(f"`Resources({field}=)` takes a number, got {value!r}") from None
    if not 0 < number < inf:
        raise ValueError(f"`Resources({field}=)` must be more than 0 and finite, got {value}")
    return number


def _count(gpus: int) -> int:
    if not isinstance(gpus, int) or isinstance(gpus, bool):
        raise TypeError(f"`Resources(gpu_count=)` takes a whole number, got {gpus!r}")
    if gpus < 1:
        raise ValueError(f"`Resources(gpu_count=)` must be 1 or more, got {gpus}")
    return gpus


def _names(libraries: Iterable[str]) -> tuple[str, ...]:
    if isinstance(libraries, str):
        raise TypeError(f"`Resources(libraries=)` takes a tuple of names; write `libraries=({libraries!r},)`")
    names = tuple(libraries) if isinstance(libraries, Iterable) else (libraries,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"`Resources(libraries=)` takes a tuple of names, got {libraries!r}")
    return tuple(stripped for name in names if (stripped := name.strip()))
