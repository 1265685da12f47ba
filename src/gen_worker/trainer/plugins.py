"""Find a trainer by its name."""

import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

HOOKS = ("setup", "configure", "prepare_batch", "train_step", "state_dict", "load_state_dict")
USUAL_NAMES = ("TRAINER", "Trainer", "trainer")


def load_trainer_plugin(path: str) -> Any:
    """Return the trainer that `module` or `module:Symbol` names; a class is instantiated without arguments.

    Without a symbol it is what the module calls `TRAINER`, `Trainer` or `trainer`, else its only class with all hooks.
    Raises `ValueError` for a path or symbol that leads nowhere, `TypeError` for what is no trainer, and whatever the
    module raises when it is imported.
    """
    name, colon, symbol = path.strip().partition(":")
    if not name or (colon and not symbol):
        raise ValueError(f"a trainer is named `module` or `module:Symbol`, not `{path}`")
    module = _imported(name)
    found = _named(module, symbol) if symbol else _usual(module)
    trainer = found() if isinstance(found, type) else found
    if missing := _missing(trainer):
        what = f"`{symbol or type(trainer).__name__}` of `{name}`"
        if callable(trainer) and len(missing) == len(HOOKS):
            raise TypeError(f"{what} is a plain callable: a trainer has the hooks {_listed(HOOKS)}")
        raise TypeError(f"{what} is no trainer: it has no {_listed(missing)}")
    return trainer


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            where = f"the folder `{Path.cwd()}` and what is installed have none"
            raise ValueError(f"no module `{error.name}` to take a trainer from: {where}") from None
        raise
    except TypeError as error:
        if name.startswith("."):
            raise ValueError(f"a trainer's module is named from its top package on, not `{name}`") from error
        raise


def _named(module: ModuleType, symbol: str) -> Any:
    found: Any = module
    for part in symbol.split("."):
        if not hasattr(found, part):
            raise ValueError(f"`{module.__name__}` has no `{symbol}`")
        found = getattr(found, part)
    return found


def _usual(module: ModuleType) -> Any:
    for name in USUAL_NAMES:
        if hasattr(module, name):
            return getattr(module, name)
    classes = [
        each
        for each in vars(module).values()
        if inspect.isclass(each) and each.__module__ == module.__name__ and not _missing(each)
    ]
    if len(classes) == 1:
        return classes[0]
    found = f"it has {len(classes)}: {_listed(sorted(each.__name__ for each in classes))}" if classes else "it has none"
    raise ValueError(f"`{module.__name__}` does not say which class is its trainer: {found}; write `module:Symbol`")


def _missing(candidate: Any) -> list[str]:
    return [hook for hook in HOOKS if not callable(getattr(candidate, hook, None))]


def _listed(names: "list[str] | tuple[str, ...]") -> str:
    return ", ".join(f"`{name}`" for name in names)
