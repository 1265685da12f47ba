"""Whom a control plane gives a fresh token for a job, by a clock that the tests set."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from gen_worker.orchestrator.offered import OfferedModels
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.renewing import Renewing
from gen_worker.orchestrator.signing import Signer
from gen_worker.orchestrator.tokens import Tokens
from gen_worker.orchestrator.transfers import PlaneFiles
from gen_worker.orchestrator.views import Holding

HELD = Holding(2, "worker-1", "f")


@pytest.fixture(scope="module")
def auth(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return Tokens.create(Path(tmp_path_factory.mktemp("keys")))


class Plane:
    """A control plane with one job."""

    def __init__(self, auth: Tokens | None) -> None:
        self.now = 1000.0
        self.held: Holding | None = HELD
        self.signer = Signer(bytes(32))
        self.models = OfferedModels(self.signer)
        self.files = PlaneFiles(self.models, self.signer, clock=lambda: self.now)
        self.files.kind_of = lambda function: "inference"
        self.routes = Renewing(self.files, auth, lambda request_id: self.held, clock=lambda: self.now)
        self.token = self.files.capability("r", 2, "acme", "f")

    def renew(self, worker_token: str = "", **changes: Any) -> dict[str, Any]:
        body = {"request_id": "r", "attempt": 2, "capability_token": self.token, **changes}
        sent = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

        async def receive() -> dict[str, Any]:
            return sent.pop()

        headers = [(b"authorization", f"Bearer {worker_token}".encode())] if worker_token else []
        request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
        found: dict[str, Any] = json.loads(bytes(asyncio.run(self.routes.renew(request)).body))
        return found

    def refused(self, worker_token: str = "", **changes: Any) -> tuple[int, str]:
        with pytest.raises(Refusal) as raised:
            self.renew(worker_token, **changes)
        return raised.value.status, raised.value.code


@pytest.fixture
def plane() -> Iterator[Plane]:
    made = Plane(None)
    yield made
    made.models.close()


@pytest.fixture
def guarded(auth: Tokens) -> Iterator[Plane]:
    made = Plane(auth)
    yield made
    made.models.close()


def test_the_worker_that_has_an_attempt_gets_a_token_that_is_good_for_as_long_as_the_first_was(
    guarded: Plane, auth: Tokens
) -> None:
    guarded.now += 3000
    told = guarded.renew(auth.worker_token("worker-1"))
    claims = guarded.signer.claims(told["capability_token"], guarded.now)
    assert (claims.request_id, claims.attempt, claims.owner) == ("r", 2, "acme")
    assert claims.exp == told["expires_at_unix"] == 4000 + 3600


def test_another_worker_or_nobody_in_particular_gets_none(guarded: Plane, auth: Tokens) -> None:
    assert guarded.refused(auth.worker_token("worker-2")) == (403, "not_its_worker")
    assert guarded.refused() == (401, "unauthorized")
    assert guarded.refused(guarded.token) == (401, "unauthorized"), "a job is no worker"


def test_an_attempt_that_is_over_gets_none(plane: Plane) -> None:
    assert plane.renew()["capability_token"]
    plane.held = Holding(3, "worker-1", "f")
    assert plane.refused() == (409, "stale_attempt")
    plane.held = None
    assert plane.refused() == (409, "stale_attempt")


def test_a_token_that_has_run_out_or_is_another_jobs_is_exchanged_for_none(plane: Plane) -> None:
    assert plane.refused(attempt=3) == (403, "not_its_token")
    assert plane.refused(request_id="s") == (403, "not_its_token")
    assert plane.refused(capability_token=plane.token + "x") == (401, "unauthorized")
    plane.now += 3601
    assert plane.refused() == (401, "expired")
