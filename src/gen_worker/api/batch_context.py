"""What the handler of a batch is given besides the payloads."""

from collections.abc import Sequence
from typing import Any, Literal, NoReturn

from gen_worker.api.context import RequestContext
from gen_worker.api.errors import CanceledError
from gen_worker.wire.messages import Level


class BatchContext(RequestContext):
    """The requests of one batch, as their handler sees them: what is told here is told to all of them.

    `requests` has the context of each, in the order of the payloads: files are saved there, for the one they belong to.
    """

    __slots__ = ("requests",)

    def __init__(self, requests: Sequence[RequestContext]) -> None:
        first = requests[0]
        super().__init__(request_id=first.request_id, models=first.models or None, traceparent=first._traceparent)
        self.requests = tuple(requests)
        ends = [request._ends_at for request in requests if request._ends_at is not None]
        self._ends_at = min(ends, default=None)

    @property
    def cancelled(self) -> bool:
        """Whether every request of the batch was asked to end."""
        return all(request.cancelled for request in self.requests)

    def raise_if_cancelled(self, message: str = "request cancelled") -> None:
        """Raise `CanceledError` once every request of the batch was asked to end."""
        if self.cancelled:
            raise CanceledError(message)

    def progress(self, progress: float, stage: str | None = None) -> None:
        """Tell every caller how far the batch is, from 0 to 1, and what it is doing."""
        for request in self.requests:
            request.progress(progress, stage)

    def _stepped(self, done: int, total: int) -> None:
        for request in self.requests:
            request._stepped(done, total)

    def log(self, message: str, level: Level | Literal["warn"] = "info") -> None:
        """Tell every caller something."""
        for request in self.requests:
            request.log(message, level)

    def _keep(self, ref: str, **content: Any) -> NoReturn:
        raise RuntimeError(f"`{ref}` belongs to one request of the batch: save it with `ctx.requests[index]`")
