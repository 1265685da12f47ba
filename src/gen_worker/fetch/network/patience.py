"""How often, how soon and for how long something is tried again."""

import random
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from ssl import SSLCertVerificationError

import msgspec

PASSING = (408, 429)  # besides 5xx: the statuses that another try may not meet


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """All times and limits of a connection and of tries."""

    tries: int = 30
    """Failures in a row, with nothing gained between them, before it is given up."""

    seconds: float = 3600.0
    """The time after which nothing is tried again."""

    first_delay_s: float = 0.5
    longest_delay_s: float = 30.0
    longest_retry_after_s: float = 60.0
    """What a server may ask for at most."""

    connect_s: float = 10.0
    """For each address of a host, and for a handshake."""

    head_s: float = 60.0
    """In which an answer's head must have come whole."""

    quiet_s: float = 30.0
    """Without a byte for so long, a connection is given up."""

    slow_bytes_per_s: int = 64 << 10
    """With less than that over `slow_s`, it is given up, too."""

    slow_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random


FOR_FILES = Patience()
FOR_QUESTIONS = Patience(tries=8, seconds=300.0)  # somebody may be waiting: about half a minute when nothing answers


class HttpError(Exception):
    """An answer of 400 or above. The text never has a URL's query."""

    def __init__(self, status: int, headers: dict[str, str], message: str, *, redirected: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        """By lower-case name."""
        self.redirected = redirected
        """Whether another origin than the one that was asked gave this answer."""


class RedirectedError(OSError):
    """Another origin than the one that was asked, and that redirects there, cannot be reached; `reason` says why."""

    def __init__(self, reason: OSError | HTTPException) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Tries:
    """The failures of one piece of work in a row. Any thread may count them."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._lock = threading.Lock()
        self.gained()

    def gained(self) -> None:
        """Something came of it: begin to count anew."""
        with self._lock:
            self._failures = 0
            self._since = self._patience.clock()

    def failed(self, error: Exception) -> float:
        """Return how long to wait before the next try; raise the error itself when there shall be none."""
        patience = self._patience
        with self._lock:
            self._failures += 1
            failures, since = self._failures, self._since
        if not passes(error) or failures >= patience.tries or patience.clock() - since >= patience.seconds:
            raise error
        return max(delay(patience, failures), min(retry_after(error), patience.longest_retry_after_s))


def passes(error: Exception) -> bool:
    """Whether another try may not meet this error."""
    if isinstance(error, HttpError):
        return error.status >= 500 or error.status in PASSING
    if isinstance(error, RedirectedError):
        return passes(error.reason)
    return isinstance(error, (OSError, HTTPException)) and not isinstance(error, SSLCertVerificationError)


def delay(patience: Patience, failures: int) -> float:
    """Return the seconds to wait after so many failures: anything up to a bound that doubles ("full jitter")."""
    return patience.chance() * min(patience.longest_delay_s, patience.first_delay_s * 2.0 ** min(failures - 1, 30))


def retry_after(error: Exception) -> float:
    """Return the seconds that a server asks to be left alone, as a number or a date; 0 when it asks for nothing."""
    text = error.headers.get("retry-after", "") if isinstance(error, HttpError) else ""
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0
