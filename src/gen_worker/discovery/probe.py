"""The short-lived process that looks at the author's module in a supervisor's stead: one JSON document on stdout.

`python -m gen_worker.discovery.probe --module MODULE --path FOLDER…` prints a survey, with `--manifest` the manifest,
with `--entries` what `python -m gen_worker.discover` prints, and exits 0, or `{"error", "hint", "stack", "problems"}`
and exits 2.
"""

import argparse
import ctypes
import faulthandler
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from gen_worker.discovery.documents import manifest, survey
from gen_worker.discovery.errors import DiscoveryError
from gen_worker.discovery.specs import collect
from gen_worker.discovery.stdout import leave, reserved_stdout, write_all
from gen_worker.discovery.walk import import_modules
from gen_worker.wire.survey import Survey
from gen_worker.wire.texts import sendable

_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what the author's module declares."""
    parser = argparse.ArgumentParser(prog="python -m gen_worker.discovery.probe", description="Survey a module.")
    parser.add_argument("--module", required=True, help="what declares the endpoints; several with `,` between")
    parser.add_argument("--path", action="append", default=[], help="a folder for the front of `sys.path`; repeatable")
    parser.add_argument("--manifest", action="store_true", help="print the manifest instead of a survey")
    parser.add_argument("--entries", action="store_true", help="print the manifest with the earlier API's entries")
    parser.add_argument("--parent", type=int, help="who waits for it: where that is gone already nothing is looked at")
    options = parser.parse_args(arguments)
    if options.parent not in (None, os.getppid()):
        return 1
    with reserved_stdout() as stdout:
        try:
            look = _entries if options.entries else _manifest if options.manifest else _survey
            document = msgspec.json.encode(look(options.module, options.path))
        except DiscoveryError as error:
            problems = [_told(problem) for problem in error.problems if problem is not error]
            write_all(stdout, msgspec.json.encode(sendable({**_told(error), "problems": problems})))
            return 2
        write_all(stdout, document)
    return 0


def _manifest(module: str, paths: Sequence[str]) -> dict[str, Any]:
    return manifest(collect(*import_modules(module, paths)))


def _survey(module: str, paths: Sequence[str]) -> Survey:
    skipped: list[DiscoveryError] = []
    specs = collect(*import_modules(module, paths), skipped=skipped, passed_over=skipped)
    for problem in skipped:
        print(f"error: skipped: {problem.message}", file=sys.stderr)
        if problem.hint:
            print(f"hint: {problem.hint}", file=sys.stderr)
    return survey(specs, module=module, paths=paths, loaded=sys.modules)


def _entries(module: str, paths: Sequence[str]) -> dict[str, Any]:
    from gen_worker.discovery.both_apis import document_of

    return document_of(module.split(","), paths)


def _told(error: DiscoveryError) -> dict[str, Any]:
    return {"error": error.message, "hint": error.hint, "stack": error.stack}


def _show_stacks() -> None:
    """Have this process write its stacks to stderr when a signal ends it, and whenever somebody asks."""
    faulthandler.enable()
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1)


def _end_with_parent() -> None:
    """Have the system end this process with the one that waits for it, whatever importing the module does meanwhile."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # Ctrl-C meets both: one has something to say
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    _end_with_parent()
    _show_stacks()
    leave(main())
