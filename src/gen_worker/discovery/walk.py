"""Import the author's package and find what is marked in it."""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from gen_worker.api.decorator import RECORD
from gen_worker.discovery.errors import DiscoveryError
from gen_worker.discovery.notices import leave_out_fallbacks
from gen_worker.discovery.stacks import author_stack, refused_line
from gen_worker.earlier.functions import is_earlier

_OWN = __name__.partition(".")[0]  # of whose modules each is served by itself


def import_main(module: str, paths: Sequence[str]) -> ModuleType:
    """Import the module that declares the endpoints, its folders at the front of `sys.path`.

    A module that is in `sys.modules` already is taken as it is. Failure raises DiscoveryError.
    """
    for path in reversed(paths):
        if path in sys.path:
            sys.path.remove(path)
        sys.path.insert(0, path)
    leave_out_fallbacks()
    _refuse_pythons_name(module.partition(".")[0], paths)
    return _import(module, paths)


def import_modules(names: str, paths: Sequence[str]) -> list[ModuleType]:
    """Import one module, or several with `,` between their names, as `import_main` does."""
    return [import_main(name, paths) for name in names.split(",")]


def _refuse_pythons_name(name: str, paths: Sequence[str]) -> None:
    """Refuse a module in whose place one of the standard library would be taken, which is imported already."""
    there = sys.modules.get(name)
    if there is None or name not in sys.stdlib_module_names:
        return
    files = [Path(path, file) for path in paths for file in (f"{name}.py", f"{name}/__init__.py")]
    mine = next((file for file in files if file.is_file()), None)
    taken = getattr(there, "__file__", None)
    if mine is not None and (taken is None or mine.resolve() != Path(taken).resolve()):
        said = f"`{name}` is a module of Python itself, which stands in the way of `{mine}`"
        raise DiscoveryError(said, "give your module another name")


def _import(module: str, paths: Sequence[str] = ()) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            hint = f"it is looked for in: {', '.join(paths)}" if paths else ""
            raise DiscoveryError(f"no module `{error.name}`", hint) from error
        hint = f"install what provides `{error.name}`, or mend the import" if error.name else ""
        raise _failed_import(module, error, hint) from error
    except SystemExit as error:
        raise _failed_import(module, error, 'put what is a program under `if __name__ == "__main__":`') from error
    except Exception as error:  # importing runs the author's code
        raise _failed_import(module, error) from error


def _failed_import(module: str, error: BaseException, hint: str = "") -> DiscoveryError:
    said = str(error).strip().splitlines()
    if said and (line := refused_line(error)):
        return DiscoveryError(f"{line}: {said[0]}", hint)
    name = type(error).__name__
    reason = f"{name}: {said[0]}" if said else name
    return DiscoveryError(f"`{module}` does not import: {reason}", hint, author_stack(error))


def marked_objects(main: ModuleType) -> tuple[list[Any], list[DiscoveryError]]:
    """Return every class and function marked as served in the top package of `main`, which is imported whole.

    What a package imports from elsewhere is not its own; what a program puts into a module that it made in memory is.
    Submodules that do not import are the errors beside them.
    """
    problems: list[DiscoveryError] = []
    if made_in_memory(main) or _within(main.__name__, _OWN):
        found = list(_marked(main))
    else:
        top = main.__name__.partition(".")[0]
        modules = [main, sys.modules[top], *_submodules(sys.modules[top], problems)]
        modules += [module for name, module in list(sys.modules.items()) if _within(name, top)]  # in plain folders too
        found = [value for module in modules for value in _marked(module) if _within(value.__module__, top)]
        problems += _marked_methods(modules, top, found)
    once = {id(value): value for value in found}
    return sorted(once.values(), key=lambda value: (value.__module__, value.__qualname__)), problems


def made_in_memory(module: ModuleType) -> bool:
    """Tell whether a program made the module, so that no other process can import it."""
    return getattr(module, "__file__", None) is None and not hasattr(module, "__path__")


def _marked(module: ModuleType) -> Iterator[Any]:
    for value in list(vars(module).values()):
        if isinstance(value, type | FunctionType) and (RECORD in vars(value) or is_earlier(value)):
            yield value


def _marked_methods(modules: Sequence[ModuleType], top: str, found: Sequence[Any]) -> Iterator[DiscoveryError]:
    """Yield an error for each class of which methods are marked and not the class: nothing would be served of it."""
    classes = {id(value): value for module in modules for value in vars(module).values() if isinstance(value, type)}
    served = {id(base) for other in found if isinstance(other, type) for base in other.__mro__}
    for key, cls in classes.items():
        methods = [
            name for name, value in vars(cls).items() if isinstance(value, FunctionType) and RECORD in vars(value)
        ]
        if methods and key not in served and _within(cls.__module__, top):
            code = inspect.unwrap(vars(cls)[methods[0]]).__code__
            yield DiscoveryError(
                f"{code.co_filename}:{code.co_firstlineno}: `{cls.__name__}.{methods[0]}` is marked, its class is not",
                f"put `@endpoint` on `{cls.__name__}`: each public method is a function then",
            )


def _within(module: str, top: str) -> bool:
    return module == top or module.startswith(f"{top}.")


def _submodules(package: ModuleType, problems: list[DiscoveryError]) -> Iterator[ModuleType]:
    for entry in pkgutil.iter_modules(getattr(package, "__path__", [])):
        if entry.name == "__main__":  # importing it would run the program
            continue
        try:
            module = _import(f"{package.__name__}.{entry.name}")
        except DiscoveryError as problem:
            problems.append(problem)
            continue
        yield module
        yield from _submodules(module, problems)
