"""The project file: which module declares the endpoints, and where Python finds it."""

import tomllib
from pathlib import Path
from typing import NamedTuple

_LINES = '[tool.gen_worker]\nmain = "myendpoint.main"'


class ProjectConfig(NamedTuple):
    """What the project file says."""

    root: Path
    name: str
    main: str


def load_project_config(path: str | Path | None = None) -> ProjectConfig:
    """Read the project file of a folder, of the current one without a path; the file itself is accepted too.

    Raises FileNotFoundError without a file, ValueError for a file that does not say what is needed.
    """
    given = Path(path) if path is not None else Path.cwd()
    file = (given / "pyproject.toml" if given.is_dir() else given).absolute()
    if not file.is_file():
        raise FileNotFoundError(
            f"no `{file}`; run from the root of the endpoint or say where it is with `--config PATH`"
        )
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"`{file}` is not valid TOML: {error}") from error
    main = _entry(document, "tool", "gen_worker", "main")
    if not main or not all(part.isidentifier() for part in main.split(".")):
        said = f"says `main = {main!r}`, which is no dotted module name" if main else "does not name the main module"
        raise ValueError(f"`{file}` {said}; add:\n\n{_LINES}\n")
    return ProjectConfig(file.parent, _entry(document, "project", "name"), main)


def import_paths(root: Path) -> list[str]:
    """Return what goes to the front of `sys.path`: the `src` folder of a project that has one, and its root."""
    source = root / "src"
    return [str(source), str(root)] if source.is_dir() else [str(root)]


def _entry(document: object, *keys: str) -> str:
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document.strip() if isinstance(document, str) else ""
