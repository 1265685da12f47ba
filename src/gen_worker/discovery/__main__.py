"""Print the manifest of the project in the current folder as TOML: `python -m gen_worker.discovery`."""

import argparse
import sys
from collections.abc import Sequence

from gen_worker.discovery.command import print_manifest
from gen_worker.discovery.lock import to_toml


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the manifest and return 0, or say what is wrong and return 1."""
    description = "Print the manifest of the project in the current folder, as TOML: its endpoint lock."
    argparse.ArgumentParser(prog="python -m gen_worker.discovery", description=description).parse_args(arguments)
    return print_manifest(None, None, to_toml)


if __name__ == "__main__":
    sys.exit(main())
