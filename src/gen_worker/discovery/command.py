"""What `python -m gen_worker.discovery` and `python -m gen_worker.discover` share: find, check, print, or complain."""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gen_worker.discovery.errors import DiscoveryError
from gen_worker.discovery.process import manifest_of
from gen_worker.discovery.project import import_paths, load_project_config
from gen_worker.discovery.validation import validate_endpoint_lock

_CANCELED = 130


def print_manifest(config: str | None, module: str | None, render: Callable[[dict[str, Any]], str]) -> int:
    """Print a project's manifest as `render` writes it and return 0, or say everything that is wrong and return 1."""
    return print_document(lambda: manifest_of(*located(config, module)), render)


def print_document(find: Callable[[], dict[str, Any]], render: Callable[[dict[str, Any]], str]) -> int:
    """Print what is found as `render` writes it and return 0, or say everything that is wrong and return 1.

    A Ctrl-C ends it with 130.
    """
    try:
        document = find()
    except KeyboardInterrupt:
        return _CANCELED
    except DiscoveryError as error:
        for line in error.stack:
            print(line, file=sys.stderr)
        for problem in error.problems:
            _say("error", problem.message, problem.hint)
        return 1
    except (FileNotFoundError, ValueError) as error:
        _say("error", str(error))
        return 1
    found = validate_endpoint_lock(document)
    for warning in found.warnings:
        _say("warning", warning, warning.hint)
    for fault in found.errors:
        _say("error", fault, fault.hint)
    return _print(render(document)) if found.ok else 1


def _print(text: str) -> int:
    """Write a document to stdout, the same bytes in every locale, and return 0; 1 where it cannot be written."""
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "stdout is closed")
        sys.stdout.buffer.write(text.encode())
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # who ended the pipe knows
            _say("error", f"the manifest cannot be written: {(error.strerror or str(error)).lower()}")
        with suppress(AttributeError), open(os.devnull, "wb") as nowhere:  # for what is flushed at the end
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return 1
    return 0


def located(config: str | Path | None, module: str | None) -> tuple[str, list[str]]:
    """Return the main module of a project, or the given one, and what goes to the front of `sys.path` to import it.

    Raises FileNotFoundError or ValueError as `load_project_config` does.
    """
    if module is not None:
        root = Path(config or ".").absolute()
        return module, import_paths(root if root.is_dir() else root.parent)
    project = load_project_config(config)
    return project.main, import_paths(project.root)


def _say(what: str, message: str, hint: str = "") -> None:
    print(f"{what}: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
