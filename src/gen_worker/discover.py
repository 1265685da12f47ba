"""Print the manifest of a project as JSON: `python -m gen_worker.discover [--config PATH] [--module MODULE]`."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from gen_worker.discovery.command import print_manifest


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the manifest and return 0, or say what is wrong and return 1."""
    parser = argparse.ArgumentParser(prog="python -m gen_worker.discover", description="Print a project's manifest.")
    parser.add_argument("--config", metavar="PATH", help="the project's folder or its pyproject.toml")
    parser.add_argument("--module", help="the module that declares the endpoints, in place of the project file's")
    options = parser.parse_args(arguments)
    return print_manifest(options.config, options.module, _to_json)


def _to_json(document: dict[str, Any]) -> str:
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


if __name__ == "__main__":
    sys.exit(main())
