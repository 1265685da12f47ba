"""The process that watches an author's code for `gen-worker serve --reload`: looks at it anew after every change.

`python -m gen_worker.reloading --out FD --since TIME --module MODULE --path FOLDER…` writes one JSON document a line to
the descriptor: a `Look`. It watches sources and project files below the folders, but for environments and caches.
"""

import argparse
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from gen_worker.discovery.errors import DiscoveryError
from gen_worker.discovery.process import survey_of_module
from gen_worker.wire.survey import Look, NoFunctionError, Survey

DEBOUNCE_MS = 200  # an editor, or a checkout, writes several files: that is one change
STEP_MS = 50
LATE_MS = 500  # after the beginning of a watch, before which a change may have come
_SKIPPED = frozenset(("__pycache__", "node_modules", "site-packages", "build", "dist"))
_PR_SET_PDEATHSIG = 1


def is_source(path: str) -> bool:
    """Whether a change of this file may change what the endpoint is."""
    name = os.path.basename(path)
    return (name.endswith(".py") and not name.startswith(".")) or name == "pyproject.toml"


def folders_below(roots: Sequence[str]) -> list[str]:
    """Return the folders that may hold sources: no hidden ones, no environments, no caches."""
    found: set[str] = set()
    for root in roots:
        for folder, names, files in os.walk(root):
            if "pyvenv.cfg" in files:
                names.clear()
                continue
            names[:] = [name for name in names if not name.startswith(".") and name not in _SKIPPED]
            found.add(folder)
    return sorted(found)


def look(number: int, module: str, paths: Sequence[str], names: Sequence[str]) -> Look:
    """Have a short-lived process import the module and say what it declares."""
    try:
        survey: Survey = survey_of_module(module, paths).of_owners(names)
    except DiscoveryError as error:
        return Look(number, error=error.message, hint=error.hint, stack=error.stack)
    except NoFunctionError as error:
        return Look(number, error=str(error), hint=error.hint)
    if not survey.functions:
        return Look(number, error=f"`{module}` declares no endpoint", hint="decorate a function or class")
    return Look(number, survey=survey)


def has_changed_since(folders: Sequence[str], since: float) -> bool:
    """Whether a source was written after a time."""
    for folder in folders:
        for entry in os.scandir(folder):
            if is_source(entry.path) and entry.is_file() and entry.stat().st_mtime > since:
                return True
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Watch until the supervisor is gone."""
    parser = argparse.ArgumentParser(prog="python -m gen_worker.reloading", description="Watch a module's sources.")
    parser.add_argument("--out", type=int, required=True)
    parser.add_argument("--since", type=float, required=True)
    parser.add_argument("--module", required=True)
    parser.add_argument("--path", action="append", default=[])
    parser.add_argument("--function", action="append", default=[])
    options = parser.parse_args(arguments)
    number = 0
    with os.fdopen(options.out, "wb", buffering=0) as out:
        for _ in _changes(options.path, options.since):
            number += 1
            out.write(msgspec.json.encode(look(number, options.module, options.path, options.function)) + b"\n")
    return 0


def _changes(roots: Sequence[str], since: float) -> Iterator[None]:
    """Yield at every change of a source, also of one that is new, in a new folder, or came before the first look."""
    from watchfiles import watch

    def concerns(_change: object, path: str) -> bool:
        return is_source(path) or Path(path).is_dir()

    while True:
        folders = folders_below(roots)
        for changed in watch(
            *folders,
            watch_filter=concerns,
            debounce=DEBOUNCE_MS,
            step=STEP_MS,
            rust_timeout=LATE_MS,
            yield_on_timeout=True,
            recursive=False,
        ):
            late = since > 0.0 and has_changed_since(folders, since)
            since = 0.0
            if late or any(is_source(path) for _, path in changed):
                yield
            if changed and folders_below(roots) != folders:
                since = time.time() - 1.0  # what is written before the next watch begins
                break


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    sys.exit(main())
