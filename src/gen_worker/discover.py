"""Print the manifest of a project as JSON: `python -m gen_worker.discover [--config PATH] [--module MODULE]`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from gen_worker.discovery.command import located, print_document
from gen_worker.discovery.process import entries_of
from gen_worker.discovery.project import import_paths

_FORMER = "COZY_FUNCTION_MODULES"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the manifest and return 0, or say what is wrong and return 1.

    Functions of the earlier API are looked for in every file below the project's folder.
    """
    parser = argparse.ArgumentParser(prog="python -m gen_worker.discover", description="Print a project's manifest.")
    parser.add_argument("--config", metavar="PATH", help="the project's folder or its pyproject.toml")
    parser.add_argument("--module", help="the module that declares the endpoints, in place of the project file's")
    options = parser.parse_args(arguments)
    if os.environ.get(_FORMER):
        print(f"warning: `{_FORMER}` is deprecated and not read: every file is looked at", file=sys.stderr)
    return print_document(lambda: _document(options.config, options.module), _to_json)


def _document(config: str | None, module: str | None) -> dict[str, Any]:
    try:
        return entries_of(*located(config, module))
    except (FileNotFoundError, ValueError):
        if module is not None:
            raise
        found = _scanned(config)
        if found is None:
            raise
    return found


def _scanned(config: str | None) -> dict[str, Any] | None:
    """Return the document of a project whose file names no module; None where that is no earlier project either."""
    from gen_worker.earlier.manifest import of_project
    from gen_worker.earlier.project import read_table, scan, table_of

    root = Path(config or ".").absolute()
    root = root if root.is_dir() else root.parent
    table = table_of(root / "pyproject.toml")
    modules, warnings = scan(root)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if modules:
        return entries_of(",".join(modules), import_paths(root))
    if table is not None:
        print(f"warning: no file below `{root}` marks a function with `@worker_function()`", file=sys.stderr)
    return None if table is None else {"functions": [], **of_project(read_table(table))}


def _to_json(document: dict[str, Any]) -> str:
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


if __name__ == "__main__":
    sys.exit(main())
