"""Decide which models stay on a device when another one comes, and how that one is placed.

Pure: what is held and what is needed in, a plan out. Who is let go, and how, is the caller's.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from gen_worker.capability import InsufficientVRAMError
from gen_worker.models.rungs import EXACT, NEXT, Rung, Sizes, fitting_rung, in_words

NO_LIMIT = 1 << 62
_PLAIN = (Rung.OFF, Rung.VAE_ONLY)  # nobody is let go to come from the second to the first


class Held(NamedTuple):
    """An instance whose models are on the device."""

    instance: str
    bytes: int
    """Of the device, measured."""

    last_used: float
    """On any clock; the lowest is evicted first."""

    leased: bool = False
    """A job runs on it: it stays."""

    pinned: tuple[str, ...] = ()
    """Its models, where it stays whatever comes next."""


class Plan(NamedTuple):
    """Who goes, in this order, and how the new model is placed then."""

    evict: tuple[str, ...]
    rung: Rung
    reason: str
    """Why it is not plainly on the device; empty when it is."""


def plan(
    held: Sequence[Held],
    sizes: Sizes | None,
    *,
    free_bytes: int,
    margin_bytes: int,
    possible: Collection[Rung] = EXACT,
    at_least: Rung = Rung.OFF,
) -> Plan:
    """Return how a model comes onto the device; raise `InsufficientVRAMError` when it cannot.

    No more is evicted than that needs, the least recently used first, never what is leased or pinned. `sizes` is None
    where nobody knows them; `free_bytes` comes from `allowance`; `at_least` is a rung that turned out to be needed
    before.
    """
    victims = _victims(held)
    free = [free_bytes]
    for victim in victims:
        free.append(free[-1] + victim.bytes)
    rungs = [fitting_rung(sizes, free_bytes=each, margin_bytes=margin_bytes, possible=possible) for each in free]
    best = rungs[-1]
    if best is None:
        raise _insufficient(held, sizes, free[-1], margin_bytes)
    count = next(at for at, rung in enumerate(rungs) if rung is best or (best in _PLAIN and rung in _PLAIN))
    evict = tuple(victim.instance for victim in victims[:count])
    rung = rungs[count] or best
    if at_least in possible and at_least not in (rung, *_leading_to(rung)):
        return Plan(evict, at_least, "a job ran out of memory where it was placed before")
    return Plan(evict, rung, "" if rung is Rung.OFF else _reason(sizes, free[count], margin_bytes))


def make_room(held: Sequence[Held], bytes_needed: int) -> tuple[str, ...]:
    """Return whom to evict so that at least so many bytes come free, all who may go when that is not enough."""
    chosen: list[str] = []
    freed = 0
    for victim in _victims(held):
        if freed >= bytes_needed:
            break
        chosen.append(victim.instance)
        freed += victim.bytes
    return tuple(chosen)


def allowance(
    *, budget_bytes: int, margin_bytes: int, held: Sequence[Held], device_free_bytes: int | None
) -> tuple[int, int]:
    """Return what models may still take of the device, and how much of that is to stay free of weights.

    A budget is a line somebody drew: it holds whatever the device has free, and the margin lies outside of it. None for
    `device_free_bytes` is a device without memory of its own, the CPU: without a budget everything fits.
    """
    if not budget_bytes:
        return (NO_LIMIT, 0) if device_free_bytes is None else (device_free_bytes, margin_bytes)
    left = budget_bytes - sum(each.bytes for each in held)
    if device_free_bytes is not None:
        left = min(left, device_free_bytes - margin_bytes)
    return max(0, left), 0


def _victims(held: Sequence[Held]) -> list[Held]:
    """Return who may go, the first one first; who takes nothing stays."""
    going = (each for each in held if not each.leased and not each.pinned and each.bytes > 0)
    return sorted(going, key=lambda each: (each.last_used, each.instance))


def _leading_to(rung: Rung) -> list[Rung]:
    return [each for each in Rung if rung in NEXT[each]]


def _reason(sizes: Sizes | None, free_bytes: int, margin_bytes: int) -> str:
    need = "of unknown size" if sizes is None else f"of {in_words(sizes.total)}"
    return f"weights {need} come where {in_words(free_bytes)} are free, {in_words(margin_bytes)} of them to stay so"


def _insufficient(held: Sequence[Held], sizes: Sizes | None, free_bytes: int, margin_bytes: int) -> Exception:
    required = (sizes.total if sizes else 0) + margin_bytes
    leased = sum(each.bytes for each in held if each.leased)
    busy = f"; jobs that run keep {in_words(leased)}" if leased else ""
    staying = [each for each in held if each.pinned]
    refs = list(dict.fromkeys(ref for each in staying for ref in each.pinned))
    pinned = ", ".join(f"`{ref}`" for ref in refs)
    kept = f"; {in_words(sum(each.bytes for each in staying))} are of what is pinned: {pinned}" if staying else ""
    had = f"{in_words(free_bytes)} of the device can be had{busy}{kept}"
    return InsufficientVRAMError(
        f"weights and margin need {in_words(required)}, and {had}",
        available_bytes=free_bytes,
        required_bytes=required,
        hint=f"`gen-worker models unpin {refs[0]}` lets it go for others" if refs else "",
    )
