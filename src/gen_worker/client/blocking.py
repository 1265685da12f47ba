"""The client for programs that wait: any number of threads on one connection, and no thread of its own.

Of the threads that wait, one reads the socket and wakes the others when something of theirs comes; when it has what it
waited for itself, the next one reads on.
"""

import errno
import itertools
import os
import select
import socket
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Unpack, overload

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


class Client:
    """A connection to one supervisor, for any number of threads at once.

    `path` is a control socket, or what `serve` listens on; without one the only supervisor alive is
    meant, or of several the one that serves the current folder.
    Raises `SupervisorUnreachable` when none answers, `SeveralSupervisors` when there are several to choose from.
    """

    def __init__(self, path: str | Path | None = None, connect_timeout_s: float = 10.0, *, name: str = "") -> None:
        patience_s = seconds(connect_timeout_s)
        self._prefix = os.urandom(4).hex()
        self._numbers = itertools.count(1)
        self._talk = Conversation(name or f"python {os.getpid()}")
        self._lock = threading.Lock()  # for the conversation and the three fields after `_sending`
        self._sending = threading.Lock()  # never asked for with the other one in hand
        self._reading = False
        self._waiting: dict[Errand, list[threading.Lock]] = {}
        self._socket = _Socket(connected(path, patience_s))
        try:
            self.supervisor = self._open(patience_s)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; threads that wait get `SupervisorUnreachable`.

        Streams under way are canceled; other jobs go on, and `submit` with the same `request_id` on a new connection
        gets what became of them.
        """
        self._end(SupervisorUnreachable("this client was closed"))

    # --- jobs ---------------------------------------------------------------------------------------------------------

    @overload
    def call(
        self, function: str, payload: object = ..., *, type: type[Output], **options: Unpack[JobOptions]
    ) -> Output: ...

    @overload
    def call(self, function: str, payload: object = ..., *, type: Any = ..., **options: Unpack[JobOptions]) -> Any: ...

    def call(
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
        job = self.submit(
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
        return job.result()

    @overload
    def stream(
        self, function: str, payload: object = ..., *, type: type[Output], **options: Unpack[JobOptions]
    ) -> Generator[Output, None, None]: ...

    @overload
    def stream(
        self, function: str, payload: object = ..., *, type: Any = ..., **options: Unpack[JobOptions]
    ) -> Generator[Any, None, None]: ...

    def stream(
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
    ) -> Generator[Any, None, None]:
        """Run a function that streams and return its items as they come; see `Job.items`.

        Of a function that does not stream the only item is its output.
        """
        job = self.submit(
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
        return job.items()

    def submit(
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
    ) -> "Job":
        """Start a job and return at once; many can be under way.

        A `request_id` that the supervisor knows already means that job: its result comes here, nothing runs twice.
        `on_event` is called by the thread that waits for the job.
        """
        timeout_s = seconds(timeout_s)
        if request_id is None:
            request_id = f"{self._prefix}-{next(self._numbers)}"
        packed = self._pack(payload)
        try:
            with self._lock:
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
        return Job(self, remote, type, on_event, stream)

    def _pack(self, payload: object) -> Outgoing:
        try:
            return self._talk.outbox.pack(payload)
        except RegionError as error:
            raise JobError("usage", f"the payload cannot be sent: {error}") from error

    def _more(self, remote: RemoteJob, items: int) -> None:
        with self._lock:
            self._talk.more(remote, items)
        self._flush()

    def _settled(self, remote: RemoteJob, usable: bool) -> None:
        with self._lock:
            (self._talk.taken if usable else self._talk.spoil)(remote)
        self._flush()

    def _abandon(self, remote: RemoteJob) -> None:
        with self._lock:
            self._talk.abandon(remote)
        self._flush()

    # --- the operator's verbs -----------------------------------------------------------------------------------------

    def cancel(self, request_id: str, timeout_s: float | None = None) -> bool:
        """Ask a job to end and wait until it has; return whether there was one and it ended by this."""
        return self._ask(control.Cancel(request_id), control.Canceled, timeout_s).canceled

    def kill(self, request_id: str, now: bool = False, timeout_s: float | None = None) -> control.Killed:
        """End a job whatever it does and wait until it has; `now` gives it no time to end by itself."""
        return self._ask(control.Kill(request_id, now), control.Killed, timeout_s)

    def restart(self, device: str, now: bool = False, timeout_s: float | None = None) -> control.Restarted:
        """Replace a device's child and wait until the next one is ready; `now` does not wait for its jobs."""
        return self._ask(control.Restart(device, now), control.Restarted, timeout_s)

    def drain(self, device: str = "", *, undo: bool = False, timeout_s: float | None = None) -> control.Drained:
        """Give a device, or with none each, no more jobs, and wait until none runs there; `undo` ends that."""
        return self._ask(control.Drain(device, undo), control.Drained, timeout_s)

    def stack(self, device: str, timeout_s: float | None = None) -> control.Stacked:
        """Return where each thread of a device's child is, whatever it does."""
        return self._ask(control.Stack(device), control.Stacked, timeout_s)

    def model(
        self,
        operation: Literal["load", "unload", "pin", "unpin"],
        ref: str,
        device: str = "",
        timeout_s: float | None = None,
    ) -> control.Modeled:
        """Load, unload, pin or unpin a model on a device; with none, load it where there is most room, else on all."""
        return self._ask(control.Model(operation, ref, device), control.Modeled, timeout_s)

    def read(
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
        return self._ask(frame, control.Lines, None)

    def quarantined(self) -> control.Quarantined:
        """Return which payloads are charged with children's deaths, and which functions are not served for that."""
        return self._ask(control.Quarantine(), control.Quarantined, None)

    def pardon(self, function: str = "", digest: str = "") -> int:
        """Forget charges: of one payload, of one function, or all; return how many there were."""
        return (self._ask(control.Pardon(function, digest), control.Pardoned, None)).count

    def list(self) -> Status:
        """Return what the supervisor's devices and jobs are doing."""
        return msgspec.json.decode(self.list_json(), type=Status)

    def list_json(self) -> bytes:
        """Return the status document as the supervisor wrote it."""
        document = self._ask(control.List(), control.Listed, None).document
        assert isinstance(document, bytes)  # the conversation opened it
        return document

    def watch(self, every_s: float = 1.0, *, jobs: int = 200) -> Generator[bytes, None, None]:
        """Yield the status document, as JSON, again and again; one subscription each connection.

        Who is slow misses documents and gets the latest. Of each queue so many waiting `jobs` are in it.
        Raises `SupervisorUnreachable` once the supervisor has gone.
        """
        with self._lock:
            documents = self._talk.watch(max(100, round(every_s * 1000)), jobs)
        try:
            while True:
                self._flush()
                self._wait(documents, None)
                yield documents.take()
        finally:
            with self._lock:
                self._talk.watched(documents)
            with suppress(SupervisorUnreachable):
                self._flush()

    def _ask(self, frame: Asked, kind: type[Answer], timeout_s: float | None) -> Answer:
        deadline = _deadline(timeout_s)
        with self._lock:
            question = self._talk.ask(frame, kind)
        self._flush()
        return self._answer(question, deadline)

    def _answer(self, question: Question[Answer], deadline: float | None) -> Answer:
        self._wait(question, deadline)
        if question.answer is None:
            assert question.error is not None
            raise question.error
        return question.answer

    def _open(self, timeout_s: float | None) -> control.Opened:
        self._flush()
        try:
            return self._answer(self._talk.opening, _deadline(timeout_s))
        except TimeoutError:
            assert timeout_s is not None
            raise silent(timeout_s) from None

    # --- frames -------------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Send what there is to send; in the order in which it was said, whichever thread comes first."""
        outgoing = self._talk.outgoing
        while outgoing:
            try:
                with self._sending:
                    data, descriptors = outgoing[0]
                    send_packet(self._socket.sock, data, descriptors)  # may be interrupted; then it is sent later
                    outgoing.popleft()
            except IndexError:  # another thread was faster, or it is all over
                return
            except OSError as error:
                lost = gone(error, self._socket.sock)
                self._end(lost)
                raise lost from error

    def _wait(self, errand: Errand, deadline: float | None) -> None:
        """Return when there is news of an errand; raise `TimeoutError` when there is none before the deadline."""
        while not errand.has_news():
            self._take_turn(errand, deadline)
        if self._talk.outgoing:
            self._flush()

    def _take_turn(self, errand: Errand, deadline: float | None) -> None:
        """Read until there is news of an errand or, while another thread reads, wait to be woken."""
        reads = False
        seat: threading.Lock | None = None
        try:
            with self._lock:
                if errand.has_news():
                    return
                if self._reading:
                    seat = self._seat(errand)
                else:
                    self._reading = reads = True
            if seat is None:
                self._read_for(errand, deadline)
            elif not seat.acquire(timeout=-1 if deadline is None else max(0.0, deadline - time.monotonic())):
                raise TimeoutError("no answer in time")
        finally:
            with self._lock:
                self._reading = self._reading and not reads
                if seat is not None:
                    self._leave(errand, seat)
                if self._waiting and not self._reading:
                    self._wake_next()
            if reads and self._talk.broken is not None:
                self._hang_up()

    def _seat(self, errand: Errand) -> threading.Lock:
        seat = threading.Lock()
        seat.acquire()
        self._waiting.setdefault(errand, []).append(seat)
        return seat

    def _leave(self, errand: Errand, seat: threading.Lock) -> None:
        seats = self._waiting.get(errand, [])
        if seat in seats:
            seats.remove(seat)
            if not seats:
                del self._waiting[errand]

    def _read_for(self, errand: Errand, deadline: float | None) -> None:
        talk, buffer = self._talk, self._socket.buffer
        concerned = None
        try:
            while concerned is not errand and talk.broken is None:
                if talk.outgoing:
                    self._flush()
                length, descriptors = self._socket.receive(deadline)
                with self._lock:
                    concerned = talk.heard(buffer[:length], descriptors)
                    if self._waiting:
                        self._wake(concerned)
        except TimeoutError:
            raise
        except (OSError, ProtocolError) as error:
            self._end(gone(error, self._socket.sock))

    def _wake(self, errand: Errand | None) -> None:
        if self._talk.broken is not None:
            self._wake_all()
        elif errand is not None:
            for seat in self._waiting.pop(errand, ()):
                seat.release()

    def _wake_next(self) -> None:
        self._wake(next(iter(self._waiting), None))

    def _wake_all(self) -> None:
        for seats in self._waiting.values():
            for seat in seats:
                seat.release()
        self._waiting.clear()

    def _end(self, error: SupervisorUnreachable) -> None:
        with self._lock:
            self._talk.end(error)
            self._wake_all()
        self._hang_up()

    def _hang_up(self) -> None:
        """End the connection at once; its descriptor is closed when no thread is at it."""
        self._socket.shut()
        with self._sending, self._lock:
            if not self._reading:
                self._socket.close()


class Job(Handle):
    """A job that was submitted: its output comes from `result()`, or, if it streams, its items from `items()`.

    `request_id` is its name. The supervisor keeps the result until one of the two has given it.
    """

    def __init__(self, client: Client, remote: RemoteJob, type: Any, on_event: OnEvent | None, stream: bool) -> None:
        super().__init__(remote, type, on_event, stream)
        self._client = client
        self._settling = threading.Lock()

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the end and return the output; raise `JobError` when it ended badly.

        Of a function that streams it is the list of the items that `items()` has not given.
        Raises `TimeoutError` after `timeout_s`; the job goes on, and can be waited for again.
        """
        deadline = _deadline(timeout_s)
        while not self._remote.ended:
            if self._remote.has_news():
                self._keep_items()
            self._client._wait(self._remote, deadline)
        if self._remote.events:
            self._tell_events()
        with self._settling:
            if not self._settled:
                self._settle()
        return self._outcome()

    def items(self) -> Generator[Any, None, None]:
        """Return the items of a stream as they come; raise `JobError` at its end when it ended badly.

        Of a function that does not stream the only item is its output.
        Closing the iterator early asks the supervisor to cancel the job, and does not wait for that.
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
                    self._client._wait(self._remote, None)
            output = self.result()
            if not self._yields:
                yield output
        finally:
            self._kept.clear()
            self._client._abandon(self._remote)

    def cancel(self, timeout_s: float | None = None) -> bool:
        """Ask the job to end and wait until it has; return whether it ended by this."""
        return self._client.cancel(self.request_id, timeout_s)

    def _say_more(self, items: int) -> None:
        self._client._more(self._remote, items)

    def _say_settled(self, usable: bool) -> None:
        self._client._settled(self._remote, usable)


class _Socket:
    """A connected socket that one thread reads, with a deadline, and another writes."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(None)
        self.sock = sock
        self.buffer = memoryview(bytearray(FRAME_LIMIT + 1))
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)

    def receive(self, deadline: float | None) -> tuple[int, list[int]]:
        """Return the length of the packet that is in `buffer` now, and its descriptors; raise `TimeoutError`."""
        if deadline is not None and not self._readable.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError("no answer in time")
        length, descriptors = receive_packet(self.sock, self.buffer)
        if not length:
            close_all(descriptors)
            raise ConnectionResetError(errno.ECONNRESET, "it closed the connection")
        return length, descriptors

    def shut(self) -> None:
        """Let nothing in or out any more, also for who is at it now."""
        with suppress(OSError):  # it is closed already
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the descriptor."""
        self.sock.close()


def _deadline(timeout_s: float | None) -> float | None:
    wait_s = seconds(timeout_s)
    return None if wait_s is None else time.monotonic() + wait_s
