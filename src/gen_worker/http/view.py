"""What this process knows of its supervisor: the latest status document, and one made anew for who asks for it."""

import asyncio
import time
from contextlib import aclosing, suppress

import msgspec

from gen_worker.client.asynchronous import AsyncClient
from gen_worker.rundir import SupervisorUnreachable
from gen_worker.wire.status import Status

EVERY_S = 1.0  # between the documents that come by themselves
STALE_S = 5.0  # after so long without one the supervisor is taken to hang
LATE_S = 2.0  # one that comes by itself says how it is, where none can be asked for
FRESH_S = 0.2  # a document so young is given to the next who asks, too
ANSWER_S = 3.0  # for a document that was asked for
AGAIN_S = 0.25  # until the control socket is tried again
MOST_JOBS = 200  # waiting jobs of each queue, in the documents that are asked for


class Document(msgspec.Struct, frozen=True):
    """A status document, and when it came."""

    json: bytes
    at: float

    @property
    def age_s(self) -> float:
        """How long ago it came."""
        return time.monotonic() - self.at

    def status(self) -> Status:
        """Return what it says."""
        return msgspec.json.decode(self.json, type=Status)


class View:
    """A supervisor through its control socket; it costs that one document a second, and a few more for who asks."""

    def __init__(self, control: str) -> None:
        self._control = control
        self._known = asyncio.Event()
        self._latest: Document | None = None
        self._fresh: dict[int, Document] = {}  # by how many waiting jobs are in it
        self._asking: dict[int, asyncio.Task[Document]] = {}

    @property
    def latest(self) -> Document | None:
        """The latest document that is not stale; it lists no waiting jobs."""
        found = self._latest
        return None if found is None or found.age_s > STALE_S else found

    async def follow(self) -> None:
        """Have documents sent for ever, on one connection after another."""
        while True:
            try:
                async with (
                    AsyncClient(self._control, STALE_S, name="http") as client,
                    aclosing(client.watch(EVERY_S, jobs=0)) as documents,
                ):
                    async for document in documents:
                        self._latest = Document(document, time.monotonic())
                        self._known.set()
            except SupervisorUnreachable:
                await asyncio.sleep(AGAIN_S)

    async def begun(self) -> None:
        """Return when the first document has come, or could have."""
        with suppress(TimeoutError):
            async with asyncio.timeout(STALE_S):
                await self._known.wait()

    async def fresh(self, jobs: int) -> Document:
        """Return a document that is at most `FRESH_S` old, with so many waiting jobs of each queue.

        Raises `SupervisorUnreachable` where there is no answer in `ANSWER_S`. All who ask at once get the same one.
        Where the control socket cannot be reached, its file gone, who asks for no jobs gets what came by itself.
        """
        found, asking = self._fresh.get(jobs), self._asking.get(jobs)
        if found is not None and found.age_s <= FRESH_S:
            return found
        if asking is None or asking.done():
            asking = self._asking[jobs] = asyncio.create_task(self._ask(jobs))
        try:
            return await asyncio.shield(asking)
        except SupervisorUnreachable:
            told = self._latest
            if jobs or told is None or told.age_s > LATE_S:
                raise
            return told

    async def _ask(self, jobs: int) -> Document:
        try:
            async with (
                asyncio.timeout(ANSWER_S),
                AsyncClient(self._control, ANSWER_S, name="http") as client,
                aclosing(client.watch(EVERY_S, jobs=jobs)) as documents,
            ):
                found = self._fresh[jobs] = Document(await anext(documents), time.monotonic())
        except TimeoutError:
            raise SupervisorUnreachable(f"the supervisor does not answer within {ANSWER_S:g} s") from None
        return found
