"""Talk to a supervisor from Python: run jobs, read its status, end a job. Over its control socket, blocking or asyncio.

    with Client() as client:
        print(client.call("embed", {"texts": ["a cat"]}))

    async with AsyncClient() as client:
        print(await client.call("embed", {"texts": ["a cat"]}))

Big `bytes` travel in shared memory and are copied once on the way out. So they are on the way back, unless the type
that is asked for holds a `memoryview`: that looks into the shared memory itself, and is right while the client is open.
"""

from typing import TYPE_CHECKING, Any

from gen_worker.client.blocking import Client, Job
from gen_worker.client.conversation import JobError
from gen_worker.rundir import SeveralSupervisors, SupervisorUnreachable

if TYPE_CHECKING:
    from gen_worker.client.asynchronous import AsyncClient, AsyncJob

__all__ = ["AsyncClient", "AsyncJob", "Client", "Job", "JobError", "SeveralSupervisors", "SupervisorUnreachable"]


if not TYPE_CHECKING:  # else a type checker takes every misspelt name for one that is there

    def __getattr__(name: str) -> Any:
        if name not in ("AsyncClient", "AsyncJob"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from gen_worker.client import asynchronous  # asyncio is only for who uses it

        return getattr(asynchronous, name)
