"""What an image carries: the manifest that was baked into it, and where the modules it names are imported from.

Never imports the author's code.
"""

import tomllib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gen_worker.discovery.names import slugify_name
from gen_worker.discovery.project import import_paths
from gen_worker.discovery.validation import NO_ENDPOINTS, Finding, validate_endpoint_lock

LOCK, MANIFEST = ".tensorhub/endpoint.lock", ".cozy/manifest.json"
OLD_MODULE = "functions"  # what images without a manifest serve where nothing says otherwise
_BAKES = "bake it into the image: `python -m gen_worker.discover > .cozy/manifest.json`"


class ImageError(ValueError):
    """An image does not say what it serves; `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Served(NamedTuple):
    """What a worker serves, and where it was said."""

    modules: tuple[str, ...]
    paths: list[str]
    """What goes to the front of `sys.path`."""

    functions: tuple[str, ...] = ()
    """The routable names that a manifest promises; empty where nothing does."""

    manifest: Path | None = None


def places(lock: str, *, folder: Path = Path(), root: Path = Path("/")) -> list[Path]:
    """Return where a manifest may lie, the one that counts first: at `lock`, in `/app`, in the folder."""
    app = root / "app"
    found = [root / lock.lstrip("/") if lock.startswith("/") else folder / lock]
    found += [app / LOCK, app / MANIFEST, folder / LOCK, folder / MANIFEST]
    return list(dict.fromkeys(path.absolute() for path in found))


def served_by_image(
    lock: str, user_modules: Sequence[str] = (), *, folder: Path = Path(), root: Path = Path("/")
) -> Served:
    """Return what an image serves: by its manifest, without one `user_modules`, without those a module `functions`.

    Raises `ImageError` for a manifest that is none, with everything that is wrong with it, and where there is nothing.
    """
    looked = places(lock, folder=folder, root=root)
    for path in looked:
        if path.is_file():
            return served_by_manifest(path, user_modules, folder=folder)
    paths = _roots([folder])
    if user_modules:
        return Served(tuple(dict.fromkeys(user_modules)), paths)
    if any(Path(each, f"{OLD_MODULE}{ending}").exists() for each in paths for ending in (".py", "/__init__.py")):
        return Served((OLD_MODULE,), paths)
    told = ", ".join(f"`{path}`" for path in looked)
    raise ImageError(f"no manifest says what is served; it is looked for at {told}", _BAKES)


def served_by_manifest(path: Path, user_modules: Sequence[str] = (), *, folder: Path = Path()) -> Served:
    """Return what a manifest says, `user_modules` where it names nothing to serve.

    Raises `ImageError` with everything that is wrong with it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "it is no UTF-8"
        raise ImageError(f"`{path}` cannot be read: {reason}") from None
    document = parse_manifest(path, text)
    if document.get("functions") == [] and not document.get("realtime_modules") and user_modules:
        return Served(tuple(dict.fromkeys(user_modules)), _roots([folder]), (), path)
    faults = _faults(document)
    if faults:
        told = [f"\n  {fault}" + (f"\n    {fault.hint}" if fault.hint else "") for fault in faults]
        many = f"{len(faults)} problems in `{path}`:"
        raise ImageError(f"`{path}`: {faults[0]}" if len(faults) == 1 else many + "".join(told), _BAKES)
    functions = document["functions"]
    modules = tuple(dict.fromkeys([*(entry["module"] for entry in functions), *document.get("realtime_modules", ())]))
    names = tuple(slugify_name(entry["name"]) for entry in functions)
    above = [path.parent.parent] if path.parent.name in (".tensorhub", ".cozy") else []
    return Served(modules, _roots([*above, folder]), names, path)


def parse_manifest(path: Path, text: str) -> dict[str, Any]:
    """Return the document of a manifest, which may be JSON or TOML whatever its file is called."""
    try:
        document = msgspec.json.decode(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ImageError(f"`{path}` is neither JSON nor TOML: {error}", _BAKES) from None
    if not isinstance(document, dict):
        raise ImageError(f"`{path}` is no table", _BAKES)
    return document


def difference(promised: Collection[str], found: Collection[str]) -> str:
    """Return in words where a manifest and the code of its image disagree; an empty text where they agree."""
    missing, new = sorted(set(promised) - set(found)), sorted(set(found) - set(promised))
    parts = [f"the code does not declare {_quoted(missing)}"] if missing else []
    parts += [f"the manifest does not name {_quoted(new)}"] if new else []
    return " and ".join(parts)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _faults(document: dict[str, Any]) -> list[Finding]:
    faults = list(validate_endpoint_lock(document).errors)
    functions = document.get("functions")
    realtime = document.get("realtime_modules", [])
    if functions == [] and not realtime:
        return [Finding(NO_ENDPOINTS)]
    if isinstance(functions, list):
        faults += _module_faults(functions)
    if not isinstance(realtime, list) or not all(map(_is_module, realtime)):
        faults.append(Finding(f"`realtime_modules` is no list of modules: {realtime!r}"))
    return faults


def _module_faults(functions: Sequence[object]) -> Iterator[Finding]:
    for number, entry in enumerate(functions, start=1):
        module = entry.get("module") if isinstance(entry, dict) else ""
        if isinstance(entry, dict) and not _is_module(module):
            yield Finding(f"entry {number} of `functions`, `{entry.get('name')}`: {module!r} is no module's name")


def _is_module(name: object) -> bool:
    return isinstance(name, str) and all(part.isidentifier() for part in name.split("."))


def _roots(folders: Sequence[Path]) -> list[str]:
    paths = [path for folder in folders for path in import_paths(folder.absolute())]
    return list(dict.fromkeys(paths))
