"""Print the manifest of a project as JSON: `python -m gen_worker.discover [--config PATH] [--module MODULE]`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from gen_worker.discovery import (
    DiscoveryError,
    FunctionSpec,
    collect,
    import_main,
    import_paths,
    load_project_config,
    manifest,
)
from gen_worker.discovery.stdout import leave, reserved_stdout, write_all


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the manifest and return 0, or say what is wrong and return 1."""
    parser = argparse.ArgumentParser(prog="python -m gen_worker.discover", description="Print a project's manifest.")
    parser.add_argument("--config", metavar="PATH", help="the project's folder or its pyproject.toml")
    parser.add_argument("--module", help="the module that declares the endpoints, in place of the project file's")
    options = parser.parse_args(arguments)
    with reserved_stdout() as stdout:
        try:
            specs = _discover(options.config, options.module)
        except DiscoveryError as error:
            for line in error.stack:
                print(line, file=sys.stderr)
            _complain(error.message, error.hint)
            return 1
        except (FileNotFoundError, ValueError) as error:
            _complain(str(error))
            return 1
        if not specs:
            print("warning: no function or class is marked with `@endpoint`", file=sys.stderr)
        document = msgspec.json.format(msgspec.json.encode(manifest(specs)), indent=2)
        write_all(stdout, document + b"\n")
    return 0


def _discover(config: str | None, module: str | None) -> list[FunctionSpec]:
    if module is not None:
        root = Path(config or ".").absolute()
        return collect(import_main(module, import_paths(root if root.is_dir() else root.parent)))
    project = load_project_config(config)
    return collect(import_main(project.main, import_paths(project.root)))


def _complain(message: str, hint: str = "") -> None:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


if __name__ == "__main__":
    leave(main())
