"""What came of a call: the output, and everything that its handler told and kept on the way."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

Output = TypeVar("Output")


class Log(NamedTuple):
    """A line of `ctx.log`."""

    level: str
    message: str


class Progress(NamedTuple):
    """A call of `ctx.progress`."""

    progress: float
    stage: str | None


class Event(NamedTuple):
    """What a handler told: progress, a log line, or another event by its name."""

    kind: str
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Result(Generic[Output]):
    """What came of one call."""

    output: Output
    """The output, as its annotation has it; of a function that streams the list of its items."""

    request_id: str
    events: list[Event]
    """Everything that the handler told, in its order."""

    files: Mapping[str, Path]
    """The files that it kept, by their refs; they are there until the client is closed."""

    seconds: float
    """What the call took, with the setup of its class when it was the first."""

    items: list[Any] = field(default_factory=list)
    """What it yielded; of a function that does not stream there are none."""

    json: bytes = b""
    """The value of the `result` event that `gen-worker run` prints for this call."""

    @property
    def logs(self) -> list[Log]:
        """The lines of `ctx.log`."""
        found = [event.value for event in self.events if event.kind == "log"]
        return [Log(str(value["level"]), str(value["message"])) for value in found]

    @property
    def progress(self) -> list[Progress]:
        """The calls of `ctx.progress`; in a server those that came closer than a tenth of a second are left out."""
        found = [event.value for event in self.events if event.kind == "progress"]
        return [Progress(float(value["progress"]), value.get("stage")) for value in found]
