"""When the tokens of jobs are renewed, by a clock that the tests set."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from gen_worker.orchestrator.offered import OfferedModels
from gen_worker.orchestrator.signing import Signer
from gen_worker.orchestrator.transfers import PlaneFiles
from gen_worker.wire.fetching import Destination, TokenRenewed
from gen_worker_supervisor.core.state import Job
from gen_worker_supervisor.link.renewals import LEAST_PAUSE_S, LOOK_S, Renewals, again_at, due_at, end_of
from tests.pure.host import Host

HOUR = 3600.0
PLATFORM = "https://platform"


def token(**claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{body}.c2ln"


class Watching:
    """One job, its token, and what was asked of its platform."""

    def __init__(self, first: str, to: str = PLATFORM) -> None:
        self.now = 1000.0
        self.warnings: list[str] = []
        self.asked: list[tuple[Destination, str]] = []
        self._answers: list[Callable[[TokenRenewed], None]] = []
        self.renewals = Renewals(
            self._ask, worker_token=lambda: "worker's", warn=self.warnings.append, clock=lambda: self.now
        )
        self.job: Job = Host().submit()
        self.job.destination = Destination(to, first, "r", 1)

    def _ask(self, to: Destination, worker_token: str, then: Callable[[TokenRenewed], None]) -> None:
        self.asked.append((to, worker_token))
        self._answers.append(then)

    def at(self, now: float, *, jobs: list[Job] | None = None) -> int:
        """Look at a time; return how often was asked so far."""
        self.now = now
        self.renewals.look([self.job] if jobs is None else jobs)
        return len(self.asked)

    def answer(self, **fields: Any) -> None:
        self._answers[-1](TokenRenewed(1, **fields))


def test_a_token_says_until_when_it_is_good_or_nothing() -> None:
    assert end_of(token(exp=5000), 0.0) == 5000.0
    assert [
        end_of(each, 0.0) for each in (token(), token(exp="soon"), token(exp=True), token(exp=10**400), "opaque", "")
    ] == [None] * 6
    assert due_at(None, 0.0) == again_at(None, 0.0) == float("inf")


def test_a_token_is_renewed_before_it_runs_out_and_so_is_the_next_one() -> None:
    watching = Watching(token(exp=1000 + HOUR))
    assert watching.at(1000) == 0
    assert watching.at(1000 + 0.79 * HOUR) == 0
    assert watching.at(1000 + 0.81 * HOUR) == 1
    assert watching.asked[0][1] == "worker's"
    assert watching.at(1000 + 0.9 * HOUR) == 1, "one question at a time"
    fresh = token(exp=1000 + 2 * HOUR)
    watching.answer(token=fresh)
    assert watching.job.destination is not None
    assert watching.job.destination.token == fresh
    assert watching.at(1000 + 1.5 * HOUR) == 1
    assert watching.at(1000 + 1.8 * HOUR) == 2
    assert watching.asked[1][0].token == fresh


def test_nothing_is_asked_for_a_job_that_ends_before_its_token_or_whose_token_never_ends() -> None:
    watching = Watching(token(exp=1000 + HOUR))
    watching.at(1000)
    assert watching.at(1000 + HOUR, jobs=[]) == 0
    assert Watching("opaque").at(10**9) == 0
    assert Watching(token(exp=0), to="").at(10**9) == 0, "a job without a platform"


def test_a_platform_that_renews_no_tokens_is_asked_once_and_the_operator_told_once() -> None:
    watching = Watching(token(exp=1100))
    watching.at(1000)
    watching.at(1090)
    watching.answer(error="404", known=False)
    other: Job = Host().submit()
    other.destination = Destination(PLATFORM, token(exp=1000), "s", 1)
    assert watching.at(1099, jobs=[watching.job, other]) == 1
    assert watching.warnings == [
        "`https://platform` renews no tokens of jobs: those that outlive theirs go on with what they have"
    ]
    assert watching.job.destination is not None
    assert watching.job.destination.token == token(exp=1100)


def test_a_refusal_that_may_pass_is_asked_about_again_until_the_token_has_run_out() -> None:
    watching = Watching(token(exp=1100))
    watching.at(1000)
    watching.at(1080)
    watching.answer(error="503", retryable=True)
    assert watching.at(1081) == 1
    assert watching.at(1090) == 2
    watching.answer(error="503", retryable=True)
    assert watching.at(1095) == 3
    watching.at(1101)
    watching.answer(error="503", retryable=True)
    assert watching.at(2000) == 3
    assert watching.warnings == [
        f"the token of `{watching.job.request_id}` was not renewed, and ends before its job: 503"
    ]


def test_a_platform_whose_clock_is_behind_is_not_asked_with_every_look() -> None:
    watching = Watching(token(exp=500))
    assert watching.at(1000) == 1
    watching.answer(token=token(exp=510))
    assert watching.at(1000 + 0.9 * LEAST_PAUSE_S) == 1
    assert watching.at(1000 + 1.1 * LEAST_PAUSE_S) == 2


@pytest.mark.parametrize("off_s", [-3 * HOUR, -HOUR / 2, 0.0, HOUR / 2])
def test_a_token_that_says_when_it_was_made_is_renewed_in_time_by_any_clock(off_s: float) -> None:
    now = 10**6 + off_s  # by this machine's clock, as the platform's is at 10**6
    watching = Watching(token(iat=10**6, exp=10**6 + HOUR))
    watching.at(now)
    asked = next(second for second in range(0, int(2 * HOUR), 30) if watching.at(now + second))
    assert asked < 0.85 * HOUR, "before it has run out on the platform"
    made, came = 10**6 + asked, now + asked
    watching.answer(token=token(iat=made, exp=made + HOUR))
    again = next(second for second in range(0, int(2 * HOUR), 30) if watching.at(came + second) == 2)
    assert again < 0.85 * HOUR


def test_a_clock_that_goes_ahead_has_a_platform_asked_once_and_not_for_ever() -> None:
    watching = Watching(token(iat=1000, exp=1000 + HOUR))
    ahead = 1000 + 5 * HOUR
    assert watching.at(ahead) == 1
    watching.answer(token=token(iat=1000, exp=1000 + HOUR))
    assert watching.at(ahead + 0.79 * HOUR) == 1
    assert watching.at(ahead + 0.81 * HOUR) == 2


@pytest.mark.parametrize("begin", [True, "now", 0, -5, 5000, 10**400])
def test_a_token_that_says_nothing_sensible_of_its_beginning_is_good_until_its_end(begin: object) -> None:
    assert end_of(token(iat=begin, exp=5000), 1000.0) == 5000.0


def test_a_refusal_for_good_is_told_and_of_a_job_that_has_ended_meanwhile_not_even_that() -> None:
    watching = Watching(token(exp=1100))
    watching.at(1000)
    watching.at(1080)
    watching.answer(error="409 `stale_attempt`")
    assert len(watching.warnings) == 1
    watching = Watching(token(exp=1100))
    watching.at(1000)
    watching.at(1080)
    watching.at(1081, jobs=[])
    watching.answer(error="409 `stale_attempt`")
    assert not watching.warnings


def test_jobs_are_looked_at_no_more_often_than_needed() -> None:
    watching = Watching(token(exp=1000))
    assert watching.at(1000.0) == 1
    watching.answer(token=token(exp=1000.1))
    assert watching.at(1000.0 + LOOK_S / 2) == 1
    assert watching.at(1000.0 + LOOK_S) == 2


@pytest.mark.parametrize(
    ("kind", "hours"), [("inference", 1), ("conversion", 24), ("dataset", 24), ("training", 7 * 24), ("", 7 * 24)]
)
def test_a_jobs_token_is_good_for_as_long_as_work_of_its_kind_may_take(kind: str, hours: int) -> None:
    signer = Signer(bytes(32))
    models = OfferedModels(signer)
    try:
        files = PlaneFiles(models, signer, clock=lambda: 1000.0)
        files.kind_of = {"f": kind}.__getitem__
        claims = signer.claims(files.capability("r", 2, "acme", "f"), 1000.0)
        assert (claims.request_id, claims.attempt, claims.owner, claims.exp) == ("r", 2, "acme", 1000 + hours * 3600)
        assert claims.iat == 1000, "so that a worker whose clock differs knows for how long"
    finally:
        models.close()
