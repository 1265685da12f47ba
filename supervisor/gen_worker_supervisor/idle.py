"""When a server has had nothing to do for as long as it was told to wait. Pure."""

LOOKS = 10  # while one timeout passes: it may end a tenth of it late
LONGEST_WAIT_S = 1.0


class IdleClock:
    """Knows since when there has been no request, by looking from time to time; nobody has to tell it of each."""

    def __init__(self, limit_s: float, now: float) -> None:
        self.limit_s = limit_s
        self.look_every_s = min(limit_s / LOOKS, LONGEST_WAIT_S)
        self._since = now
        self._requests = 0

    def has_passed(self, *, requests: int, live: int, now: float) -> bool:
        """Whether the limit has passed with no request; `requests` have come so far, `live` of them have no answer."""
        if live or requests != self._requests:
            self._requests = requests
            self._since = now
        return now - self._since >= self.limit_s
