"""Decide where and when an earlier orchestrator is dialed next, and when to give up. Pure."""

import msgspec

from gen_worker.settings import Settings
from gen_worker_supervisor.link.dialing import HOPS, STEADY_S, UNHEARD, Chance, Dial, Ended, Fatal
from gen_worker_supervisor.link.target import Target, redirected

UNHEARD_TRIES = 3  # in a row: the registration is written first, and who refuses it at once may name the leader


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait, and how often to try."""

    delay_s: float = 5.0
    max_delay_s: float = 60.0
    jitter_s: float = 1.0
    attempts: int = 0  # in a row; 0: any number

    @classmethod
    def of(cls, settings: Settings) -> "Patience":
        """Return what settings say."""
        return cls(
            delay_s=settings.reconnect_delay_s,
            max_delay_s=settings.reconnect_max_delay_s,
            jitter_s=settings.reconnect_jitter_s,
            attempts=settings.max_reconnect_attempts,
        )


class EarlierDialing:
    """Everything that is remembered from one connection to the next."""

    def __init__(self, targets: tuple[Target, ...], patience: Patience, chance: Chance) -> None:
        self._targets = targets
        self._patience = patience
        self._chance = chance
        self._turn = 0
        self._dialed = targets[0]
        self._hops = 0
        self._failed = 0  # attempts in a row, since one was answered
        self._pauses = 0
        self._unheard = 0  # in a row

    def first(self) -> Dial:
        """Return the first place to dial."""
        return Dial(self._dialed)

    def ended(self, end: Ended) -> Dial | Fatal:
        """Return what to do after a connection, or the attempt at one."""
        if hop := self._hop(end):
            self._dialed = hop
            return Dial(hop, redirect=True)
        self._unheard = self._unheard + 1 if end.details == UNHEARD else 0
        if 0 < self._unheard <= UNHEARD_TRIES:
            return Dial(self._dialed)
        if end.acknowledged:
            self._failed = self._pauses = self._turn = 0
        self._failed += 1
        if 0 < self._patience.attempts < self._failed:
            return Fatal(
                f"no orchestrator after {self._patience.attempts} attempts, at last {end.reason}",
                "check `SCHEDULER_ADDR`; `MAX_RECONNECT_ATTEMPTS=0` tries for ever",
            )
        if end.acknowledged:
            self._dialed = self._targets[0]
            return Dial(self._dialed, self._pause_s())
        self._turn += 1
        self._dialed = self._targets[self._turn % len(self._targets)]
        return Dial(self._dialed, 0.0 if self._turn % len(self._targets) else self._pause_s())

    def _hop(self, end: Ended) -> Target | None:
        if end.lived_s >= STEADY_S:
            self._hops = 0
        if end.status != "FAILED_PRECONDITION" or self._hops == HOPS:
            return None
        target = redirected(end.details, tls=self._dialed.tls)
        if target is not None:
            self._hops += 1
        return target

    def _pause_s(self) -> float:
        """Return a pause: twice the one before; after it, redirects are followed again."""
        self._pauses += 1
        self._hops = 0
        longest = min(self._patience.delay_s * 2.0 ** min(self._pauses - 1, 30), self._patience.max_delay_s)
        return longest + self._chance(0.0, self._patience.jitter_s)
