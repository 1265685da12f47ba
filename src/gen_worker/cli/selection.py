"""Which of an endpoint's functions `run` means."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

from gen_worker.cli.failure import Failure, nearest
from gen_worker.discovery.names import slugify_name


class Wanted(NamedTuple):
    """What a command line says of the function that it means: the endpoint's module, and filters."""

    module: str
    class_name: str | None
    method: str | None


class Named(Protocol):
    """A function with what it is chosen by."""

    @property
    def name(self) -> str:
        """The name that routes to it."""

    @property
    def class_name(self) -> str:
        """The class that it belongs to; empty for none."""

    @property
    def python_name(self) -> str:
        """The name of its handler, which variants share."""


Spec = TypeVar("Spec", bound=Named)


def select(specs: Sequence[Spec], wanted: Wanted) -> Spec:
    """Return the function that the filters leave, or that stands out without them; raise `Failure` otherwise."""
    module, class_name, method = wanted
    if not specs:
        raise Failure(f"no functions in `{module}`", "mark a class or a function with `@endpoint`")
    left = [spec for spec in specs if class_name is None or spec.class_name == class_name]
    if class_name is not None and not left:
        raise _no_class(class_name, specs, module)
    chosen = _named(method, left) if method is not None else left
    if not chosen:
        raise _no_function(str(method), left, module)
    if len(chosen) > 1 and class_name is None and method is None:
        top = module.partition(".")[0]
        chosen = [spec for spec in chosen if spec.name.replace("-", "_") == top] or chosen
    if len(chosen) > 1:
        listed = ", ".join(f"`{spec.name}`" for spec in chosen)
        raise Failure(f"which function? {len(chosen)} match: {listed}", f"choose one: `--method {chosen[0].name}`")
    return chosen[0]


def _named(method: str, specs: Sequence[Spec]) -> list[Spec]:
    """Return the function that is routed by this name, else those whose handler has it: variants share one."""
    slug = slugify_name(method)
    routed = [spec for spec in specs if spec.name == slug]
    return routed or [spec for spec in specs if slugify_name(spec.python_name) == slug]


def _no_class(class_name: str, specs: Sequence[Named], module: str) -> Failure:
    classes = sorted({spec.class_name for spec in specs if spec.class_name})
    return Failure(f"no endpoint class `{class_name}` {_in(module)}", _hint(class_name, classes, "the classes are"))


def _no_function(method: str, specs: Sequence[Named], module: str) -> Failure:
    names = [spec.name for spec in specs]
    return Failure(f"no function `{method}` {_in(module)}", _hint(slugify_name(method), names, "available:"))


def _in(module: str) -> str:
    return f"in `{module}`" if module else "here"


def _hint(wanted: str, names: list[str], introduction: str) -> str:
    near = nearest(wanted, names)
    listed = ", ".join(f"`{name}`" for name in names)
    return (f"did you mean `{near}`? " if near else "") + f"{introduction} {listed or 'none'}"
