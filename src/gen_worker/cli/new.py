"""`gen-worker new`: a project to begin with, that runs, passes its tests and can be built."""

import keyword
import sys
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import click

from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_path
from gen_worker.cli.failure import OK, USAGE, Failure
from gen_worker.discovery.names import slugify_name

_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "Dockerfile": "Dockerfile",
    ".dockerignore": "dockerignore",
    ".gitignore": "gitignore",
    "src/@package@/__init__.py": "",
    "src/@package@/main.py": "@kind@.main",
    "tests/test_main.py": "@kind@.test",
}
_STAND_IN = """
The first run downloads the model, several gigabytes. Without a GPU or a network a tiny one with random
weights stands for it:

    python -m gen_worker.testing.hub --tiny sdxl:fp16=stabilityai/sdxl-turbo -- gen-worker run "a cat in the snow"
"""
_WORDS = {
    "plain": {
        "gen_worker": "gen-worker",
        "example": "--method greet Ada times=2",
        "invoked": "greet Ada",
        "stand_in": "",
    },
    "model": {
        "gen_worker": "gen-worker[torch,images]",
        "example": '"a cat in the snow"',
        "invoked": 'paint "a cat in the snow"',
        "stand_in": _STAND_IN,
    },
}
_TAKEN = frozenset(("gen_worker", "gen_worker_supervisor", "gen_worker_child", "test", "tests", "src"))

_HELP = """Make a new endpoint: a project with functions, tests and a Dockerfile.

NAME is the folder to make, and what the endpoint is called: small letters, digits and `-`. The project runs, passes its
tests and `gen-worker validate` as it is.

\b
gen-worker new my-endpoint
gen-worker new my-painter --kind model"""


@click.command("new", cls=Command, help=_HELP, codes=(OK, USAGE))
@click.argument("name", metavar="NAME", shell_complete=complete_path)
@click.option(
    "--kind",
    type=click.Choice(list(_WORDS)),
    default="plain",
    show_default=True,
    help="`plain`: a class and a stream; `model`: a diffusion pipeline, replaced in the tests.",
)
def command(name: str, kind: str) -> int:
    """Make a new endpoint."""
    folder = Path(name)
    slug = _slug(folder)
    package = slug.replace("-", "_").replace(".", "_")
    _refuse_package(slug, package)
    _refuse_folder(folder)
    words = {**_WORDS[kind], "name": slug, "package": package, "kind": kind}
    try:
        for path, template in _FILES.items():
            target = folder / _filled(path, words)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(_filled(_template(_filled(template, words)), words), encoding="utf-8")
    except OSError as error:
        raise Failure(
            f"`{error.filename or folder}` cannot be written: {(error.strerror or str(error)).lower()}"
        ) from None
    click.echo(_next_steps(folder, words))
    return OK


def _slug(folder: Path) -> str:
    name = folder.resolve().name
    slug = slugify_name(name)
    if slug != name or not slug:
        hint = f"call it `{slug}`" if slug else "as `my-endpoint`"
        raise Failure(f"`{name}` is no name of an endpoint: small letters, digits, `-` and `.`", hint)
    return slug


def _refuse_package(slug: str, package: str) -> None:
    if not package.isidentifier():
        raise Failure(f"`{slug}` makes no package: `{package}` is no name of one", "begin with a letter")
    if keyword.iskeyword(package) or package in _TAKEN or package in sys.stdlib_module_names or _is_here(package):
        hint = f"as `{slug}-endpoint`"
        raise Failure(f"`{slug}` makes the package `{package}`, a name that Python or a package here uses", hint)


def _is_here(package: str) -> bool:
    """Whether an import finds a package of this name already; a mere folder is none."""
    found = find_spec(package)
    return found is not None and found.origin is not None


def _refuse_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise Failure(f"`{folder}` is a file", "name a folder that is not there yet")
    if folder.is_dir() and any(folder.iterdir()):
        raise Failure(f"`{folder}` is not empty", "name a folder that is not there yet, or an empty one")


def _template(name: str) -> str:
    if not name:
        return ""
    return resources.files("gen_worker.cli").joinpath("templates", f"{name}.txt").read_text(encoding="utf-8")


def _filled(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text


def _next_steps(folder: Path, words: dict[str, str]) -> str:
    steps = [f"cd {folder}"] if folder.resolve() != Path.cwd() else []
    steps += [f"gen-worker run {words['example']}"]
    missing = [name for name in ("watchfiles", "pytest") if find_spec(name) is None]
    if missing:
        steps += [f"pip install {' '.join(missing)}    # for the next two"]
    steps += ["gen-worker serve --reload", "python -m pytest"]
    return "\n".join([f"made `{words['name']}`; next:", *(f"  {step}" for step in steps)])
