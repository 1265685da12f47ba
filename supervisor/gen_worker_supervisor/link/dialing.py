"""Decide where and when to dial next, and when to give up, from how connections ended.

Pure: it is told the time and draws from the chance it is given. It never dials, waits or logs.
"""

from collections.abc import Callable
from typing import Final, TypeAlias

import msgspec

from gen_worker.wire.scheduler import PROTOCOL_VERSION
from gen_worker_supervisor.link.target import Target, redirected

ACK_S = 30.0  # from dialing to the orchestrator's HelloAck
LONGEST_PAUSE_S = 30.0
SETTLED_S = 60.0  # a connection that lived so long says that the trouble before it is over
HOPS = 3  # redirects in a row
STEADY_S = 1.0  # a connection that lived so long was no mere redirect
STRIKES = 3
UNHEARD = "Internal error from Core"  # what grpc.aio makes of any status that comes while a message is being written
STRIKES_S = 60.0  # a token is not refused for good before it was refused for so long

Chance: TypeAlias = Callable[[float, float], float]
"""`random.uniform`, or a test's."""


class Ended(msgspec.Struct, frozen=True):
    """How a connection, or the attempt at one, ended."""

    status: str
    """The name of a gRPC status, as `UNAVAILABLE`."""

    details: str = ""
    lived_s: float = 0.0
    """Seconds since it was acknowledged."""

    acknowledged: bool = False

    @property
    def reason(self) -> str:
        """The end in words."""
        return f"{self.status}: {self.details}" if self.details else self.status


class Dial(msgspec.Struct, frozen=True):
    """Dial there after so many seconds."""

    target: Target
    after_s: float = 0.0
    redirect: bool = False


class Fatal(msgspec.Struct, frozen=True):
    """Dialing on would be of no use."""

    message: str
    hint: str


REFUSALS: Final = {
    "protocol_version_mismatch": Fatal(
        f"the orchestrator does not speak version {PROTOCOL_VERSION} of the protocol",
        "run a gen-worker and an orchestrator that fit each other",
    ),
    "worker_id_mismatch": Fatal(
        "the orchestrator knows this token under another worker id",
        "unset `WORKER_ID`, or set it to the one the token was made for",
    ),
    "release_id_mismatch": Fatal(
        "the orchestrator does not take this token for this release", "start the worker with a token of this release"
    ),
    "missing worker identity": Fatal(
        "the orchestrator wants a token that says who the worker is", "set `WORKER_JWT` to the worker's token"
    ),
}
"""What follows from a `FAILED_PRECONDITION` with these words: nothing that another try would change."""


class Dialing:
    """Everything that is remembered from one connection to the next."""

    def __init__(
        self,
        targets: tuple[Target, ...],
        chance: Chance,
        *,
        disconnected_timeout_s: float,
        now: float,
        ack_s: float = ACK_S,
    ) -> None:
        self._targets = targets
        self._chance = chance
        self._timeout_s = disconnected_timeout_s
        self._ack_s = ack_s
        self._alone_since: float | None = now
        self._turn = 0
        self._dialed = targets[0]
        self._pauses = 0
        self._hops = 0
        self._unheard = False  # what the orchestrator said at the end was lost: it is asked once more, at once
        self._strikes = 0
        self._first_strike = now
        self._last_reason = "not dialed yet"

    def first(self) -> Dial:
        """Return the first place to dial."""
        return Dial(self._dialed)

    def ack_within_s(self, now: float) -> float:
        """Return how long the attempt that begins now may take until it is acknowledged."""
        return max(0.0, min(self._ack_s, self._gives_up_at() - now))

    def given_up(self, now: float) -> Fatal | None:
        """Return why there is no use in another attempt, where there was no orchestrator for too long."""
        if now < self._gives_up_at():
            return None
        return Fatal(
            f"no orchestrator for {self._timeout_s:g} s, at last {self._last_reason}",
            "check `ORCHESTRATOR_PUBLIC_ADDR`; `WORKER_DISCONNECTED_TIMEOUT_S=0` waits for ever",
        )

    def acknowledged(self, protocol_version: int) -> Fatal | None:
        """The orchestrator has answered the Hello."""
        if protocol_version != PROTOCOL_VERSION:
            return REFUSALS["protocol_version_mismatch"]
        self._alone_since = None
        self._strikes = 0
        return None

    def refreshed(self) -> None:
        """There is a new token: what was said of the old one no longer counts."""
        self._strikes = 0

    def ended(self, end: Ended, now: float) -> Dial | Fatal:
        """Return what to do after a connection, or the attempt at one."""
        self._last_reason = end.reason
        if end.acknowledged:
            self._alone_since = now
            if end.lived_s >= STEADY_S:
                self._hops = 0
            if end.lived_s >= SETTLED_S:
                self._pauses = 0
        if fatal := self._refusal(end, now) or self.given_up(now):
            return fatal
        if hop := self._hop(end):
            self._dialed = hop
            return Dial(hop, redirect=True)
        unheard, self._unheard = self._unheard, end.acknowledged and end.details == UNHEARD
        if self._unheard and not unheard:
            return Dial(self._dialed)
        if not end.acknowledged:
            self._turn += 1
        self._dialed = self._targets[self._turn % len(self._targets)]
        return Dial(self._dialed, min(self._pause_s(), self._gives_up_at() - now))

    def _refusal(self, end: Ended, now: float) -> Fatal | None:
        if end.status == "FAILED_PRECONDITION":
            for words, fatal in REFUSALS.items():
                if words in end.details:
                    return fatal
        if end.status != "UNAUTHENTICATED":
            if end.status != "UNAVAILABLE":  # where nobody answered, nothing was said of the token
                self._strikes = 0
            return None
        if self._strikes == 0:
            self._first_strike = now
        self._strikes += 1
        if self._strikes < STRIKES or now - self._first_strike < STRIKES_S:
            return None
        return Fatal(
            f"the orchestrator refused the worker's token {self._strikes} times: {end.details or 'no reason given'}",
            "set `WORKER_JWT` to a token that is valid",
        )

    def _gives_up_at(self) -> float:
        if self._alone_since is None or self._timeout_s == 0:
            return float("inf")
        return self._alone_since + self._timeout_s

    def _hop(self, end: Ended) -> Target | None:
        if end.status != "FAILED_PRECONDITION" or self._hops == HOPS:
            return None
        target = redirected(end.details, tls=self._dialed.tls)
        if target is not None:
            self._hops += 1
        return target

    def _pause_s(self) -> float:
        """Return a pause of full jitter; after it, redirects are followed again."""
        longest = min(LONGEST_PAUSE_S, 2.0 ** min(self._pauses, 10))
        self._pauses += 1
        self._hops = 0
        return self._chance(0.0, longest)
