"""The route by which a worker has the token of a job that outlives it exchanged for a fresh one."""

from collections.abc import Callable
from time import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gen_worker.orchestrator.http import Json, document_of
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.signing import SignatureError
from gen_worker.orchestrator.tokens import TokenError, Tokens
from gen_worker.orchestrator.transfers import PlaneFiles
from gen_worker.orchestrator.views import Holding

ROUTE = "/v1/worker/capability/renew"
_ASKED_BYTES = 64 << 10


class _Asked(msgspec.Struct):
    request_id: str
    attempt: int
    capability_token: str


class Renewing:
    """Gives out fresh tokens: for the attempt that is live, to the worker that has it."""

    def __init__(
        self,
        files: PlaneFiles,
        auth: Tokens | None,
        holding: Callable[[str], Holding | None],
        *,
        clock: Callable[[], float] = time,
    ) -> None:
        """Without `auth` whoever comes is a worker, and the token that is to be renewed is proof enough."""
        self._files = files
        self._auth = auth
        self._holding = holding
        self._clock = clock

    async def renew(self, request: Request) -> Response:
        """Answer `{capability_token, expires_at_unix}`; raise `Refusal`."""
        worker_id = self._worker(request)
        asked: _Asked = await document_of(request, _Asked, _ASKED_BYTES)
        try:
            shown = self._files.signer.claims(asked.capability_token, self._clock())
        except SignatureError as error:
            raise Refusal(401, "expired" if error.expired else "unauthorized", str(error)) from None
        named = (asked.request_id, asked.attempt)
        if (shown.request_id, shown.attempt) != named:
            raise Refusal(403, "not_its_token", f"the token is not that of attempt {asked.attempt} of this request")
        holding = self._holding(asked.request_id)
        if holding is None or holding.attempt != asked.attempt:
            now = "has ended" if holding is None else f"is at attempt {holding.attempt}"
            text = f"attempt {asked.attempt} of `{asked.request_id}` does not count: the job {now}"
            raise Refusal(409, "stale_attempt", text)
        if worker_id is not None and holding.worker_id != worker_id:
            raise Refusal(403, "not_its_worker", f"`{asked.request_id}` is not with `{worker_id}`")
        token = self._files.capability(*named, shown.owner, holding.function)
        fresh = self._files.signer.claims(token, self._clock())
        return Json({"capability_token": token, "expires_at_unix": fresh.exp})

    def _worker(self, request: Request) -> str | None:
        """Return which worker asks; None where workers show no token. Raises `Refusal` for anybody else."""
        if self._auth is None:
            return None
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refusal(401, "unauthorized", "a worker shows its token here")
        try:
            return self._auth.verify(token.strip()).worker_id
        except TokenError as error:
            raise Refusal(401, "unauthorized", str(error)) from None
