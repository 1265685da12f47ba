"""Talk to a supervisor from Python: run jobs, read its status, end a job. Blocking, over its control socket.

    with Client() as client:
        print(client.call("embed", {"texts": ["a cat"]}))

Big `bytes` travel in shared memory and are copied once on the way out. So they are on the way back, unless the type
that is asked for holds a `memoryview`: that looks into the shared memory itself, and is right while the client is open.
"""

import errno
import itertools
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias, TypeVar, assert_never

import msgspec

from gen_worker.rundir import SeveralSupervisors, SupervisorUnreachable, choose, connect
from gen_worker.settings import Settings
from gen_worker.wire import control
from gen_worker.wire.attachments import Inbox, Outbox, Outgoing
from gen_worker.wire.channel import ProtocolError, close_all, receive_packet, send_packet
from gen_worker.wire.messages import FRAME_LIMIT, ErrorDetail, ErrorKind
from gen_worker.wire.regions import RegionError
from gen_worker.wire.status import Status
from gen_worker.wire.values import keeps_views

__all__ = ["Client", "Job", "JobError", "SeveralSupervisors", "SupervisorUnreachable"]

OnEvent: TypeAlias = Callable[[Literal["progress", "log"], dict[str, Any]], None]
Answer = TypeVar("Answer", control.Opened, control.Canceled, control.Killed, control.Listed)

_MORE_EVERY = 8  # stream items taken between two notes of that to the supervisor, which has 32 on their way at most


