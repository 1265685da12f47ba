"""What an endpoint needs of its host."""

from collections.abc import Iterable

import msgspec
from msgspec.structs import force_setattr


class Resources(msgspec.Struct, frozen=True):
    """What a function needs to run; needing video memory or a compute capability means needing a GPU."""

    gpu: bool = False
    vram_gb: float | None = None
    compute_capability: float | None = None
    libraries: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("vram_gb", "compute_capability"):
            if (value := getattr(self, field)) is None:
                continue
            force_setattr(self, field, _positive(field, value))
            force_setattr(self, "gpu", True)
        force_setattr(self, "gpu", bool(self.gpu))
        force_setattr(self, "libraries", _names(self.libraries))


def _positive(field: str, value: float) -> float:
    number = float(value)
    if not number > 0:
        raise ValueError(f"`Resources({field}=)` must be more than 0, got {value}")
    return number


def _names(libraries: Iterable[str]) -> tuple[str, ...]:
    if isinstance(libraries, str):
        raise TypeError(f"`Resources(libraries=)` takes a tuple of names; write `libraries=({libraries!r},)`")
    return tuple(stripped for name in libraries if (stripped := name.strip()))
