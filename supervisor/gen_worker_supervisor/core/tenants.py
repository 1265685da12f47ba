"""Who holds how many of the places for waiting jobs, so that one tenant does not take them all.

Pure.
"""

from typing import NamedTuple


class Held(NamedTuple):
    """What some jobs that wait take up."""

    jobs: int = 0
    bytes: int = 0

    def plus(self, jobs: int, length: int) -> "Held":
        """Return what it is with so much more."""
        return Held(self.jobs + jobs, self.bytes + length)


class Tenants:
    """What each tenant's waiting jobs take up; those of nobody in particular are one tenant's, `""`.

    Where nobody ever named a tenant there are no shares.
    """

    def __init__(self) -> None:
        self.named = False
        self._all = Held()  # of those that were named
        self._held: dict[str, Held] = {}

    def enter(self, tenant: str, length: int) -> None:
        """A job of a named tenant waits."""
        self._all = self._all.plus(1, length)
        self._held[tenant] = self._held.get(tenant, Held()).plus(1, length)

    def leave(self, tenant: str, length: int) -> None:
        """It waits no more."""
        self._all = self._all.plus(-1, -length)
        held = self._held.pop(tenant).plus(-1, -length)
        if held.jobs:
            self._held[tenant] = held

    def of(self, tenant: str, everyone: Held) -> Held:
        """Return what a tenant holds, where everyone together holds so much."""
        return self._held.get(tenant, Held()) if tenant else everyone.plus(-self._all.jobs, -self._all.bytes)

    def waiting(self, everyone: Held) -> int:
        """Return how many tenants have jobs that wait."""
        return len(self._held) + (everyone.jobs > self._all.jobs)


def share(limit: int, waiting: int) -> int:
    """Return what each of so many waiting tenants may hold once half of the limit is taken.

    It is an even share of all that wait and one more, who may come.
    """
    return max(1, limit // (waiting + 1))