class JobError(Exception):
    """A job ended badly or was refused; `kind` says how, `detail` what else is known."""

    def __init__(
        self, kind: ErrorKind, message: str, retryable: bool = False, detail: ErrorDetail | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retryable = retryable
        self.detail = detail


class Client:
    """A connection to one supervisor. For one thread at a time; a second thread opens a second client.

    `path` is a control socket, or the socket that `serve` listens on; without one the only supervisor alive is meant.
    Raises `SupervisorUnreachable` when none answers, `SeveralSupervisors` when there are several to choose from.
    """

    def __init__(self, path: str | Path | None = None, connect_timeout_s: float = 10.0, *, name: str = "") -> None:
        self._link = _Link(path, connect_timeout_s)
        self._jobs: dict[str, Job] = {}
        self._answers: deque[control.Opened | control.Canceled | control.Killed | control.Listed] = deque()
        self._prefix = os.urandom(4).hex()
        self._numbers = itertools.count(1)
        self._outbox = Outbox()
        self._inbox = Inbox()
        try:
            self.supervisor = self._open(name or f"python {os.getpid()}", connect_timeout_s)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Streams under way are canceled; other jobs go on, and `submit` with the same
        `request_id` on a new connection gets what became of them.
        """
        self._link.close()
        self._outbox.close()
        self._inbox.close()

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def call(
        self,
        function: str,
        payload: object,
        *,
        type: Any = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
        on_event: OnEvent | None = None,
    ) -> Any:
        """Run a function and return its output, decoded as `type`, else as plain values; raise `JobError`.

        Of a function that streams it is the list of its items, each decoded as `type`.
        `timeout_s` is the job's deadline, time in the queue included; the supervisor holds it.
        """
        job = self.submit(function, payload, type=type, request_id=request_id, timeout_s=timeout_s, on_event=on_event)
        return job.result()

    def stream(
        self,
        function: str,
        payload: object,
        *,
        type: Any = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
        on_event: OnEvent | None = None,
    ) -> Iterator[Any]:
        """Run a function that streams and return its items as they come; see `Job.items`.

        Of a function that does not stream the only item is its output.
        """
        job = self.submit(
            function, payload, type=type, request_id=request_id, timeout_s=timeout_s, on_event=on_event, stream=True
        )
        return job.items()

    def submit(
        self,
        function: str,
        payload: object,
        *,
        type: Any = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
        on_event: OnEvent | None = None,
        stream: bool = False,
    ) -> "Job":
        """Start a job and return at once; many can be under way.

        A `request_id` that the supervisor knows already means that job: its result comes here, nothing runs twice.
        """
        if request_id is None:
            request_id = f"{self._prefix}-{next(self._numbers)}"
        if request_id in self._jobs:
            raise ValueError(f"`{request_id}` has not ended yet")
        self._release()
        try:
            payload_out = self._outbox.pack(payload)
        except RegionError as error:
            raise JobError("usage", f"the payload cannot be sent: {error}") from error
        timeout_ms = 0 if timeout_s is None else max(1, round(timeout_s * 1000))
        frame = control.Submit(
            request_id, function, payload_out.body, stream=stream, events=on_event is not None, timeout_ms=timeout_ms
        )
        job = self._jobs[request_id] = Job(self, request_id, payload_out, type, on_event, stream)
        try:
            self._link.send(frame, payload_out.descriptors)
        except BaseException:
            self._forget(job)
            raise
        return job

    def _forget(self, job: "Job") -> None:
        self._jobs.pop(job.request_id, None)
        self._outbox.recycle(job.payload)

    # --- the operator's verbs -----------------------------------------------------------------------------------------

    def cancel(self, request_id: str, timeout_s: float | None = None) -> bool:
        """Ask a job to end and wait until it has; return whether there was one and it ended by this."""
        return self._ask(control.Cancel(request_id), control.Canceled, timeout_s).canceled

    def kill(self, request_id: str, now: bool = False, timeout_s: float | None = None) -> control.Killed:
        """End a job whatever it does and wait until it has; `now` gives it no time to end by itself."""
        return self._ask(control.Kill(request_id, now), control.Killed, timeout_s)

    def list(self) -> Status:
        """Return what the supervisor's devices and jobs are doing."""
        return msgspec.json.decode(self.list_json(), type=Status)

    def list_json(self) -> bytes:
        """Return the status document as the supervisor wrote it."""
        document = self._ask(control.List(), control.Listed, None).document
        assert isinstance(document, bytes)  # `_heed` opened it
        return document

    def _ask(
        self, question: control.Cancel | control.Kill | control.List, answer: type[Answer], timeout_s: float | None
    ) -> Answer:
        self._link.send(question)
        asked_for = None if isinstance(question, control.List) else question.request_id
        return self._wait_for(answer, None if timeout_s is None else time.monotonic() + timeout_s, asked_for)

    def _open(self, name: str, timeout_s: float) -> control.Opened:
        self._link.send(control.Open(control.CONTROL_PROTOCOL, name))
        try:
            opened = self._wait_for(control.Opened, time.monotonic() + timeout_s)
        except TimeoutError:
            raise SupervisorUnreachable(f"the supervisor does not answer within {timeout_s:g} s") from None
        except JobError as error:
            raise SupervisorUnreachable(f"the supervisor refuses this client: {error}") from None
        if opened.protocol != control.CONTROL_PROTOCOL:
            raise SupervisorUnreachable(
                f"the supervisor speaks control protocol {opened.protocol}, this client {control.CONTROL_PROTOCOL}",
                f"use the client of gen-worker {opened.version}",
            )
        return opened

    def _wait_for(self, kind: type[Answer], deadline: float | None, asked_for: str | None = None) -> Answer:
        while True:
            while self._answers:
                answer = self._answers.popleft()
                told_of = answer.request_id if isinstance(answer, control.Canceled | control.Killed) else None
                if isinstance(answer, kind) and told_of == asked_for:
                    return answer  # any other came too late for who asked
            self._pump(deadline)

    # --- frames -------------------------------------------------------------------------------------------------------

    def _pump(self, deadline: float | None) -> None:
        """Wait for one frame and do what it says; raise `TimeoutError` when none comes before the deadline."""
        frame, descriptors = self._link.receive(deadline)
        try:
            self._heed(frame, descriptors)
        except RegionError as error:
            self._link.close()
            raise SupervisorUnreachable(f"the supervisor sent what cannot be read: {error}") from error
        finally:
            close_all(descriptors)
        self._release()

    def _heed(self, frame: control.ServerFrame, descriptors: Any) -> None:
        match frame:
            case control.Item(request_id, body):
                self._take_item(request_id, body, descriptors)
            case control.Result(request_id, attempt, body, yielded):
                self._take_end(request_id, attempt, body, None, descriptors, yielded)
            case control.Error(request_id, attempt):
                error = JobError(frame.kind, frame.message, frame.retryable, frame.detail)
                self._take_end(request_id, attempt, b"", error, descriptors)
            case control.Event(request_id, event, value):
                job = self._jobs.get(request_id)
                if job is not None and job.on_event is not None:
                    job.on_event(event, msgspec.json.decode(value))
            case control.Listed(document):
                self._answers.append(control.Listed(self._inbox.unpack(document, descriptors, bytes, views=False)))
            case control.Opened() | control.Canceled() | control.Killed():
                self._answers.append(frame)
            case control.Accepted():
                pass
            case _:
                assert_never(frame)

    def _take_item(self, request_id: str, body: control.Value, descriptors: Any) -> None:
        job = self._jobs.get(request_id)
        item, mismatch = self._decoded(body, descriptors, job)
        if job is not None:
            job.add(item, mismatch)

    def _take_end(
        self,
        request_id: str,
        attempt: int,
        body: control.Value,
        error: Exception | None,
        descriptors: Any,
        yielded: int = 0,
    ) -> None:
        job = self._jobs.get(request_id)
        value, mismatch = (None, None) if body == b"" else self._decoded(body, descriptors, job)
        if attempt:
            self._link.send(control.Ack(request_id, attempt))
        elif job is None and error is not None:
            raise error  # a frame of ours was refused, and it was no job's
        if job is not None:
            self._forget(job)
            job.end(value, error or mismatch, yielded if body == b"" else None)

    def _decoded(self, body: control.Value, descriptors: Any, job: "Job | None") -> tuple[Any, Exception | None]:
        if job is None:
            return self._inbox.unpack(body, descriptors, lambda _: None, views=False), None
        try:
            return self._inbox.unpack(body, descriptors, job.decode, views=job.views), None
        except msgspec.DecodeError as mismatch:  # the output is not of the type that the caller asked for
            return None, mismatch

    def _release(self) -> None:
        for region in self._inbox.released():
            self._link.send(control.Release(region))


@lru_cache(maxsize=256)
def _decoder(type: Any) -> tuple[Callable[[Any], Any], bool]:
    return msgspec.msgpack.Decoder(type).decode, keeps_views(type)


class Job:
    """A job that was submitted: its output comes from `result()`, or, if it streams, its items from `items()`."""

    def __init__(
        self, client: Client, request_id: str, payload: Outgoing, type: Any, on_event: OnEvent | None, stream: bool
    ) -> None:
        self.request_id = request_id
        self.done = False
        self.payload = payload
        self.on_event = on_event
        self.decode, self.views = _decoder(Any if type is None else type)
        self._client = client
        self._items: deque[Any] = deque()
        self._stream = stream
        self._came = 0
        self._taken = 0
        self._taken_early = 0  # the first items of `_items` that are counted already
        self._yields = False
        self._unwanted = False
        self._value: Any = None
        self._error: Exception | None = None

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the end and return the output; raise `JobError` when it ended badly.

        Of a function that streams it is the list of the items that `items()` has not given.
        Raises `TimeoutError` after `timeout_s`; the job goes on, and can be waited for again.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.done:
            self._taken += len(self._items) - self._taken_early
            self._taken_early = len(self._items)
            self._say_taken()
            self._client._pump(deadline)
        if self._error is not None:
            raise self._error
        return list(self._items) if self._yields else self._value

    def items(self) -> Iterator[Any]:
        """Return the items of a stream as they come; raise `JobError` at its end when it ended badly.

        Of a function that does not stream the only item is its output.
        Closing the iterator early asks the supervisor to cancel the job, and does not wait for that.
        """
        try:
            while self._items or not self.done:
                if not self._items:
                    self._say_taken()
                    self._client._pump(None)
                    continue
                item = self._items.popleft()
                if self._taken_early:
                    self._taken_early -= 1
                else:
                    self._taken += 1
                if self._taken >= _MORE_EVERY:
                    self._say_taken()
                yield item
            output = self.result()
            if not self._yields:
                yield output
        finally:
            self._unwanted = True
            self._items.clear()
            if not self.done and not self._client._link.closed:
                self._client._link.send(control.Cancel(self.request_id))

    def _say_taken(self) -> None:
        if self._stream and self._taken and not self.done:
            self._client._link.send(control.More(self.request_id, self._taken))
        self._taken = 0

    def add(self, item: Any, mismatch: Exception | None) -> None:
        """Keep an item that came; the client calls this."""
        self._came += 1
        self._error = self._error or mismatch
        if not self._unwanted and mismatch is None:
            self._items.append(item)

    def end(self, value: Any, error: Exception | None, yielded: int | None = None) -> None:
        """Take the end that came, `yielded` counts the items of a stream; the client calls this."""
        if yielded is not None:
            self._yields = True
            while len(self._items) > yielded:  # the first are of a run that died with its child
                self._items.popleft()
            if lost := max(0, yielded - self._came):
                error = error or JobError("retryable", f"{lost} of {yielded} items went to an earlier connection", True)
        self._value, self._error, self.done = value, error or self._error, True


class _Link:
    """The socket: whole frames out and in."""

    def __init__(self, path: str | Path | None, timeout_s: float) -> None:
        self._sock = _connected(path, timeout_s)
        self._waits = True
        self._sock.settimeout(None)
        self._buffer = memoryview(bytearray(FRAME_LIMIT + 1))
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode: Callable[[memoryview], control.ServerFrame]
        self._decode = msgspec.msgpack.Decoder(control.ServerFrame).decode

    @property
    def closed(self) -> bool:
        return self._sock.fileno() < 0

    def close(self) -> None:
        self._sock.close()

    def send(self, frame: object, descriptors: Sequence[int] = ()) -> None:
        packet = self._encode(frame)
        if len(packet) > FRAME_LIMIT:
            raise ValueError(
                f"a `{type(frame).__name__.lower()}` frame of {len(packet)} bytes, the limit is {FRAME_LIMIT}"
            )
        self._wait_until(None)
        try:
            send_packet(self._sock, packet, descriptors)
        except OSError as error:
            raise self._gone(error) from error

    def receive(self, deadline: float | None) -> tuple[control.ServerFrame, list[int]]:
        self._wait_until(deadline)
        try:
            length, descriptors = receive_packet(self._sock, self._buffer)
        except TimeoutError:
            raise TimeoutError("no answer in time") from None
        except (OSError, ProtocolError) as error:
            raise self._gone(error) from error
        if not length:
            close_all(descriptors)
            raise self._gone(ConnectionResetError(errno.ECONNRESET, "it closed the connection"))
        try:
            return self._decode(self._buffer[:length]), descriptors
        except msgspec.MsgspecError as error:
            close_all(descriptors)
            raise self._gone(error) from error

    def _wait_until(self, deadline: float | None) -> None:
        if deadline is not None:
            self._sock.settimeout(max(deadline - time.monotonic(), 0.001))
        elif not self._waits:
            self._sock.settimeout(None)
        self._waits = deadline is None

    def _gone(self, error: Exception) -> SupervisorUnreachable:
        self.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return SupervisorUnreachable(f"the supervisor is gone: {reason.lower()}")


def _connected(path: str | Path | None, timeout_s: float) -> socket.socket:
    if not hasattr(socket, "SOCK_SEQPACKET") or not hasattr(socket, "AF_UNIX"):
        raise SupervisorUnreachable("the control socket needs Linux")
    chosen = choose(None, Settings.load().run_dir) if path is None else path
    try:
        return connect(chosen, socket.SOCK_SEQPACKET, timeout_s)
    except OSError as error:
        if error.errno != errno.EPROTOTYPE:
            reason = error.strerror or str(error)
            raise SupervisorUnreachable(f"no supervisor answers at `{chosen}`: {reason.lower()}") from error
    return connect(choose(os.fspath(chosen), Settings.load().run_dir), socket.SOCK_SEQPACKET, timeout_s)
