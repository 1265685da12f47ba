"""The decorators of the earlier API. They mark a function and leave it what it is; discovery looks at its types."""

from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

__all__ = ["ResourceRequirements", "worker_function", "worker_websocket"]

FUNCTION_MARK, WEBSOCKET_MARK, RESOURCES = "_is_worker_function", "_is_worker_websocket", "_worker_resources"

Marked = TypeVar("Marked", bound=Callable[..., Any])


class ResourceRequirements:
    """What an earlier function needs of its worker: how many of its jobs may run at once."""

    __slots__ = ("max_concurrency",)

    def __init__(self, max_concurrency: int | None = None) -> None:
        if max_concurrency is not None and (type(max_concurrency) is not int or max_concurrency < 1):
            raise ValueError(
                f"`ResourceRequirements(max_concurrency=)` takes a number above 0, got {max_concurrency!r}"
            )
        self.max_concurrency = max_concurrency

    def to_dict(self) -> dict[str, Any]:
        """Return what was said, by name."""
        return {} if self.max_concurrency is None else {"max_concurrency": self.max_concurrency}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResourceRequirements) and self.max_concurrency == other.max_concurrency

    def __hash__(self) -> int:
        return hash(self.max_concurrency)

    def __repr__(self) -> str:
        return f"ResourceRequirements(max_concurrency={self.max_concurrency})"


def worker_function(resources: ResourceRequirements | None = None) -> Callable[[Marked], Marked]:
    """Make a function `(ctx: ActionContext, payload: Struct, …)` routable; the function itself stays what it is.

    The decorator is called: `@worker_function()`.
    """
    return _marking("worker_function", FUNCTION_MARK, resources)


def worker_websocket(resources: ResourceRequirements | None = None) -> Callable[[Marked], Marked]:
    """Make a coroutine function `(ctx: ActionContext, sock: RealtimeSocket, …)` one that callers speak with.

    The decorator is called: `@worker_websocket()`.
    """
    return _marking("worker_websocket", WEBSOCKET_MARK, resources)


def _marking(name: str, mark: str, resources: Any) -> Callable[[Marked], Marked]:
    if callable(resources) and not isinstance(resources, ResourceRequirements):
        raise TypeError(f"`@{name}` is called: write `@{name}()`")
    if resources is not None and not isinstance(resources, ResourceRequirements):
        raise TypeError(f"`{name}` takes a `ResourceRequirements(…)`, got {resources!r}")

    def marked(function: Marked) -> Marked:
        if not isinstance(function, FunctionType):
            raise TypeError(f"`@{name}()` goes on a function, got {function!r}")
        setattr(function, mark, True)
        setattr(function, RESOURCES, resources or ResourceRequirements())
        return function

    return marked


def is_earlier(value: object) -> bool:
    """Tell whether a value is marked by one of these decorators."""
    return isinstance(value, FunctionType) and not vars(value).keys().isdisjoint((FUNCTION_MARK, WEBSOCKET_MARK))
