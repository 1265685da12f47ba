"""Which endpoint a command is about, and what a short-lived process says of its functions."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import msgspec

from gen_worker.cli.completing import complete_module, complete_path
from gen_worker.cli.failure import Failure
from gen_worker.cli.servers import functions_in
from gen_worker.discovery.errors import DiscoveryError
from gen_worker.discovery.project import import_paths, load_project_config, module_of_file
from gen_worker.terminal import printable
from gen_worker.wire.survey import Survey

_FRAME = re.compile(r'  File "(.+)", line (\d+)(?:, in .*)?')
_LIBRARIES = ("/site-packages/", "/lib/python")

Function = TypeVar("Function", bound=Callable[..., Any])


class Project(NamedTuple):
    """The module that declares the endpoint, and what goes to the front of `sys.path` to import it."""

    module: str
    paths: list[str]


def project_options(function: Function) -> Function:
    """Add the options that say which endpoint is meant."""
    for option in (
        click.option(
            "--module",
            metavar="MODULE",
            shell_complete=complete_module,
            help="The module that declares the endpoint, instead of a project.",
        ),
        click.option(
            "--config",
            metavar="PATH",
            shell_complete=complete_path,
            help="The project, or its pyproject.toml. Default: this folder.",
        ),
    ):
        function = option(function)
    return function


def find_project(config: str | None, module: str | None) -> Project:
    """Return the endpoint that the options mean, without importing it; raise `Failure` when there is none."""
    if config is None:
        _refuse_gone_folder()
    if module is not None and config is None:
        refuse_odd(module)
        return Project(module, import_paths(Path.cwd()))
    try:
        found = load_project_config(config)
    except FileNotFoundError as error:
        raise Failure(str(error), "a module needs no project: `--module my_endpoint.main`") from None
    except (ValueError, OSError) as error:
        raise Failure(str(error).rstrip()) from None
    if module is not None:
        refuse_odd(module)
    return Project(module or found.main, import_paths(found.root))


def _refuse_gone_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise Failure("the current folder is gone", "go to the endpoint's folder, or name it with `--config`") from None


def refuse_odd(module: str) -> None:
    """Raise `Failure` for what is no name of a module, as the path of a file."""
    if module.endswith(".py") or not all(part.isidentifier() for part in module.split(".")):
        meant = module_of_file(module)
        hint = f"write `{meant}`" if meant else "write it as Python imports it: `my_endpoint.main`"
        raise Failure(f"`{module}` is not a module name", hint)


def survey_of(project: Project) -> Survey:
    """Have a short-lived process import the module and say what it declares; what that prints goes to stderr."""
    from gen_worker.discovery.process import survey_of_module

    try:
        return survey_of_module(project.module, project.paths)
    except DiscoveryError as error:
        show_stack(error.stack)
        raise Failure(error.message, error.hint) from None


def functions_of(description: bytes) -> list[dict[str, Any]]:
    """Return the functions of a description document; none when it is something else."""
    try:
        document = msgspec.json.decode(description)
    except msgspec.DecodeError:
        return []
    return functions_in(document) if isinstance(document, dict) else []


def show_stack(lines: list[str]) -> None:
    """Print the author's part of a traceback."""
    for line in lines:
        sys.stderr.write(f"{printable(line, lines=True)}\n")


def where_raised(traceback: list[str]) -> str:
    """Return a hint at the author's line that raised; none for an exception of ours, which was meant for the caller."""
    starts = [index for index, line in enumerate(traceback) if line.startswith("Traceback ")]
    last = traceback[starts[-1] + 1 :] if starts else traceback
    raised = next((line for line in last if not line.startswith(" ")), "")
    frames = [found for found in map(_FRAME.fullmatch, last) if found is not None]
    own = [found for found in frames if not any(part in found[1] for part in _LIBRARIES)] or frames
    if not own or raised.startswith("gen_worker."):
        return ""
    return f"it was raised at `{own[-1][1]}:{own[-1][2]}`"
