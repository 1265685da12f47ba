"""A hub of models on the loopback for a shell: `python -m gen_worker.testing.hub --tiny sdxl=acme/tiny -- COMMAND`.

With a command it serves while that runs, else until Ctrl-C. The variables that lead programs to it go to the command's
environment, or to stdout as `export` lines.
"""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from gen_worker.extras import installed_by
from gen_worker.testing.loopback import LoopbackHub
from gen_worker.testing.tiny import Architecture, DType, make_tiny


class Tiny(NamedTuple):
    """A tiny model to make: the first dtype's weights carry no tag, the others' do."""

    architecture: Architecture
    dtypes: tuple[DType, ...]
    repo: str


class Folder(NamedTuple):
    """A folder to serve as a repository."""

    repo: str
    path: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve what the arguments say and return the command's exit status, or 0 after Ctrl-C."""
    given = _parser().parse_args(arguments)
    if missing := _missing(given.tiny):
        print(f"error: a tiny model needs {missing}, not installed\nhint: {installed_by('torch')}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="loopback-hub-") as place, LoopbackHub(port=given.port) as hub:
        for folder in given.repo:
            hub.add_repo(folder.repo, folder.path)
        for at, tiny in enumerate(given.tiny):
            hub.add_repo(tiny.repo, _made(tiny, Path(place, str(at))))
        if given.command:
            return _run(given.command, {**os.environ, **hub.variables()})
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        print("\n".join(f"export {name}={value}" for name, value in hub.variables().items()), flush=True)
        ended.wait()
        return 0


def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    try:
        process = subprocess.Popen(command, env=environment)
    except OSError as error:
        print(f"error: cannot run `{command[0]}`: {error.strerror}", file=sys.stderr)
        return 127
    with process:
        signal.signal(signal.SIGINT, lambda *_: None)  # a terminal tells the command, too
        signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
        status = process.wait()
    return status if status >= 0 else 128 - status


def _missing(tinies: Sequence[Tiny]) -> str:
    needed = ["torch", "transformers"] if tinies else []
    if any(tiny.architecture != "text" for tiny in tinies):
        needed.append("diffusers")
    return ", ".join(f"`{name}`" for name in needed if importlib.util.find_spec(name) is None)


def _made(tiny: Tiny, folder: Path) -> Path:
    from transformers.utils import logging  # type: ignore[attr-defined,unused-ignore]

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    for dtype in tiny.dtypes:
        make_tiny(tiny.architecture, folder, dtype=dtype, variant="" if dtype == tiny.dtypes[0] else dtype)
    return folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gen_worker.testing.hub", description=__doc__)
    add = parser.add_argument
    add("--tiny", action="append", default=[], type=_tiny, metavar="ARCHITECTURE[:DTYPE,...]=OWNER/NAME")
    add("--repo", action="append", default=[], type=_folder, metavar="OWNER/NAME=FOLDER")
    add("--port", type=int, default=0, help="of 127.0.0.1; any free one without")
    add("command", nargs="*", metavar="COMMAND", help="what to run meanwhile, after `--`")
    return parser


def _tiny(text: str) -> Tiny:
    made, _, repo = text.partition("=")
    architecture, _, dtypes = made.partition(":")
    chosen = tuple(dtypes.split(",")) if dtypes else ("bf16",)
    if architecture not in get_args(Architecture) or not set(chosen) <= set(get_args(DType)) or "/" not in repo:
        raise argparse.ArgumentTypeError(f"`{text}` is not like `sdxl=acme/tiny` or `sd15:fp32,bf16=acme/tiny`")
    return Tiny(architecture, chosen, repo)  # type: ignore[arg-type] # just checked


def _folder(text: str) -> Folder:
    repo, _, path = text.partition("=")
    if "/" not in repo or not Path(path).is_dir():
        raise argparse.ArgumentTypeError(f"`{text}` is not like `acme/name=FOLDER`, with a folder that is there")
    return Folder(repo, Path(path))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # while the models were made
        sys.exit(130)
