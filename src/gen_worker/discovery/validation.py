"""Whether the platform can take an endpoint: its folder, and its lock.

Never imports the author's code.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from gen_worker.discovery.names import slugify_name
from gen_worker.discovery.project import load_project_config

LOCK_FILES = ("endpoint.lock", ".tensorhub/endpoint.lock")
_WRITES_LOCK = "python -m gen_worker.discovery"
NO_ENDPOINTS = "no function or class is marked with `@endpoint`"


class Finding(str):
    """What was found, in a sentence; `hint` says what to do about it."""

    hint: str

    def __new__(cls, message: str, hint: str = "") -> "Finding":
        """Make the sentence, with its hint."""
        finding = super().__new__(cls, message)
        finding.hint = hint
        return finding


@dataclass(frozen=True, slots=True)
class Validation:
    """What speaks against an endpoint: errors do, warnings may."""

    errors: list[Finding]
    warnings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors


# --- the folder -------------------------------------------------------------------------------------------------------


def validate_endpoint(root: str | Path, *, require_uv_lock: bool = False) -> Validation:
    """Check the files of a project that an image is to be built from."""
    folder = Path(root)
    errors = _project_faults(folder)
    warnings: list[Finding] = []
    if not (folder / "Dockerfile").is_file():
        errors.append(Finding(f"no `{folder / 'Dockerfile'}`", "the platform builds the image of the endpoint from it"))
    if (folder / "requirements.txt").exists():
        hint = "move what it lists to `[project] dependencies` of `pyproject.toml` and remove it"
        errors.append(Finding(f"`{folder / 'requirements.txt'}` is not read", hint))
    if not (folder / "uv.lock").is_file():
        unlocked = Finding(
            f"no `{folder / 'uv.lock'}`: each build may get other versions", "`uv lock` in the base image writes it"
        )
        (errors if require_uv_lock else warnings).append(unlocked)
    return Validation(errors, warnings)


def _project_faults(folder: Path) -> list[Finding]:
    try:
        project = load_project_config(folder / "pyproject.toml")
    except FileNotFoundError:
        return [Finding(f"no `{folder / 'pyproject.toml'}`", "say where the root of the endpoint is")]
    except (ValueError, OSError) as error:
        return [Finding(str(error).rstrip())]
    if slugify_name(project.name):
        return []
    said = f"`{project.name}` leaves nothing to call the endpoint by" if project.name else "there is none"
    hint = 'add to `pyproject.toml`: `[project]`, `name = "my-endpoint"`'
    return [Finding(f"`[project].name` of `{folder / 'pyproject.toml'}`: {said}", hint)]


# --- the lock ---------------------------------------------------------------------------------------------------------


def validate_endpoint_lock(lock: Any) -> Validation:
    """Check a manifest, as a table of Python values."""
    functions = lock.get("functions") if isinstance(lock, Mapping) else None
    if not isinstance(functions, list):
        return Validation(
            [Finding("the lock has no list `functions`", "`python -m gen_worker.discovery` writes it")], []
        )
    errors: list[Finding] = []
    seen: dict[tuple[str, str], str] = {}
    for number, entry in enumerate(functions, start=1):
        if not isinstance(entry, Mapping):
            errors.append(Finding(f"entry {number} of `functions` is no table: {entry!r}"))
            continue
        errors += _entry_faults(number, entry)
        where, slug = _home(entry), slugify_name(str(entry.get("name") or ""))
        if slug and (where, slug) in seen:
            both = f"`{seen[where, slug]}` and `{entry['name']}` of `{where}`"
            errors.append(Finding(f"{both} are both routed as `{slug}`", "rename one of them"))
        seen.setdefault((where, slug), str(entry.get("name")))
    return Validation(errors, [] if functions or lock.get("realtime_modules") else [Finding(NO_ENDPOINTS)])


def validate_lock_file(root: Path, manifest: Mapping[str, Any]) -> Validation:
    """Check the lock file of a project, if it has one, and that it says what the manifest says."""
    files = [file for name in LOCK_FILES if (file := root / name).is_file()]
    if not files:
        return Validation([], [])
    file = files[0]
    try:
        lock = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return Validation([Finding(f"`{file}` is not valid TOML: {error}")], [])
    found = validate_endpoint_lock(lock)
    if found.errors or lock == manifest:
        return Validation([Finding(f"`{file}`: {each}", each.hint) for each in found.errors], [])
    stale = Finding(f"`{file}` is stale: the code says something else", f"`{_WRITES_LOCK} > {file.relative_to(root)}`")
    return Validation([], [stale])


def _home(entry: Mapping[str, Any]) -> str:
    """Return the class, or the module, that a function is declared in."""
    module, cls = entry.get("declared_module") or entry.get("module"), entry.get("class_name")
    return ".".join(str(part) for part in (module, cls) if part)


def _entry_faults(number: int, entry: Mapping[str, Any]) -> list[Finding]:
    from gen_worker.api.decorator import Kind

    kinds, name, faults = get_args(Kind), entry.get("name"), []
    told = f"entry {number} of `functions`" + (f", `{name}`" if name else "")
    if not isinstance(name, str) or not slugify_name(name):
        faults.append(Finding(f"{told}: the name {name!r} leaves nothing to route by"))
    if entry.get("kind") not in kinds and "injection_json" not in entry:  # which the earlier API's have instead
        faults.append(Finding(f"{told}: the kind is one of {', '.join(kinds)}, not {entry.get('kind')!r}"))
    return faults
