"""What a caller can say of a job, as type checkers see it."""

from typing import TypedDict, TypeVar

from gen_worker.client.handle import OnEvent

Output = TypeVar("Output")


class JobOptions(TypedDict, total=False):
    """What can be said of a job beside its function, its payload and the type of its output."""

    request_id: str | None
    timeout_s: float | None
    tenant: str
    priority: int
    traceparent: str
    on_event: OnEvent | None
