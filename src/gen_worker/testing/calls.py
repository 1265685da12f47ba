"""One call of a function by a test, as both kinds of clients make it."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from gen_worker.api.context import CancelFlag
from gen_worker.api.errors import ValidationError
from gen_worker.testing.results import Event

if TYPE_CHECKING:
    from gen_worker.discovery.function_spec import FunctionSpec


@dataclass(slots=True, eq=False)
class Call:
    """One call, and what is known of it so far."""

    spec: "FunctionSpec"
    body: bytes
    request_id: str
    timeout_s: float | None = None
    on_item: Callable[[Any], None] = lambda item: None
    cancel: CancelFlag = field(default_factory=CancelFlag)
    events: list[Event] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)


class Caller(Protocol):
    """Makes calls: in this process, or to a server."""

    def call(self, call: Call) -> Any:
        """Make the call in this thread and return its output, None of a stream; raise what it ends with."""

    def ask_to_end(self, call: Call) -> None:
        """Ask a call that another thread makes to end."""

    def close(self) -> None:
        """Let go of everything."""


def body_of(payload: object, fields: Mapping[str, Any]) -> bytes:
    """Return a payload, with fields put over it, as JSON; a `Path` in it stands for the asset that is that file."""
    if fields:
        base = {} if payload is None else msgspec.to_builtins(payload, enc_hook=_asset, builtin_types=(bytes,))
        if not isinstance(base, dict):
            raise TypeError(f"fields go over a dict or a struct, not over a {type(payload).__name__}")
        payload = {**base, **fields}
    return msgspec.json.encode({} if payload is None else payload, enc_hook=_asset)


def _asset(value: object) -> object:
    if isinstance(value, Path):
        from gen_worker.cli.failure import Failure
        from gen_worker.cli.payload import LocalFiles

        try:
            return LocalFiles().asset(str(value))
        except Failure as failure:
            raise FileNotFoundError(str(failure)) from None
    raise TypeError(f"a payload is made of plain values, structs and paths, got a {type(value).__name__}")


def refused(call: Call, error: msgspec.ValidationError) -> ValidationError:
    """Return what a call ends with whose function does not take its payload."""
    refusal = ValidationError(f"`{call.spec.name}` does not take this payload: {error}")
    if "Expected `object`, got `str`" in str(error):
        refusal.add_note("hint: a file is given as a `pathlib.Path`, a struct as itself or as a dict")
    return refusal


def decoded(call: Call, value: Any, body: bytes | None = None) -> Any:
    """Return an output or an item as its annotation has it; raise `TypeError` where it is not what that says."""
    try:
        document = msgspec.json.encode(value) if body is None else body
        return msgspec.json.decode(document, type=call.spec.output_type)
    except msgspec.ValidationError as error:
        raise TypeError(f"`{call.spec.name}` gives what its annotation does not allow: {error}") from None
