"""The project file of the earlier generation: `[tool.cozy]`, and which files of the project declare functions.

Never imports the author's code.
"""

import ast
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import msgspec

DECORATORS = ("worker_function", "worker_websocket")
MANIFEST = Path(".cozy/manifest.json")
_DEPLOYMENT = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_DEPLOYMENT_CHARS = range(3, 64)
_SKIPPED = frozenset(
    ("venv", "env", "node_modules", "build", "dist", "site-packages", "__pycache__", "__pypackages__", "site", "target")
)
_BUILD = {"gpu": bool, "cuda": str, "torch": str, "backend": str, "base_image": str}
_RESOURCES = {"vram_gb": int, "gpu_type": str, "memory_gb": int, "cpu_cores": int}


@dataclass(frozen=True, slots=True)
class CozyProject:
    """What `[tool.cozy]` of a project file says."""

    deployment: str = ""
    models: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Refs by key."""

    build: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    resources: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    warnings: tuple[str, ...] = ()

    @property
    def wants_gpu(self) -> bool | None:
        """Whether the project says that it needs a GPU, or that it needs none; None where it says neither."""
        if "vram_gb" in self.resources or "gpu_type" in self.resources:
            return True
        gpu = self.build.get("gpu")
        return gpu if isinstance(gpu, bool) else None


@dataclass(frozen=True, slots=True)
class ProjectValidationResult:
    """What speaks against a project: errors do, warnings may."""

    ok: bool
    errors: list[str]
    warnings: list[str]


# --- the table --------------------------------------------------------------------------------------------------------


def read_table(table: object) -> CozyProject:
    """Return what `[tool.cozy]` says; what is of a wrong kind is left out, a wrong name with a warning."""
    table = table if isinstance(table, dict) else {}
    warnings = []
    deployment = table.get("deployment", "")
    if deployment and not is_deployment(deployment):
        warnings.append(
            f"`deployment = {deployment!r}` of `[tool.cozy]` is left out: it takes 3 to 63 lower-case letters, digits "
            "and single dashes, and begins with a letter"
        )
        deployment = ""
    models = table.get("models")
    models = models if isinstance(models, dict) else {}
    return CozyProject(
        deployment=deployment or "",
        models=MappingProxyType({key: ref.strip() for key, ref in models.items() if isinstance(ref, str)}),
        build=_of_kinds(table.get("build"), _BUILD),
        resources=_of_kinds(table.get("resources"), _RESOURCES),
        warnings=tuple(warnings),
    )


def is_deployment(name: object) -> bool:
    """Tell whether something can be the name of a deployment."""
    return isinstance(name, str) and len(name) in _DEPLOYMENT_CHARS and _DEPLOYMENT.fullmatch(name) is not None


def _of_kinds(table: object, kinds: Mapping[str, type]) -> Mapping[str, Any]:
    table = table if isinstance(table, dict) else {}
    return MappingProxyType({name: table[name] for name, kind in kinds.items() if type(table.get(name)) is kind})


def table_of(file: Path) -> dict[str, Any] | None:
    """Return `[tool.cozy]` of a project file; None where there is none, or no file.

    Raises ValueError for a file that is no TOML.
    """
    table = _tools_of(file).get("cozy")
    return table if isinstance(table, dict) else None


def is_of_earlier(root: Path) -> bool:
    """Tell whether the project in a folder is one of the earlier generation, and none of this one."""
    try:
        tools = _tools_of(root / "pyproject.toml")
    except ValueError:
        return False
    return isinstance(tools.get("cozy"), dict) and "gen_worker" not in tools


def _tools_of(file: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return {}
    except OSError as error:
        raise ValueError(f"`{file}` cannot be read: {(error.strerror or str(error)).lower()}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"`{file}` is not valid TOML: {error}") from error
    tools = document.get("tool")
    return tools if isinstance(tools, dict) else {}


def project_of(module: ModuleType) -> CozyProject:
    """Return the project that a module belongs to, by the folders around its file; an empty one where there is none.

    Of an image that has only a manifest, the manifest says the same.
    """
    file = getattr(module, "__file__", None)
    return _around(Path(file).absolute().parent) if file else CozyProject()


@cache
def _around(folder: Path) -> CozyProject:
    for each in (folder, *folder.parents):
        try:
            table = table_of(each / "pyproject.toml")
        except ValueError:
            table = None  # whoever needs the file says so
        if table is not None:
            return read_table(table)
        if (baked := _baked(each / MANIFEST)) is not None:
            return baked
        if (each / "pyproject.toml").is_file():
            break
    return CozyProject()


def _baked(file: Path) -> CozyProject | None:
    try:
        document = msgspec.json.decode(file.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    return read_table(document) if isinstance(document, dict) else None


# --- which files declare functions ------------------------------------------------------------------------------------


def scan(root: Path) -> tuple[list[str], list[str]]:
    """Return the modules under a project's root that use a decorator of the earlier API, and warnings of others.

    Folders of version control, environments, builds and caches are passed over. Nothing is imported.
    """
    modules, warnings = [], []
    for path in _python_files(root):
        try:
            source = path.read_bytes()
            if not any(name.encode() in source for name in DECORATORS) or not _uses_decorator(ast.parse(source)):
                continue
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            if isinstance(error, SyntaxError):
                warnings.append(f"`{path.relative_to(root)}` is not looked at: {error.msg}, line {error.lineno}")
            else:
                warnings.append(f"`{path.relative_to(root)}` is not looked at: {error}")
            continue
        name = module_name(path.relative_to(root))
        if name:
            modules.append(name)
        else:
            warnings.append(f"`{path.relative_to(root)}` is not looked at: no module can have this name")
    return modules, warnings


def _python_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(each for each in folders if not _is_skipped(Path(folder, each)))
        yield from (Path(folder, each) for each in sorted(files) if each.endswith(".py"))


def _is_skipped(folder: Path) -> bool:
    name = folder.name
    return name.startswith(".") or name in _SKIPPED or name.endswith(".egg-info") or (folder / "pyvenv.cfg").exists()


def module_name(path: Path) -> str:
    """Return what a file below a project's root is imported as; empty for one that cannot be imported."""
    parts = list(path.with_suffix("").parts)
    if parts and parts[0] == "src":
        parts = parts[1:]
    if parts and parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts) if parts and all(part.isidentifier() for part in parts) else ""


