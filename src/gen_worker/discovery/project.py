"""The project file: which module declares the endpoints, and where Python finds it."""

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

_LINES = '[tool.gen_worker]\nmain = "myendpoint.main"'


class ProjectConfig(NamedTuple):
    """What the project file says."""

    root: Path
    name: str
    main: str
    """Several with `,` between them where functions of the earlier API are declared elsewhere."""


def load_project_config(path: str | Path | None = None) -> ProjectConfig:
    """Read the project file of a folder, of the current one without a path; the file itself is accepted too.

    Raises FileNotFoundError without a file, ValueError for a file that does not say what is needed.
    """
    given = Path(path) if path is not None else Path.cwd()
    try:
        file = (given / "pyproject.toml" if given.is_dir() else given).absolute()
        content = file.read_bytes() if file.is_file() else None
    except OSError as error:
        raise ValueError(f"`{error.filename or given}` cannot be read: {str(error.strerror).lower()}") from error
    if content is None:
        raise FileNotFoundError(
            f"no `{file}`; run from the root of the endpoint or say where it is with `--config PATH`"
        )
    try:
        document = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"`{file}` is not valid TOML: {error}") from error
    main = _entry(document, "tool", "gen_worker", "main")
    earlier = _earlier_modules(document, file.parent)
    problem = "" if earlier and not _has_own_table(document) else _problem_of(document, main)
    if problem:
        raise ValueError(f"`{file}` {problem}")
    top = main.partition(".")[0]
    others = [each for each in earlier if each.partition(".")[0] != top]
    return ProjectConfig(file.parent, _entry(document, "project", "name"), ",".join(filter(None, (main, *others))))


def _has_own_table(document: dict[str, Any]) -> bool:
    tools = document.get("tool")
    return isinstance(tools, dict) and "gen_worker" in tools


def _earlier_modules(document: dict[str, Any], root: Path) -> list[str]:
    """Return the modules with functions of the earlier API, of a project that has a table `[tool.cozy]`."""
    tools = document.get("tool")
    if not isinstance(tools, dict) or not isinstance(tools.get("cozy"), dict):
        return []
    from gen_worker.earlier.project import scan

    return scan(root)[0]


def _problem_of(document: dict[str, Any], main: str) -> str:
    """Say what is wrong with the table of a project file, and what to write; nothing when it names a module."""
    tools = document.get("tool")
    tools = tools if isinstance(tools, dict) else {}
    table = tools.get("gen_worker")
    if table is None and "cozy" in tools:
        return "has `[tool.cozy]`, and no file of the project marks a function with `@worker_function()`"
    if table is None:
        misnamed = next((name for name in ("gen-worker", "genworker", "GenWorker") if name in tools), None)
        if misnamed:
            return f"has a table `tool.{misnamed}`; it is called `tool.gen_worker`: write `[tool.gen_worker]`"
        return f"does not name the main module; add:\n\n{_LINES}\n"
    if not isinstance(table, dict):
        return f"says `tool.gen_worker = {table!r}`, which is no table; write:\n\n{_LINES}\n"
    if "main" not in table and (misspelt := next(filter(_is_like_main, table), None)):
        return f"has a key `{misspelt}` in `[tool.gen_worker]`; did you mean `main`?"
    return _problem_of_main(table.get("main", ""), main)


def _problem_of_main(written: object, main: str) -> str:
    if not isinstance(written, str):
        kind = "number" if type(written) in (int, float) else type(written).__name__
        return f"says `main = {written!r}`: `main` is a {kind}, it must be a text; write:\n\n{_LINES}\n"
    if not main:
        return f"does not name the main module; write:\n\n{_LINES}\n"
    if module := module_of_file(main):
        return f"says `main = {main!r}`, which is a file; write `{module}`"
    if all(part.isidentifier() for part in main.split(".")):
        return ""
    return f"says `main = {main!r}`, which is no dotted module name; write:\n\n{_LINES}\n"


def _is_like_main(name: str) -> bool:
    from difflib import get_close_matches

    return bool(get_close_matches(name.lower(), ["main"]))


def module_of_file(name: str) -> str:
    """Return the module that somebody means who names its file, as `zoo` for `zoo.py`; an empty text if none."""
    parts = name.removeprefix("./").removeprefix("src/").removesuffix(".py").split("/")
    is_file = name.endswith(".py") and all(part.isidentifier() for part in parts)
    return ".".join(parts) if is_file else ""


def import_paths(root: Path) -> list[str]:
    """Return what goes to the front of `sys.path`: the `src` folder of a project that has one, and its root."""
    source = root / "src"
    return [str(source), str(root)] if source.is_dir() else [str(root)]


def _entry(document: object, *keys: str) -> str:
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document.strip() if isinstance(document, str) else ""
