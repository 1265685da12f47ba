"""What jobs ask of their platforms, as the supervisor knows it: who waits for which answer.

Passes a call on with its job's address and token, which no child ever has, and the answer back. Reads neither.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from gen_worker.wire.channel import close_all
from gen_worker.wire.fetching import (
    Abort,
    CallPlatform,
    Destination,
    EndPlatform,
    FetchReport,
    PlatformAnswered,
    RenewToken,
    TokenRenewed,
    with_token,
)
from gen_worker.wire.messages import Call, Called
from gen_worker_supervisor.files.fetching import FetcherProcess

TRIES = 3  # fetchers that may die of one call
OF_ONE_JOB = 16  # calls at once: each holds descriptors of this process
TEXT_CHARS = 2048

Tell = Callable[[Called, list[int]], None]
"""Takes an answer and its descriptors, which stay the caller's."""


@dataclass(slots=True, eq=False)
class _UnderWay:
    call: Call
    order: CallPlatform
    descriptors: list[int]
    tell: Tell
    losses: int = 0


@dataclass(slots=True, eq=False)
class _Renewal:
    order: RenewToken
    then: Callable[[TokenRenewed], None]
    losses: int = 0


class PlatformCalls:
    """Every call that is under way."""

    def __init__(self, fetcher: Callable[[], FetcherProcess]) -> None:
        """Order from the fetcher that this returns; it is asked for when there is something to ask."""
        self._fetcher = fetcher
        self._under_way: dict[int, _UnderWay] = {}
        self._asked: dict[int, Destination] = {}  # by the job's number, of the jobs that live
        self._renewals: dict[int, _Renewal] = {}
        self._number = 0
        self.local = Destination("", "", "", 0)
        """Whose platform jobs ask that nobody sent from one."""
        self.on_renewed: Callable[[Destination, str], None] = lambda destination, token: None
        """Hears of each job that has a fresh token."""

    def call(self, call: Call, destination: Destination | None, descriptors: list[int], tell: Tell) -> None:
        """Have a job's call made and pass the answer to `tell`, once; takes the descriptors over."""
        expected = int(not call.arguments) + int(call.has_file)
        of_job = sum(each.call.job == call.job for each in self._under_way.values())
        if len(descriptors) != expected or of_job >= OF_ONE_JOB:
            close_all(descriptors)
            text = f"a job asks at most {OF_ONE_JOB} things at once" if of_job >= OF_ONE_JOB else "no file came with it"
            tell(Called(call.job, call.token, error=text, failure="invalid"), [])
            return
        self._number += 1
        whose = self._of_local(call.job) if destination is None else destination
        order = CallPlatform(self._number, whose, call.arguments, not call.arguments, call.has_file)
        self._under_way[self._number] = under_way = _UnderWay(call, order, descriptors, tell)
        self._asked[call.job] = whose
        self._order(under_way)

    def begins(self, job: int, destination: Destination) -> None:
        """A job begins something at its platform without a call: what it does not finish is given up at its end."""
        self._asked[job] = destination

    def renew(self, destination: Destination, worker_token: str, then: Callable[[TokenRenewed], None]) -> None:
        """Have a job's token exchanged for a fresh one, and pass what came of it to `then`, later, once."""
        self._number += 1
        order = RenewToken(self._number, destination, worker_token)
        self._renewals[self._number] = _Renewal(order, then)
        self._fetcher().send(order)

    def forget(self, job: int) -> None:
        """A job has ended: nobody reads what it asked for, and what it began is given up."""
        destination = self._asked.pop(job, None)
        if destination is None:
            return
        for number, under_way in list(self._under_way.items()):
            if under_way.call.job == job:
                self._fetcher().send(Abort(number, "call"))
                self._end(PlatformAnswered(number, error="the job has ended", failure="canceled"), [])
        if destination.token:
            self._fetcher().send(EndPlatform(destination))

    def on_report(self, report: FetchReport, descriptors: list[int]) -> None:
        """Take what the fetcher says, as far as it answers a call; the descriptors stay the caller's."""
        if isinstance(report, PlatformAnswered):
            self._end(report, descriptors)
        elif isinstance(report, TokenRenewed) and (renewal := self._renewals.pop(report.number, None)) is not None:
            self._renewed(renewal, report)

    def _renewed(self, renewal: _Renewal, report: TokenRenewed) -> None:
        """Have what is under way begin with the fresh token where it begins again, and tell who asked for it."""
        to = renewal.order.destination
        if report.token:
            for under_way in self._under_way.values():
                under_way.order.destination = with_token(under_way.order.destination, to, report.token)
            self.on_renewed(to, report.token)
        renewal.then(report)

    def on_lost(self) -> None:
        """The fetcher has died: have the next one make the calls that it was at."""
        for number, renewal in list(self._renewals.items()):
            renewal.losses += 1
            if renewal.losses < TRIES:
                self._fetcher().send(renewal.order)
            else:
                error = f"{TRIES} fetchers died while they were at it"
                self.on_report(TokenRenewed(number, error=error, retryable=True), [])
        for number, under_way in list(self._under_way.items()):
            under_way.losses += 1
            if under_way.losses < TRIES:
                self._order(under_way)
            else:
                text = f"`{under_way.call.verb:.40}` was not done: {TRIES} fetchers died while they were at it"
                self._end(PlatformAnswered(number, error=text, failure="transfer", retryable=True), [])

    def close(self) -> None:
        """Let go of every file; calls nobody back."""
        for under_way in self._under_way.values():
            close_all(under_way.descriptors)
        self._under_way.clear()
        self._renewals.clear()

    def _of_local(self, job: int) -> Destination:
        """Return the platform of a job that nobody sent from one; what it begins there is its own."""
        return msgspec.structs.replace(self.local, request_id=f"{self.local.request_id or 'local'}-{job}")

    def _order(self, under_way: _UnderWay) -> None:
        try:
            self._fetcher().send(under_way.order, under_way.descriptors)
        except OSError as error:  # no descriptor is left
            text = f"`{under_way.call.verb:.40}` was not done: {(error.strerror or str(error)).lower()}"
            failed = PlatformAnswered(under_way.order.number, error=text, failure="transfer", retryable=True)
            asyncio.get_running_loop().call_soon(self._end, failed, [])

    def _end(self, report: PlatformAnswered, descriptors: list[int]) -> None:
        under_way = self._under_way.pop(report.number, None)
        if under_way is None:
            return
        close_all(under_way.descriptors)
        job, token, error = under_way.call.job, under_way.call.token, report.error[:TEXT_CHARS]
        answer = Called(
            job, token, report.value, report.attached, error, report.failure, report.retryable, report.status
        )
        with suppress(OSError):  # no descriptor is left to keep them in until the child has room
            under_way.tell(answer, descriptors)
