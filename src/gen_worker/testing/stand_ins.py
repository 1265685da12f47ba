"""What stands in a slot instead of a model: an object that answers at once and remembers what it was asked."""

from typing import Any, NamedTuple


class Call(NamedTuple):
    """One call of a `FakeModel`."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class FakeModel:
    """A model that needs no weights: it gives one answer, and remembers its `calls`."""

    def __init__(self, answer: Any = None, attributes: dict[str, Any] | None = None) -> None:
        self.calls: list[Call] = []
        self._answer = answer
        self.__dict__.update(attributes or {})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the answer."""
        self.calls.append(Call(args, kwargs))
        return self._answer(*args, **kwargs) if callable(self._answer) else self._answer

    def to(self, *_args: Any, **_kwargs: Any) -> "FakeModel":
        """Return itself: it is on every device."""
        return self


def fake_model(answer: Any = None, **attributes: Any) -> FakeModel:
    """Return an object for a slot of `Client(models=…)`: calling it gives `answer`, or what that returns when called.

    It has the `attributes`, too, such as the `config` that a handler reads.
    """
    return FakeModel(answer, attributes)
