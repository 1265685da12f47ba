"""What is not shown where it is only looked at: in the `repr` of what holds it, and so in a log or an error."""

import msgspec


class Secret(str):
    """A text that does not show itself where it is only looked at, as in the `repr` of what holds it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>" if self else "''"


def without(value: msgspec.Struct, *secret: str) -> str:
    """Return the `repr` of a value without what the named fields hold."""
    fields = ((name, getattr(value, name)) for name in value.__struct_fields__)
    shown = (f"{name}={'<secret>' if held and name in secret else repr(held)}" for name, held in fields)
    return f"{type(value).__name__}({', '.join(shown)})"
