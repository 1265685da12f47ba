"""The client for asyncio programs: any number of tasks of one loop on one connection. Nothing here holds the loop.

The one module of the SDK that loads asyncio.
"""

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, Unpack, overload

import msgspec

from gen_worker.client.conversation import Answer, Asked, Conversation, Errand, JobError, Question, RemoteJob
from gen_worker.client.handle import Handle, OnEvent
from gen_worker.client.link import connected, gone, seconds, silent
from gen_worker.client.options import JobOptions, Output
from gen_worker.rundir import SupervisorUnreachable
from gen_worker.wire import control
from gen_worker.wire.attachments import Outgoing
from gen_worker.wire.channel import ProtocolError, close_all, receive_packet, send_packet
from gen_worker.wire.messages import FRAME_LIMIT, Level
from gen_worker.wire.regions import RegionError
from gen_worker.wire.status import Status
from gen_worker.wire.values import pieces, total_length

Made = TypeVar("Made")

COPIED_ASIDE = (
    4 << 20
)  # bytes of a payload that a thread copies instead of the loop: they take it a millisecond or more
PACKETS_A_TURN = 64
LAST_WORDS_S = 1.0  # for what is still to be said when the client is closed


class AsyncClient:
    """A connection to one supervisor, for any number of tasks of one event loop; `async with` opens it.

    `path` is a control socket, or what `serve` listens on; without one the only supervisor alive is
    meant, or of several the one that serves the current folder.
    Entering raises `SupervisorUnreachable` when none answers, `SeveralSupervisors` when there are several.
    A task that is canceled while it waits for a job cancels the job. Long payloads are copied in a thread; outputs are
    decoded by the loop, which 256 MiB of `bytes` hold for about 60 ms: where they are long, ask for a `memoryview`.
    """

    supervisor: control.Opened

    def __init__(self, path: str | Path | None = None, connect_timeout_s: float = 10.0, *, name: str = "") -> None:
        self._path = path
        self._timeout_s = seconds(connect_timeout_s)
        self._prefix = os.urandom(4).hex()
        self._numbers = itertools.count(1)
        self._talk = Conversation(name or f"python {os.getpid()}")
        self._waiting: dict[Errand, list[asyncio.Future[None]]] = {}
        self._unsent: list[asyncio.Future[None]] = []  # who waits until everything is sent
        self._buffer = memoryview(bytearray(FRAME_LIMIT + 1))
        self._sock: socket.socket | None = None
        self._writing = False

    async def __aenter__(self) -> "AsyncClient":
        self._loop = asyncio.get_running_loop()
        self._sock = await _aside(lambda: connected(self._path, self._timeout_s), socket.socket.close)
        try:
            self._sock.setblocking(False)
            self._loop.add_reader(self._sock, self._on_readable)
            self._flush()
            self.supervisor = await self._answer(self._talk.opening, self._timeout_s)
        except TimeoutError:
            await self.close()
            assert self._timeout_s is not None
            raise silent(self._timeout_s) from None
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; tasks that wait get `SupervisorUnreachable`.

        Streams under way are canceled; other jobs go on, and `submit` with the same `request_id` on a new connection
        gets what became of them.
        """
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await self._all_sent()
        finally:
            self._end(SupervisorUnreachable("this client was closed"))

    # --- jobs ---------------------------------------------------------------------------------------------------------

    @overload
    async def call(
        self, function: str, payload: object = ..., *, type: type[Output], **options: Unpack[JobOptions]
    ) -> Output: ...

    @overload
    async def call(
        self, function: str, payload: object = ..., *, type: Any = ..., **options: Unpack[JobOptions]
    ) -> Any: ...

    async def call(
        self,
        function: str,
        payload: object = {},
        *,
        type: Any = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
        tenant: str = "",
        priority: int = 0,
        traceparent: str = "",
        on_event: OnEvent | None = None,
    ) -> Any:
        """Run a function and return its output, decoded as `type`, else as plain values; raise `JobError`.

        Of a function that streams it is the list of its items, each decoded as `type`; `stream` has them typed so.
        `timeout_s` is the job's deadline, time in the queue included; the supervisor holds it. `inf` is none.
        Among the waiting jobs of a function a higher `priority`, -100 to 100, goes first, and tenants take turns.
        `traceparent` is of the caller's span, as W3C Trace Context writes it: the job's span is in the same trace.
        """
        job = await self.submit(
            function,
            payload,
            type=type,
            request_id=request_id,
            timeout_s=timeout_s,
            tenant=tenant,
            priority=priority,
            traceparent=traceparent,
            on_event=on_event,
        )
        return await job.result()

    @overload
    def stream(
        self, function: str, payload: object = ..., *, type: type[Output], **options: Unpack[JobOptions]
    ) -> AsyncGenerator[Output, None]: ...

    @overload
    def stream(
        self, function: str, payload: object = ..., *, type: Any = ..., **options: Unpack[JobOptions]
    ) -> AsyncGenerator[Any, None]: ...

    async def stream(
        self,
        function: str,
        payload: object = {},
        *,
        type: Any = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
        tenant: str = "",
        priority: int = 0,
        traceparent: str = "",
        on_event: OnEvent | None = None,
    ) -> AsyncGenerator[Any, None]:
        """Run a function that streams and return its items as they come; see `AsyncJob.items`.

        Of a function that does not stream the only item is its output. The job starts with the first item asked for.
        """
        job = await self.submit(
            function,
            payload,
            type=type,
            request_id=request_id,
            timeout_s=timeout_s,
            tenant=tenant,
            priority=priority,
            traceparent=traceparent,
            on_event=on_event,
            stream=True,
        )
        async with aclosing(job.items()) as items:
            async for item in items:
                yield item

    async def submit(
        self,
        function: str,
        payload: object = {},
        *,
        type: Any = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
        tenant: str = "",
        priority: int = 0,
        traceparent: str = "",
        on_event: OnEvent | None = None,
        stream: bool = False,
    ) -> "AsyncJob":
        """Start a job and return when it is sent; many can be under way.

        A `request_id` that the supervisor knows already means that job: its result comes here, nothing runs twice.
        `on_event` is called by the task that waits for the job. A thread copies a payload of several megabytes.
        """
        timeout_s = seconds(timeout_s)
        if request_id is None:
            request_id = f"{self._prefix}-{next(self._numbers)}"
        packed = await self._pack(payload)
        try:
            remote = self._talk.submit(
                request_id,
                function,
                packed,
                stream=stream,
                events=on_event is not None,
                timeout_s=timeout_s,
                tenant=tenant,
                priority=priority,
                traceparent=traceparent,
            )
        except BaseException:
            self._talk.outbox.recycle(packed)
            raise
        self._flush()
        try:
            await self._all_sent()
        except asyncio.CancelledError:
            self._abandon(remote)
            raise
        return AsyncJob(self, remote, type, on_event, stream)

    async def _pack(self, payload: object) -> Outgoing:
        outbox = self._talk.outbox
        parts = pieces(payload)
        try:
            if total_length(parts) < COPIED_ASIDE:
                return outbox.place(parts)
            return await _aside(lambda: outbox.place(parts), outbox.recycle)
        except RegionError as error:
            raise JobError("usage", f"the payload cannot be sent: {error}") from error

    def _more(self, remote: RemoteJob, items: int) -> None:
        self._talk.more(remote, items)
        self._flush()

    def _settled(self, remote: RemoteJob, usable: bool) -> None:
        (self._talk.taken if usable else self._talk.spoil)(remote)
        self._flush()

    def _abandon(self, remote: RemoteJob) -> None:
        self._talk.abandon(remote)
        self._flush()

    # --- the operator's verbs -----------------------------------------------------------------------------------------

    async def cancel(self, request_id: str, timeout_s: float | None = None) -> bool:
        """Ask a job to end and wait until it has; return whether there was one and it ended by this."""
        return (await self._ask(control.Cancel(request_id), control.Canceled, timeout_s)).canceled

    async def kill(self, request_id: str, now: bool = False, timeout_s: float | None = None) -> control.Killed:
        """End a job whatever it does and wait until it has; `now` gives it no time to end by itself."""
        return await self._ask(control.Kill(request_id, now), control.Killed, timeout_s)

    async def restart(self, device: str, now: bool = False, timeout_s: float | None = None) -> control.Restarted:
        """Replace a device's child and wait until the next one is ready; `now` does not wait for its jobs."""
        return await self._ask(control.Restart(device, now), control.Restarted, timeout_s)

    async def drain(self, device: str = "", *, undo: bool = False, timeout_s: float | None = None) -> control.Drained:
        """Give a device, or with none each, no more jobs, and wait until none runs there; `undo` ends that."""
        return await self._ask(control.Drain(device, undo), control.Drained, timeout_s)

    async def stack(self, device: str, timeout_s: float | None = None) -> control.Stacked:
        """Return where each thread of a device's child is, whatever it does."""
        return await self._ask(control.Stack(device), control.Stacked, timeout_s)

    async def model(
        self,
        operation: Literal["load", "unload", "pin", "unpin"],
        ref: str,
        device: str = "",
        timeout_s: float | None = None,
    ) -> control.Modeled:
        """Load, unload, pin or unpin a model on a device; with none, load it where there is most room, else on all."""
        return await self._ask(control.Model(operation, ref, device), control.Modeled, timeout_s)

    async def read(
        self,
        after: int = 0,
        *,
        wait_s: float = 0.0,
        events: bool = False,
        device: str = "",
        request_id: str = "",
        level: Level = "debug",
        limit: int = 500,
    ) -> control.Lines:
        """Return the lines of the log after one that was read; wait so long for the first. One call at a time."""
        frame = control.Read(after, round(wait_s * 1000), events, device, request_id, level, limit)
        return await self._ask(frame, control.Lines, None)

    async def quarantined(self) -> control.Quarantined:
        """Return which payloads are charged with children's deaths, and which functions are not served for that."""
        return await self._ask(control.Quarantine(), control.Quarantined, None)

    async def pardon(self, function: str = "", digest: str = "") -> int:
        """Forget charges: of one payload, of one function, or all; return how many there were."""
        return (await self._ask(control.Pardon(function, digest), control.Pardoned, None)).count

    async def list(self) -> Status:
        """Return what the supervisor's devices and jobs are doing."""
        return msgspec.json.decode(await self.list_json(), type=Status)

    async def list_json(self) -> bytes:
        """Return the status document as the supervisor wrote it."""
        document = (await self._ask(control.List(), control.Listed, None)).document
        assert isinstance(document, bytes)  # the conversation opened it
        return document

    async def watch(self, every_s: float = 1.0, *, jobs: int = 200) -> AsyncGenerator[bytes, None]:
        """Yield the status document, as JSON, again and again; one subscription each connection.

        Who is slow misses documents and gets the latest. Of each queue so many waiting `jobs` are in it.
        Raises `SupervisorUnreachable` once the supervisor has gone.
        """
        documents = self._talk.watch(max(100, round(every_s * 1000)), jobs)
        try:
            while True:
                self._flush()
                await self._wait(documents)
                yield documents.take()
        finally:
            self._talk.watched(documents)
            self._flush()

    async def _ask(self, frame: Asked, kind: type[Answer], timeout_s: float | None) -> Answer:
        timeout_s = seconds(timeout_s)
        question = self._talk.ask(frame, kind)
        self._flush()
        return await self._answer(question, timeout_s)

    async def _answer(self, question: Question[Answer], timeout_s: float | None) -> Answer:
        async with asyncio.timeout(timeout_s):
            await self._wait(question)
        if question.answer is None:
            assert question.error is not None
            raise question.error
        return question.answer

    # --- frames -------------------------------------------------------------------------------------------------------

    async def _wait(self, errand: Errand, deadline: float | None = None) -> None:
        """Return when there is news of an errand; raise `TimeoutError` when the loop's time passes the deadline."""
        while not errand.has_news():
            if deadline is not None and self._loop.time() >= deadline:
                raise TimeoutError("no answer in time")
            woken = self._loop.create_future()
            self._waiting.setdefault(errand, []).append(woken)
            alarm = None if deadline is None else self._loop.call_at(deadline, _wake, woken)
            try:
                await woken
            finally:
                self._leave(errand, woken)
                if alarm is not None:
                    alarm.cancel()

    def _leave(self, errand: Errand, woken: asyncio.Future[None]) -> None:
        futures = self._waiting.get(errand, [])
        if woken in futures:
            futures.remove(woken)
            if not futures:
                del self._waiting[errand]

    def _on_readable(self) -> None:
        assert self._sock is not None
        for _ in range(PACKETS_A_TURN):
            try:
                length, descriptors = receive_packet(self._sock, self._buffer)
            except BlockingIOError:
                break
            except (OSError, ProtocolError) as error:
                return self._end(gone(error, self._sock))
            if not length:
                close_all(descriptors)
                return self._end(gone(ConnectionError("it closed the connection"), self._sock))
            concerned = self._talk.heard(self._buffer[:length], descriptors)
            if self._talk.broken is not None:
                return self._end(self._talk.broken)
            if concerned is not None:
                for woken in self._waiting.pop(concerned, ()):
                    _wake(woken)
        return self._flush()

    def _flush(self) -> None:
        """Send what there is to send, as far as there is room; the rest goes when there is."""
        outgoing = self._talk.outgoing
        while outgoing and not self._writing:
            if self._sock is None:
                raise RuntimeError("this client is not open: enter it with `async with`")
            data, descriptors = outgoing[0]
            try:
                send_packet(self._sock, data, descriptors)
            except BlockingIOError:
                self._writing = True
                self._loop.add_writer(self._sock, self._on_writable)
                return
            except OSError as error:
                self._end(gone(error, self._sock))
                return
            outgoing.popleft()
        if not outgoing:
            self._tell_sent()

    def _on_writable(self) -> None:
        assert self._sock is not None
        self._writing = False
        self._loop.remove_writer(self._sock)
        self._flush()

    async def _all_sent(self) -> None:
        while self._talk.outgoing and self._sock is not None:
            sent = self._loop.create_future()
            self._unsent.append(sent)
            await sent

    def _tell_sent(self) -> None:
        for sent in self._unsent:
            _wake(sent)
        self._unsent.clear()

    def _end(self, error: SupervisorUnreachable) -> None:
        self._talk.end(error)
        self._tell_sent()
        for futures in self._waiting.values():
            for woken in futures:
                _wake(woken)
        self._waiting.clear()
        if self._sock is not None and self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()


