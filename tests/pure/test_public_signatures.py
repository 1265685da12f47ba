"""Every public name is where authors look for it, and takes what they are told: read from `tests/public_names.txt`."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

TABLE = Path(__file__).resolve().parents[1] / "public_names.txt"
REFERENCE = TABLE.parents[1] / "docs" / "reference" / "python.md"
MEMBERS = 15  # of `RequestContext`, and no more, but for the trace that a call belongs to


class Row(NamedTuple):
    """A name, and what is written of it."""

    module: str
    name: str
    node: ast.stmt
    owner: str = ""

    def __str__(self) -> str:
        return ".".join(filter(None, (self.module, self.owner, self.name)))

    def found(self) -> Any:
        """Return what is there under the name; a class's own member as it stands in the class."""
        place = importlib.import_module(self.module)
        return (
            getattr(place, self.name)
            if not self.owner
            else inspect.getattr_static(getattr(place, self.owner), self.name)
        )


def rows() -> Iterator[Row]:
    _, *sections = TABLE.read_text().split("\n[")
    for section in sections:
        title, _, body = section.partition("]\n")
        for node in ast.parse(body).body:
            yield from rows_of(title.split()[0], node)


def rows_of(module: str, node: ast.stmt, owner: str = "") -> Iterator[Row]:
    if isinstance(node, ast.ClassDef):
        yield Row(module, node.name, node)
        for member in node.body:
            if not isinstance(member, ast.Expr):
                yield from rows_of(module, member, node.name)
    elif isinstance(node, ast.FunctionDef):
        yield Row(module, node.name, node, owner)
    else:
        assert isinstance(node, ast.AnnAssign)
        assert isinstance(node.target, ast.Name)
        yield Row(module, node.target.id, node, owner)


ROWS = list(rows())


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_public_name_is_as_it_is_documented(row: Row) -> None:
    found = row.found()
    if isinstance(row.node, ast.ClassDef):
        assert inspect.isclass(found)
        bases = {base.__name__ for base in inspect.getmro(found)}
        assert {ast.unparse(base) for base in row.node.bases} <= bases
    elif isinstance(row.node, ast.FunctionDef):
        if row.name == "__init__":
            found = getattr(importlib.import_module(row.module), row.owner)
        elif isinstance(found, staticmethod | classmethod):
            found = found.__func__
        assert problems(row.node.args, found, method=bool(row.owner)) == []
    elif row.owner and ast.unparse(row.node.annotation) == "property":  # type: ignore[attr-defined]
        assert not callable(found)


def test_every_public_name_is_told_in_the_reference() -> None:
    reference = REFERENCE.read_text()
    names = {row.name for row in ROWS if row.name != "__init__"}
    told = set(re.findall(r"^(?:### |\| `(?:await )?(?:\w+\.)?)(\w+)", reference, re.MULTILINE))
    assert names - told == set()


def problems(written: ast.arguments, found: Any, *, method: bool) -> list[str]:
    """Return how a callable differs from what is written: it may take more, by keyword only or with defaults."""
    has = list(inspect.signature(found).parameters.values())
    if has and has[0].name == "self":
        del has[0]
    by_name = {parameter.name: parameter for parameter in has}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in has)
    positional = [argument.arg for argument in written.args][method:]
    defaults = dict(zip(reversed(positional), reversed([*written.defaults]), strict=False))
    keyword = {argument.arg: default for argument, default in zip(written.kwonlyargs, written.kw_defaults, strict=True)}
    told: list[str] = []
    by_position = [each.name for each in has if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    if positional != by_position[: len(positional)]:
        told.append(f"takes {by_position} by position, not {positional}")
    for name, default in {**{name: defaults.get(name) for name in positional}, **keyword}.items():
        if name in by_name:
            told += problems_of_default(name, default, by_name[name])
        elif not (takes_any and name in keyword):
            told.append(f"has no `{name}`")
    more = [each.name for each in has if each.name not in {*positional, *keyword}]
    told += [f"needs `{name}`" for name in more if written_fully(written) and is_needed(by_name[name])]
    return told


def written_fully(written: ast.arguments) -> bool:
    return bool(written.args or written.kwonlyargs)


def is_needed(parameter: inspect.Parameter) -> bool:
    variadic = (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    return parameter.default is parameter.empty and parameter.kind not in variadic


def problems_of_default(name: str, written: ast.expr | None, parameter: inspect.Parameter) -> list[str]:
    if written is None:  # it may be left out where it must not be
        return []
    expected = ast.literal_eval(written)
    if expected is ... or parameter.default == expected:
        return []
    return [f"`{name}` has the default {parameter.default!r}, not {expected!r}"]


def test_a_request_context_has_these_members_and_no_more() -> None:
    from gen_worker import RequestContext

    written = {row.name for row in ROWS if row.owner == "RequestContext"} - {"__init__"}
    assert len(written) == MEMBERS
    assert {name for name in dir(RequestContext) if not name.startswith("_")} == written


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "diffusers", "transformers", "safetensors", "grpc", "asyncio", "msgspec", "cozy_convert")
    program = f"import sys, gen_worker; print(*[name for name in {heavy!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
