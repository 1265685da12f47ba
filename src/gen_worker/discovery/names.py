"""The names that functions are routed by. Knows nothing of endpoints."""

import re
from collections.abc import Iterable
from typing import Protocol, TypeVar

_SLUG_LIMIT = 128


class Named(Protocol):
    """Anything with a routable name."""

    @property
    def name(self) -> str:
        """The routable name."""


Spec = TypeVar("Spec", bound=Named)


def slugify_name(name: str) -> str:
    """Return the one spelling of a name that is routed: lower case, dashes, letters, digits and dots."""
    slug = re.sub(r"[^a-z0-9.]+", "-", name.strip().lower())
    return slug.strip("-.")[:_SLUG_LIMIT].strip("-.")


def match_name(wanted: str, specs: Iterable[Spec]) -> Spec | None:
    """Return the function that goes by this name, in its routed or its Python spelling."""
    slug = slugify_name(wanted)
    return next((spec for spec in specs if spec.name == slug), None)


def did_you_mean(wanted: str, names: Iterable[str]) -> str | None:
    """Return the name that was probably meant."""
    import difflib

    close = difflib.get_close_matches(slugify_name(wanted), list(names), n=1)
    return close[0] if close else None
