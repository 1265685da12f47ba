"""What a short-lived discovery process tells the supervisor about the author's module."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Literal

import msgspec

from gen_worker.models.wanted import Slot
from gen_worker.wire.messages import Lane, Shape


class SurveyedInjection(msgspec.Struct, frozen=True):
    """A parameter of an earlier function that is given a model."""

    param: str
    type: str
    source: Literal["deployment", "payload"]
    key: str


class SurveyedFunction(msgspec.Struct, frozen=True):
    """One routable function, as far as dispatch needs to know it."""

    name: str
    python_name: str
    class_name: str  # "" for a function endpoint
    instance: str  # "" where nothing is set up; functions with the same value share one instance
    shape: Shape
    lane: Lane
    gpu: bool
    vram_gb: float | None
    slots: list[Slot] = []  # what must be there before the function can run
    compute_capability: float | None = None
    missing: list[str] = []  # libraries that it names and cannot be imported here, and its engine where it is not here
    gpu_count: int = 1  # that its child must have
    batch: int = 0  # so many of its jobs at most run together in one call; 0: each by itself
    produces: bool = False  # it makes models or data sets rather than answers
    injections: list[SurveyedInjection] = []  # of an earlier function: its models, whose files may be no slot
    model_keys: dict[str, str] = {}  # of an earlier function: the ids of models that its project has under keys
    max_concurrency: int = 0  # of an earlier function: jobs that may run at once; 0: any number
    earlier: bool = False  # it is one of the earlier API, whose orchestrators know it by its Python name

    @property
    def models(self) -> list[str]:
        """The refs of its models."""
        return [slot.wanted.ref for slot in self.slots]

    @property
    def names_models(self) -> bool:
        """Whether a payload may say which model is meant, or which one is meant depends on who asks."""
        return bool(self.injections) or any(slot.overrides for slot in self.slots)

    @property
    def streams(self) -> bool:
        """Whether the handler yields items."""
        return self.shape in ("generator", "async_generator", "websocket")

    @property
    def realtime(self) -> bool:
        """Whether the handler speaks with a peer for as long as that stays."""
        return self.shape == "websocket"


def only_spoken_with(name: str) -> str:
    """Return why a request is refused that names a realtime function."""
    return f"`{name}` is a realtime function: it takes sessions, no requests"


class NoFunctionError(LookupError):
    """A module has no function of that name; `hint` says which it has."""

    def __init__(self, name: str, survey: "Survey") -> None:
        super().__init__(f"no function `{name}` in `{survey.module}`")
        there = sorted(function.name for function in survey.functions)
        near = get_close_matches(name, there, n=1)
        listed = ", ".join(f"`{each}`" for each in there)
        self.hint = (f"did you mean `{near[0]}`? " if near else "") + f"available: {listed}"


class Survey(msgspec.Struct, frozen=True):
    """Everything the supervisor learns of the author's module, which it never imports itself."""

    module: str  # several with `,` between them
    paths: list[str]
    functions: list[SurveyedFunction]
    description: msgspec.Raw  # the document of `gen-worker run --list`
    preload: list[str]  # heavy modules that importing the author's module brought in, in that order
    libraries: list[str] = []  # of the libraries that orchestrators ask about, those that can be imported

    def of_owners(self, names: Sequence[str]) -> "Survey":
        """Return the survey of the named functions, in either spelling, and of what shares a class with one of them.

        The name of a class stands for its functions. Raises `NoFunctionError` for a name that nothing has. Without
        names it is the whole survey.
        """
        if not names:
            return self
        known = {function.class_name: function for function in self.functions if function.class_name}
        known |= {function.name.replace("-", "_"): function for function in self.functions}
        known |= {name: function for function in self.functions for name in (function.python_name, function.name)}
        for name in names:
            if name not in known:
                raise NoFunctionError(name, self)
        wanted = {_owner(known[name]) for name in names}
        functions = [function for function in self.functions if _owner(function) in wanted]
        described = msgspec.json.decode(self.description)
        kept = {function.name for function in functions}
        described["functions"] = [each for each in described["functions"] if each["name"] in kept]
        description = msgspec.Raw(msgspec.json.encode(described))
        return msgspec.structs.replace(self, functions=functions, description=description)


class Look(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of looking at the author's module again: its survey, or what is wrong with it."""

    number: int
    survey: Survey | None = None
    error: str = ""
    hint: str = ""
    stack: list[str] = []


def _owner(function: SurveyedFunction) -> tuple[str, str]:
    """Return what a function's siblings have in common with it, and a function endpoint with nothing."""
    return ("class", function.class_name) if function.class_name else ("function", function.name)
