"""Which functions a test means: those of a module, a project folder, or one class or function."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from gen_worker.discovery.function_spec import FunctionSpec

Target: TypeAlias = str | os.PathLike[str] | ModuleType | type | Callable[..., Any]


class Endpoint(NamedTuple):
    """The functions of a target, and how another process imports them."""

    specs: "list[FunctionSpec]"
    module: str
    paths: list[str]

    def spec(self, function: "str | Callable[..., Any]") -> "FunctionSpec":
        """Return the function of a name, in either spelling, or that a handler makes; raise `LookupError`."""
        from difflib import get_close_matches

        from gen_worker.discovery.names import slugify_name

        if not isinstance(function, str):
            found = [spec for spec in self.specs if spec.function is function]
            own = [spec for spec in found if spec.name == slugify_name(spec.python_name)]  # its variants beside it
            if not found:
                raise LookupError(f"{function!r} is no handler of `{self.module}`; there are {self._names()}")
            return (own or found)[0]
        slug = slugify_name(function)
        found = [spec for spec in self.specs if spec.name == slug]
        if not found:
            error = LookupError(f"no function `{function}` in `{self.module}`; there are {self._names()}")
            if near := get_close_matches(slug, [spec.name for spec in self.specs], n=1):
                error.add_note(f"hint: did you mean `{near[0]}`?")
            raise error
        return found[0]

    def _names(self) -> str:
        return ", ".join(f"`{spec.name}`" for spec in self.specs) or "none"


def endpoint_of(target: Target | None) -> Endpoint:
    """Return what a target declares: of a module as `gen-worker run` finds it; without one of this folder's project.

    Imports the module. Raises `DiscoveryError` for faults in it, `FileNotFoundError` and `ValueError` for a project
    without a main module, `TypeError` for what is none of these.
    """
    if isinstance(target, type | FunctionType):
        return _of_one(target)
    if isinstance(target, ModuleType):
        return _of_module(target)
    if target is not None and not isinstance(target, str | os.PathLike):
        raise TypeError(f"a test's endpoint is a module, its name, a folder, or what is marked: got {target!r}")
    from gen_worker.discovery.project import import_paths, load_project_config

    if target is None or not isinstance(target, str) or _is_path(target):
        project = load_project_config(None if target is None else Path(target))
        return _imported(project.main, import_paths(project.root))
    return _imported(target, import_paths(Path.cwd()))


def _is_path(target: str) -> bool:
    return not all(part.isidentifier() for part in target.split("."))


def _imported(module: str, paths: Sequence[str]) -> Endpoint:
    from gen_worker.discovery.specs import collect
    from gen_worker.discovery.walk import import_modules

    return Endpoint(collect(*import_modules(module, paths)), module, list(paths))


def _of_module(module: ModuleType) -> Endpoint:
    from gen_worker.discovery.specs import collect

    return Endpoint(collect(module), module.__name__, _folders(module))


def _of_one(target: Any) -> Endpoint:
    from gen_worker.api.decorator import RECORD
    from gen_worker.discovery.specs import specs_of
    from gen_worker.earlier.functions import is_earlier

    if RECORD not in vars(target) and not is_earlier(target):
        raise TypeError(f"`{target.__name__}` is not marked: decorate it with `@endpoint`")
    return Endpoint(specs_of(target), target.__module__, _folders(sys.modules.get(target.__module__)))


def _folders(module: ModuleType | None) -> list[str]:
    """Return the folder that a module is imported from, and what is on the path already."""
    file = getattr(module, "__file__", None)
    if module is None or file is None:
        return []
    depth = module.__name__.count(".") + (Path(file).name == "__init__.py")
    return [str(Path(file).resolve().parents[depth])]
