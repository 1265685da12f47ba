"""Marks on payload fields that say which values make sense."""

import math
from typing import Literal

import msgspec


class Clamp(msgspec.Struct, frozen=True):
    """A mark in `Annotated[...]` of a numeric payload field: the range its values belong in."""

    min: float
    max: float
    cast: Literal["", "int", "float"] = ""
    round: Literal["half_up", "truncate"] = "half_up"

    def __post_init__(self) -> None:
        for field in ("min", "max"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"`Clamp({field}=)` takes a finite number, got {value!r}")
        if self.min > self.max:
            raise ValueError(f"`Clamp` needs min <= max, got {self.min} and {self.max}")
        if self.cast not in ("", "int", "float"):
            raise ValueError(f"`Clamp(cast=)` takes `int` or `float`, got {self.cast!r}")
        if self.round not in ("half_up", "truncate"):
            raise ValueError(f"`Clamp(round=)` takes `half_up` or `truncate`, got {self.round!r}")