def _uses_decorator(tree: ast.Module) -> bool:
    functions = [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    return any(_decorator(mark) in DECORATORS for function in functions for mark in function.decorator_list)


def _decorator(mark: ast.expr) -> str:
    mark = mark.func if isinstance(mark, ast.Call) else mark
    if isinstance(mark, ast.Attribute):
        return mark.attr
    return mark.id if isinstance(mark, ast.Name) else ""


# --- checks -----------------------------------------------------------------------------------------------------------


def validate_project(root: str | Path, *, require_uv_lock: bool = False) -> ProjectValidationResult:
    """Check the files of a project of the earlier generation, without importing anything."""
    folder = Path(root)
    errors, warnings = _faults_of_file(folder / "pyproject.toml")
    for name in ("requirements.txt", "cozy.toml"):
        if (folder / name).exists():
            errors.append(f"`{folder / name}` is not read: what it says belongs into `pyproject.toml`")
    if not (folder / "uv.lock").is_file():
        (errors if require_uv_lock else warnings).append(
            f"no `{folder / 'uv.lock'}`: `uv lock` in the base image writes it"
        )
    return ProjectValidationResult(not errors, errors, warnings)


def _faults_of_file(file: Path) -> tuple[list[str], list[str]]:
    if not file.is_file():
        return [f"no `{file}`"], []
    try:
        table = table_of(file)
    except ValueError as error:
        return [str(error)], []
    if table is None:
        return [f"`{file}` has no table `[tool.cozy]`"], []
    return [], list(read_table(table).warnings)


def unlisted(keys: Iterable[str], models: Mapping[str, str]) -> list[str]:
    """Return the keys of models that functions use and `[tool.cozy.models]` does not have."""
    return sorted(set(keys) - set(models))
