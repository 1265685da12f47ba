"""The command line, `gen-worker`: one module per command, imported when the command is used.

Itself it imports next to nothing, so that hardly a Ctrl-C comes before somebody is there who knows what it means.
"""

import os
import signal
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["execute", "main"]

_CANCELED = 130


def main() -> NoReturn:
    """Run the command that the process was started with, and end the process with its exit code."""
    heard = signal.getsignal(signal.SIGINT)
    if heard is signal.default_int_handler:  # it raises, also where an import says so and goes on
        signal.signal(signal.SIGINT, lambda *_: os._exit(_CANCELED))
    from gen_worker.cli import program

    if heard is signal.default_int_handler:
        signal.signal(signal.SIGINT, heard)
    try:
        program.main()
    except KeyboardInterrupt:  # between two things that each expect one
        os._exit(_CANCELED)


def execute(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; whatever goes wrong by a person's doing is said on stderr."""
    from gen_worker.cli import program

    return program.execute(arguments)
