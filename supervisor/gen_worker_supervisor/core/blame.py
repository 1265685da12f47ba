"""Who is to blame for dead children: payloads that killed two are quarantined, functions with several such are stopped.

Pure: takes what happened and the time, remembers and answers. A success clears its payload.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from gen_worker.wire.control import Charged, Quarantined

QUARANTINE_DEATHS = 2
QUARANTINE_S = 600.0
BREAKER_PAYLOADS = 5  # distinct quarantined payloads of one function
HASHED_WHOLE = 16 << 20  # above it the digest samples, so that the loop is never held for more than some 20 ms
TOLD_BYTES = 48 << 10  # of charges in one frame, which also names the functions that are stopped
TOLD_STACKS_BYTES = 32 << 10  # beyond it charges are told without
TOLD_BREAKERS = 64
TOLD_CHARS = 200  # of a line
TOLD_LINES = 8  # of a stack
_SAMPLES = 256
_SAMPLE_BYTES = 32 << 10


def digest(body: bytes | memoryview) -> bytes:
    """Return what tells payloads apart: a hash of a body, or of the length and even samples of a very long one."""
    mark = hashlib.blake2b(len(body).to_bytes(8, "little"), digest_size=16)
    if len(body) <= HASHED_WHOLE:
        mark.update(body)
    else:
        stride = (len(body) - _SAMPLE_BYTES) // (_SAMPLES - 1)
        for index in range(_SAMPLES):
            mark.update(body[index * stride : index * stride + _SAMPLE_BYTES])
    return mark.digest()


@dataclass(slots=True)
class Charge:
    """What one payload of one function has done."""

    deaths: int
    until: float
    cause: str
    stack: list[str]
    postmortem: str = ""  # of the last of these deaths


class Blame:
    """The charges that stand, each for `quarantine_s`; with 0 no payload and no function is refused for any."""

    def __init__(self, quarantine_s: float = QUARANTINE_S) -> None:
        self._lasts_s = quarantine_s or QUARANTINE_S
        self._refuses = quarantine_s > 0
        self._charges: dict[str, dict[bytes, Charge]] = {}
        self._until: dict[str, float] = {}  # when the last charge of a function stands no longer

    def suspects(self, function: str, now: float) -> bool:
        """Whether any payload of this function is charged; only then a new job's digest is worth computing."""
        if function not in self._charges:
            return False
        if self._until[function] <= now:
            del self._charges[function]
            return False
        return True

    def charge(
        self,
        function: str,
        payload: bytes,
        now: float,
        *,
        deaths: int,
        cause: str,
        stack: list[str],
        postmortem: str = "",
        tells: bool = True,
    ) -> None:
        """Count a child's death against the payload that alone can have caused it.

        `deaths` is how many its job has seen; the earlier ones, where others were suspects too, are its own by that.
        One that does not tell adds nothing to what other jobs with this payload have done.
        """
        charges = self._standing(function, now)
        known = charges.get(payload)
        before = known.deaths if known is not None and known.until > now else 0
        charges[payload] = Charge(max(before + tells, deaths), now + self._lasts_s, cause, stack, postmortem)

    def suspect(self, function: str, payload: bytes, now: float, *, cause: str) -> None:
        """Remember a payload that was in a child that died, along with others: nobody knows yet which it was."""
        self._standing(function, now).setdefault(payload, Charge(0, now + self._lasts_s, cause, []))

    def _standing(self, function: str, now: float) -> dict[bytes, Charge]:
        """Return the charges of a function that still stand, to add one."""
        charges = self._charges.get(function, {})
        for payload in [payload for payload, charge in charges.items() if charge.until <= now]:
            del charges[payload]
        self._until[function] = now + self._lasts_s
        return self._charges.setdefault(function, charges)

    def clear(self, function: str, payload: bytes) -> None:
        """A job with this payload succeeded."""
        charges = self._charges.get(function, {})
        charges.pop(payload, None)
        if not charges:
            self._charges.pop(function, None)

    def quarantined(self, function: str, payload: bytes, now: float) -> Charge | None:
        """Return the charge for which this payload is refused, if any."""
        charge = self._charges.get(function, {}).get(payload)
        if charge is None:
            return None
        if charge.until <= now:
            self.clear(function, payload)
            return None
        return charge if self.refuses(charge) else None

    def refuses(self, charge: Charge) -> bool:
        """Whether a charge that stands is heavy enough."""
        return self._refuses and charge.deaths >= QUARANTINE_DEATHS

    def suspected(self, function: str, payload: bytes, now: float) -> bool:
        """Whether this payload was in a child that died, so that its next run must tell whether it was to blame."""
        charge = self._charges.get(function, {}).get(payload)
        return charge is not None and charge.until > now

    def listed(self, now: float) -> list[tuple[str, bytes, Charge]]:
        """Return every charge that stands, with its function and payload's digest."""
        return [
            (function, payload, charge)
            for function, charges in self._charges.items()
            for payload, charge in charges.items()
            if charge.until > now
        ]

    def refused(self, now: float) -> int:
        """Return how many payloads are in quarantine."""
        return sum(self.refuses(charge) for _, _, charge in self.listed(now))

    def pardon(self, now: float, function: str = "", digest: str = "") -> int:
        """Forget what stands against a function's payloads whose digests begin so, in hexadecimal; say how many."""
        going = [
            (name, payload)
            for name, payload, _ in self.listed(now)
            if function in ("", name) and payload.hex().startswith(digest)
        ]
        for name, payload in going:
            self.clear(name, payload)
        return len(going)

    def breaker(self, function: str, now: float) -> str | None:
        """Return why no job of this function is taken at all, or None."""
        charges = self._charges.get(function, {}).values()
        open_until = sorted(c.until for c in charges if self.refuses(c) and c.until > now)
        if len(open_until) < BREAKER_PAYLOADS:
            return None
        wait = open_until[-BREAKER_PAYLOADS] - now
        return f"{len(open_until)} different payloads of it killed children; refused for {wait:.0f} s more"


def charges_told(blame: Blame, functions: Iterable[str], hide: Callable[[str], str], now: float) -> Quarantined:
    """Return what an operator is told of the charges that stand: the latest first, as many as fit a frame."""
    latest_first = sorted(blame.listed(now), key=lambda listed: -listed[2].until)
    charges: list[Charged] = []
    taken = 0
    for function, payload, charge in latest_first:
        stack = [hide(line)[:TOLD_CHARS] for line in charge.stack[:TOLD_LINES]] if taken < TOLD_STACKS_BYTES else []
        cause = hide(charge.cause)[:TOLD_CHARS]
        refused = blame.refuses(charge)
        told = Charged(
            function, payload.hex(), charge.deaths, refused, charge.until - now, cause, stack, charge.postmortem
        )
        taken += len(msgspec.msgpack.encode(told))
        if taken > TOLD_BYTES:
            break
        charges.append(told)
    breakers = {name: reason for name in functions if (reason := blame.breaker(name, now))}
    first = dict(list(breakers.items())[:TOLD_BREAKERS])
    return Quarantined(charges, first, len(latest_first) - len(charges))
