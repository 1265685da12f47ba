"""How a command ends badly: one line that says what happened, one that says what to do, and an exit code."""

import os
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal

from gen_worker.terminal import Style, colours, paint, printable

OK, USER_CODE, USAGE, NO_MODEL, UNREACHABLE, NOT_FOUND, CANCELED = 0, 1, 2, 3, 4, 5, 130

MEANINGS = {
    OK: "success",
    USER_CODE: "the endpoint's code failed",
    USAGE: "wrong usage, or a payload that the function does not take",
    NO_MODEL: "a model could not be resolved",
    UNREACHABLE: "no supervisor answers",
    NOT_FOUND: "no such request, device or model",
    CANCELED: "canceled",
}

_LONGEST = 4000  # characters; a word of the command line that is named can have 128 KiB
_STYLES: dict[str, Style] = {"error": "red", "warning": "yellow", "hint": "blue"}


class Failure(Exception):
    """A command cannot go on; `main` prints it as `error: …` and `hint: …` and exits with its code."""

    def __init__(self, message: str, hint: str = "", *, code: int = USAGE) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


class NobodyReads(BaseException):
    """Stdout's reader is gone while a command waits; it ends as one that writes there. No `OSError`: that is caught."""


def say(what: Literal["error", "warning", "hint"], text: str) -> None:
    """Print one line to stderr in the form that all commands use."""
    mark = f"{what}:"
    if colours(sys.stderr, os.environ):
        mark = paint(mark, _STYLES[what])
    shown = text if len(text) <= _LONGEST else f"{text[: _LONGEST * 3 // 4]} … {text[-_LONGEST // 4 :]}"
    sys.stderr.write(f"{mark} {printable(shown, lines=True)}\n")
    sys.stderr.flush()


def say_error(message: str, hint: str = "") -> None:
    """Print an error to stderr, and what to do about it."""
    say("error", message)
    if hint:
        say("hint", hint)


def nearest(wanted: str, names: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """Return the one of `names` that looks most like what a person typed, or None when none does."""
    return next(iter(get_close_matches(wanted, list(names), n=1, cutoff=likeness)), None)
