"""The tokens of jobs that live longer than those: each is exchanged for a fresh one before it runs out.

When that is, is a plain function; the asking is the fetcher's. Checks no signature: a token is the platform's to judge.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from gen_worker.auth import claims
from gen_worker.wire.fetching import Destination, TokenRenewed
from gen_worker_supervisor.core.state import Job

RENEW_AT = 0.8  # of the time that is left of a token when it comes
LOOK_S = 0.5
LEAST_PAUSE_S = 5.0

Ask: TypeAlias = Callable[[Destination, str, Callable[[TokenRenewed], None]], None]
"""Takes whose token is to be renewed, the worker's own token, and what to call with the answer."""


def end_of(token: str, now: float) -> float | None:
    """Return the unix time until which a token that has come now is good; None for one that does not say.

    It is no longer good than from its beginning to its end, whatever this machine's clock says of either.
    """
    told = claims(token)
    end, begin = _time_of(told.get("exp")), _time_of(told.get("iat"))
    if end is None or begin is None or not 0 < begin < end:
        return end
    return min(end, now + end - begin)


def end_of_fresh(token: str, now: float) -> float | None:
    """Return the same of a token that was made now: one that is over as it comes is so by a clock that goes ahead."""
    told = claims(token)
    end, begin = _time_of(told.get("exp")), _time_of(told.get("iat"))
    if end is None or begin is None or not 0 < begin < end or end > now:
        return end_of(token, now)
    return now + end - begin


def _time_of(claim: object) -> float | None:
    if not isinstance(claim, int | float) or isinstance(claim, bool):
        return None
    try:
        return float(claim)
    except OverflowError:  # beyond all time
        return None


def due_at(end: float | None, now: float) -> float:
    """Return when a token that has come now is to be exchanged; one that never ends, never."""
    return float("inf") if end is None else now + RENEW_AT * max(0.0, end - now)


def next_at(end: float | None, now: float) -> float:
    """Return when a token that was exchanged now is to be exchanged again.

    One that is over as it comes, by a clock that differs from the platform's, is not asked about with every look.
    """
    return now + LEAST_PAUSE_S if end is not None and end <= now else due_at(end, now)


def again_at(end: float | None, now: float) -> float:
    """Return when to ask again after a refusal that may pass: never for a token that has run out meanwhile."""
    if end is None or now >= end:
        return float("inf")
    return min(now + max(LEAST_PAUSE_S, (end - now) / 2), end)


@dataclass(slots=True, eq=False)
class _Watched:
    """A job's token: the time of its end, and that of its exchange."""

    end: float | None
    due: float


class Renewals:
    """All tokens of the link's jobs. Asks nothing for a job that ends before its token does."""

    def __init__(
        self,
        ask: Ask,
        *,
        worker_token: Callable[[], str],
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` tells unix times: what a token says is compared with them."""
        self._ask = ask
        self._worker_token = worker_token
        self._warn = warn
        self._clock = clock
        self._watched: dict[int, _Watched] = {}
        self._looked = float("-inf")
        self._cannot: set[str] = set()  # the platforms that renew no tokens

    def look(self, jobs: Iterable[Job]) -> None:
        """Have those tokens renewed whose time has come; `jobs` are all that there are. Call it often."""
        now = self._clock()
        if 0 <= now - self._looked < LOOK_S:
            return
        self._looked = now
        before, self._watched = self._watched, {}
        for job in jobs:
            to = job.destination
            if to is None or not to.token or not to.base_url:
                continue
            watched = before.get(job.number)
            if watched is None:
                end = end_of(to.token, now)
                watched = _Watched(end, due_at(end, now))
            self._watched[job.number] = watched
            if now >= watched.due and to.base_url not in self._cannot:
                self._renew(job, to, watched)

    def _renew(self, job: Job, to: Destination, watched: _Watched) -> None:
        watched.due = float("inf")

        def answered(renewed: TokenRenewed) -> None:
            now = self._clock()
            if renewed.token:
                if job.destination is not None:
                    job.destination = msgspec.structs.replace(job.destination, token=renewed.token)
                watched.end = end_of_fresh(renewed.token, now)
                watched.due = next_at(watched.end, now)
            elif not renewed.known:
                self._say_once(to.base_url)
            else:
                watched.due = again_at(watched.end, now) if renewed.retryable else float("inf")
                if watched.due == float("inf") and self._watched.get(job.number) is watched:
                    text = f"the token of `{job.request_id}` was not renewed, and ends before its job: {renewed.error}"
                    self._warn(text)

        self._ask(to, self._worker_token(), answered)

    def _say_once(self, base_url: str) -> None:
        if base_url not in self._cannot:
            self._cannot.add(base_url)
            text = f"`{base_url}` renews no tokens of jobs: those that outlive theirs go on with what they have"
            self._warn(text)
