"""`gen-worker validate`: whether the platform could build and route an endpoint."""

from pathlib import Path
from typing import Any

import click
import msgspec

from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_module, complete_path
from gen_worker.cli.failure import OK, USAGE, Failure, say
from gen_worker.cli.project import refuse_odd, show_stack
from gen_worker.discovery.command import located
from gen_worker.discovery.errors import DiscoveryError
from gen_worker.discovery.process import manifest_of
from gen_worker.discovery.project import load_project_config
from gen_worker.discovery.validation import (
    Finding,
    Validation,
    validate_endpoint,
    validate_endpoint_lock,
    validate_lock_file,
)

_HELP = """Check that an endpoint can be built and routed.

Looks at the files of the project, imports the endpoint in a process of its own, and checks what its lock would say,
and that a lock file in the folder says the same. All findings are told at once; errors end with exit code 2, warnings
do not.

With `--module` only that module is looked at, not the files of a project.

\b
gen-worker validate
gen-worker validate path/to/endpoint --require-uv-lock
gen-worker validate --json"""


@click.command("validate", cls=Command, help=_HELP, codes=(OK, USAGE))
@click.argument("path", default=".", metavar="[PATH]", shell_complete=complete_path)
@click.option(
    "--module", metavar="MODULE", shell_complete=complete_module, help="Check this module, which needs no project."
)
@click.option("--require-uv-lock", is_flag=True, help="A missing `uv.lock` is an error.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as a document.")
def command(path: str, module: str | None, require_uv_lock: bool, as_json: bool) -> int:
    """Check that an endpoint can be built and routed."""
    root = _root_of(Path(path))
    if module is not None and require_uv_lock:
        raise Failure("`--module` and `--require-uv-lock` together", "a module has no files of a project")
    if module is not None:
        refuse_odd(module)
    found = Validation([], []) if module else _files_of(root, require_uv_lock)
    functions, of_lock = _lock_of(root, module)
    errors = [*found.errors, *(each for each in of_lock.errors if each not in found.errors)]
    warnings = [*found.warnings, *of_lock.warnings]
    if as_json:
        click.echo(msgspec.json.encode(_document(errors, warnings, functions)))
    else:
        for warning in warnings:
            _tell("warning", warning)
        for error in errors:
            _tell("error", error)
        click.echo(_verdict(module or _name(root), errors, warnings, functions))
    return USAGE if errors else OK


def _files_of(root: Path, require_uv_lock: bool) -> Validation:
    """Return what is wrong with the files of a project, by the rules of the generation that it was written for."""
    from gen_worker.earlier.project import is_of_earlier, validate_project

    if not is_of_earlier(root):
        return validate_endpoint(root, require_uv_lock=require_uv_lock)
    result = validate_project(root, require_uv_lock=require_uv_lock)
    return Validation([Finding(each) for each in result.errors], [Finding(each) for each in result.warnings])


def _root_of(path: Path) -> Path:
    root = path.parent if path.name == "pyproject.toml" else path
    try:
        is_there, is_folder = root.exists(), root.is_dir()
    except OSError as error:
        raise Failure(f"`{root}` cannot be read: {(error.strerror or str(error)).lower()}") from None
    if not is_there:
        raise Failure(f"no such folder: `{root}`")
    if not is_folder:
        raise Failure(f"`{root}` is a file, not a folder", "say where the root of the endpoint is")
    return root


def _lock_of(root: Path, module: str | None) -> tuple[list[str], Validation]:
    """Return the functions of a project and what is wrong with them; the author's tracebacks go to stderr."""
    try:
        document = manifest_of(*located(root, module))
    except DiscoveryError as error:
        show_stack(error.stack)
        return [], Validation([Finding(each.message, each.hint) for each in error.problems], [])
    except (FileNotFoundError, ValueError, OSError):
        return [], Validation([], [])  # the project file: told already
    found = validate_endpoint_lock(document)
    on_disk = Validation([], []) if module else validate_lock_file(root, document)
    names = [function["name"] for function in document["functions"]]
    return names, Validation([*found.errors, *on_disk.errors], [*found.warnings, *on_disk.warnings])


def _tell(what: Any, finding: Finding) -> None:
    say(what, finding)
    if finding.hint:
        say("hint", finding.hint)


def _verdict(name: str, errors: list[Finding], warnings: list[Finding], functions: list[str]) -> str:
    counts = [_count(errors, "error"), _count(warnings, "warning")]
    if errors:
        return f"`{name}` is not valid: {', '.join(filter(None, counts))}"
    return f"`{name}` is valid: {', '.join(filter(None, [_count(functions, 'function'), *counts]))}"


def _name(root: Path) -> str:
    try:
        return load_project_config(root).name or _folder(root)
    except (ValueError, OSError):
        return _folder(root)


def _folder(root: Path) -> str:
    return root.absolute().name or str(root.absolute())  # of `/` the name is empty


def _count(things: list[Any], what: str) -> str:
    return f"{len(things)} {what}{'' if len(things) == 1 else 's'}" if things else ""


def _document(errors: list[Finding], warnings: list[Finding], functions: list[str]) -> dict[str, Any]:
    return {
        "ok": not errors,
        "errors": [{"message": str(each), "hint": each.hint} for each in errors],
        "warnings": [{"message": str(each), "hint": each.hint} for each in warnings],
        "functions": functions,
    }
