"""Who may speak on a link that other machines can reach: those who show the token.

Pure: takes tokens, addresses and the time; closes nothing itself.
"""

import hashlib
import hmac
from collections import deque

WRONG_A_SECOND = 5  # more wrong tokens from one address shut it out
SHUT_OUT_S = 1.0
KNOWN_ADDRESSES = 4096  # the addresses of which wrong tokens are remembered; the oldest are forgotten first


class Gate:
    """Compares tokens, and shuts out addresses that guess."""

    def __init__(self, token: str) -> None:
        self._digest = _digest(token)
        self._wrong: dict[str, deque[float]] = {}
        self._shut_until: dict[str, float] = {}

    def admits(self, token: str | None) -> bool:
        """Whether this is the token; takes as long for a wrong one as for the right one."""
        return token is not None and hmac.compare_digest(_digest(token), self._digest)

    def note_wrong(self, address: str, now: float) -> bool:
        """Count a wrong or missing token; return whether that shuts its address out."""
        times = self._wrong.pop(address, None) or deque(maxlen=WRONG_A_SECOND + 1)
        times.append(now)
        self._wrong[address] = times
        too_many = len(times) > WRONG_A_SECOND and now - times[0] <= 1.0
        if too_many:
            self._shut_until.pop(address, None)
            self._shut_until[address] = now + SHUT_OUT_S
        for table in (self._wrong, self._shut_until):
            if len(table) > KNOWN_ADDRESSES:
                del table[next(iter(table))]
        return too_many

    def is_shut(self, address: str, now: float) -> bool:
        """Whether nothing that comes from this address is compared with the token."""
        until = self._shut_until.get(address)
        if until is None:
            return False
        if now < until:
            return True
        del self._shut_until[address]
        return False


def _digest(token: str) -> bytes:
    """Return as many bytes for every token, so that comparing them tells nothing of its length either."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
