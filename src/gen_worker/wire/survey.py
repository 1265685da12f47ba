"""What a short-lived discovery process tells the supervisor about the author's module."""

import msgspec

from gen_worker.wire.messages import Lane, Shape


class SurveyedFunction(msgspec.Struct, frozen=True):
    """One routable function, as far as dispatch needs to know it."""

    name: str
    python_name: str
    class_name: str  # "" for a function endpoint
    instance: str  # "" when nothing is set up; functions with the same value share one instance
    shape: Shape
    lane: Lane
    gpu: bool
    vram_gb: float | None
    models: list[str]  # refs that a resolver must provide before the function can run

    @property
    def streams(self) -> bool:
        """Whether the handler yields items."""
        return self.shape in ("generator", "async_generator")


class Survey(msgspec.Struct, frozen=True):
    """Everything the supervisor learns of the author's module, which it never imports itself."""

    module: str
    paths: list[str]
    functions: list[SurveyedFunction]
    description: msgspec.Raw  # the document of `gen-worker run --list`
    preload: list[str]  # heavy modules that importing the author's module brought in, in that order
