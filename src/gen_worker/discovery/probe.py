"""The short-lived process that looks at the author's module in a supervisor's stead: one JSON document on stdout.

`python -m gen_worker.discovery.probe --module MODULE --path FOLDER…` prints a survey and exits 0, or
`{"error", "hint", "stack"}` and exits 2.
"""

import argparse
import sys
from collections.abc import Sequence

import msgspec

from gen_worker.discovery.documents import survey
from gen_worker.discovery.errors import DiscoveryError
from gen_worker.discovery.specs import collect
from gen_worker.discovery.stdout import leave, reserved_stdout, write_all
from gen_worker.discovery.walk import import_main
from gen_worker.wire.survey import Survey


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what the author's module declares."""
    parser = argparse.ArgumentParser(prog="python -m gen_worker.discovery.probe", description="Survey a module.")
    parser.add_argument("--module", required=True, help="the module that declares the endpoints")
    parser.add_argument("--path", action="append", default=[], help="a folder for the front of `sys.path`; repeatable")
    options = parser.parse_args(arguments)
    with reserved_stdout() as stdout:
        try:
            document = msgspec.json.encode(_look(options.module, options.path))
        except DiscoveryError as error:
            told = {"error": error.message, "hint": error.hint, "stack": error.stack}
            write_all(stdout, msgspec.json.encode(told))
            return 2
        write_all(stdout, document)
    return 0


def _look(module: str, paths: Sequence[str]) -> Survey:
    specs = collect(import_main(module, paths))
    return survey(specs, module=module, paths=paths, loaded=sys.modules)


if __name__ == "__main__":
    leave(main())