class AsyncJob(Handle):
    """A job that was submitted: its output comes from `result()`, or, if it streams, its items from `items()`.

    `request_id` is its name. The supervisor keeps the result until one of the two has given it.
    """

    def __init__(
        self, client: AsyncClient, remote: RemoteJob, type: Any, on_event: OnEvent | None, stream: bool
    ) -> None:
        super().__init__(remote, type, on_event, stream)
        self._client = client

    async def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the end and return the output; raise `JobError` when it ended badly.

        Of a function that streams it is the list of the items that `items()` has not given.
        Raises `TimeoutError` after `timeout_s`; the job goes on, and can be waited for again. When the task is canceled
        instead, by `asyncio.timeout` too, the supervisor is asked to cancel the job.
        """
        wait_s = seconds(timeout_s)
        deadline = None if wait_s is None else self._client._loop.time() + wait_s
        try:
            while not self.done:
                self._keep_items()
                await self._client._wait(self._remote, deadline)
        except asyncio.CancelledError:
            self._client._abandon(self._remote)
            raise
        self._tell_events()
        if not self._settled:
            self._settle()
        return self._outcome()

    async def items(self) -> AsyncGenerator[Any, None]:
        """Return the items of a stream as they come; raise `JobError` at its end when it ended badly.

        Of a function that does not stream the only item is its output.
        Closing the iterator early asks the supervisor to cancel the job, and does not wait for that. A `break` closes
        it when the loop comes to it, `contextlib.aclosing` at once.
        """
        try:
            while True:
                at_end = self.done
                if found := self._next_items():
                    yield found[0]
                elif at_end:
                    break
                else:
                    self._say_taken()
                    await self._client._wait(self._remote)
            output = await self.result()
            if not self._yields:
                yield output
        finally:
            self._kept.clear()
            self._client._abandon(self._remote)

    async def cancel(self, timeout_s: float | None = None) -> bool:
        """Ask the job to end and wait until it has; return whether it ended by this."""
        return await self._client.cancel(self.request_id, timeout_s)

    def _say_more(self, items: int) -> None:
        self._client._more(self._remote, items)

    def _say_settled(self, usable: bool) -> None:
        self._client._settled(self._remote, usable)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


async def _aside(work: Callable[[], Made], undo: Callable[[Made], object]) -> Made:
    """Do work in a thread; what it makes for a task that was canceled meanwhile is undone."""
    made = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(made)
    except asyncio.CancelledError:
        made.add_done_callback(lambda done: done.cancelled() or done.exception() or undo(done.result()))
        raise
