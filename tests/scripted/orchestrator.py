"""An orchestrator that a test plays: it speaks the wire and nothing else, and remembers all that it was told.

with ScriptedOrchestrator() as orchestrator:
    connection = orchestrator.greet()
    job = connection.run("echo", {"text": "hi"})
    assert job.result().status == OK
"""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple

import grpc
import msgspec

from tests.scripted.certificates import Certificate
from tests.scripted.wire import MESSAGE_BYTES, SERVICE, VERSION, wire

PATIENCE_S = 20.0
OK, INVALID, RETRYABLE, FATAL, CANCELED = range(1, 6)
EVENT_TYPE = "application/x-gen-worker-event+json"
OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
]
CONNECTIONS_AT_ONCE = 64
_numbers = itertools.count(1)

Message = Any
Where = Callable[[Message], bool]


class Heard(msgspec.Struct):
    """One message of a worker."""

    at: float
    connection: "Connection"
    kind: str
    message: Message
    taken: bool = False


class End(NamedTuple):
    """How the orchestrator ends a connection; `None`: as if all were well."""

    code: grpc.StatusCode | None
    details: str


class ScriptedOrchestrator:
    """A gRPC server on the loopback; `address` is `host:port`."""

    def __init__(self, *, tls: Certificate | None = None, address: str = "127.0.0.1:0") -> None:
        self.heard: list[Heard] = []
        """Everything that any worker said, in order of its coming."""

        self.connections: list[Connection] = []
        """Every connection that was made."""

        self.changed = threading.Condition()
        self._claimed = 0
        self._pool = ThreadPoolExecutor(CONNECTIONS_AT_ONCE, thread_name_prefix="orchestrator")
        self._server = grpc.server(self._pool, options=OPTIONS)
        method = grpc.stream_stream_rpc_method_handler(self._serve)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Connect": method}),))
        if tls is None:
            port = self._server.add_insecure_port(address)
        else:
            credentials = grpc.ssl_server_credentials([(tls.key, tls.certificate)])
            port = self._server.add_secure_port(address, credentials)
        self.address = f"{address.rpartition(':')[0]}:{port}"
        self._server.start()

    def __enter__(self) -> "ScriptedOrchestrator":
        return self

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every connection and stop listening."""
        for connection in self.connections:
            connection.end()
        self._server.stop(0.5).wait(PATIENCE_S)
        self._pool.shutdown()
        for connection in self.connections:
            connection.join()

    def _serve(self, packets: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        connection = Connection(self, packets, context)
        with self.changed:
            self.connections.append(connection)
            self.changed.notify_all()
        connection.start()
        yield from connection.outgoing()

    # --- what happens ---

    def connection(self, within: float = PATIENCE_S) -> "Connection":
        """Return the next connection that a worker makes, or has made."""

        def next_one() -> "Connection | None":
            return self.connections[self._claimed] if len(self.connections) > self._claimed else None

        connection: Connection = self.until(next_one, within, "no connection")
        self._claimed += 1
        return connection

    def greet(self, within: float = PATIENCE_S, **ack: Any) -> "Connection":
        """Take the next connection and its Hello, and acknowledge it; its Hello is kept as `hello`."""
        connection = self.connection(within)
        connection.hello = connection.expect("hello", within)
        connection.acknowledge(**ack)
        return connection

    def expect(
        self,
        kind: str,
        within: float = PATIENCE_S,
        *,
        on: "Connection | None" = None,
        where: Where | None = None,
        **fields: Any,
    ) -> Message:
        """Return the first message of a kind that no one has taken, with these fields; fail when none comes."""

        def matching() -> Heard | None:
            return next((each for each in self.heard if not each.taken and _is(each, kind, on, where, fields)), None)

        heard = self.until(matching, within, f"no {kind} {fields or ''}")
        heard.taken = True
        return heard.message

    def told(
        self, kind: str, *, on: "Connection | None" = None, where: Where | None = None, **fields: Any
    ) -> list[Heard]:
        """Return every message of a kind with these fields that has come, taken or not."""
        with self.changed:
            return [each for each in self.heard if _is(each, kind, on, where, fields)]

    def of(self, request_id: str, attempt: int = 1) -> list[str]:
        """Return the kinds of all messages about one attempt, in order."""
        with self.changed:
            return [
                each.kind
                for each in self.heard
                if each.kind.startswith("job_")
                and (each.message.request_id, each.message.attempt) == (request_id, attempt)
            ]

    def results(self, request_id: str, attempt: int = 1) -> list[Message]:
        """Return the results of one attempt, on whatever connection they came."""
        return [each.message for each in self.told("job_result", request_id=request_id, attempt=attempt)]

    def until(self, condition: Callable[[], Any], within: float = PATIENCE_S, what: str = "not so") -> Any:
        """Return what a condition on this orchestrator gives once it is true; fail when it is not in time."""
        with self.changed:
            if not self.changed.wait_for(condition, within):
                said = ", ".join(each.kind for each in self.heard[-10:])
                raise AssertionError(f"{what} within {within:g} s; {len(self.connections)} connections; last: {said}")
            return condition()


def rehearse() -> None:
    """Speak once over a connection within this process: what gRPC opens for that, it keeps."""
    with ScriptedOrchestrator() as orchestrator, grpc.insecure_channel(orchestrator.address) as channel:
        packets: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        packets.put(wire().WorkerMessage(hello={"worker_id": "nobody"}).SerializeToString())
        call = channel.stream_stream(f"/{SERVICE}/Connect")(iter(packets.get, None))
        orchestrator.greet()
        next(call)
        packets.put(None)


def _is(heard: Heard, kind: str, on: "Connection | None", where: Where | None, fields: dict[str, Any]) -> bool:
    return (
        heard.kind == kind
        and (on is None or heard.connection is on)
        and all(getattr(heard.message, name) == value for name, value in fields.items())
        and (where is None or where(heard.message))
    )


class Connection:
    """One stream of one worker."""

    def __init__(
        self, orchestrator: ScriptedOrchestrator, packets: Iterator[bytes], context: grpc.ServicerContext
    ) -> None:
        self.orchestrator = orchestrator
        self.began = time.monotonic()
        self.metadata = {each.key: each.value for each in context.invocation_metadata()}
        self.hello: Message = None
        self.half_closed = False
        self.lingers = False
        """Whether it stays open when the worker has said all it had to say."""

        self._packets = packets
        self._context = context
        self._outgoing: queue.SimpleQueue[bytes | End | None] = queue.SimpleQueue()
        self._reading = threading.Event()
        self._reading.set()
        self.gone = False
        self._thread = threading.Thread(target=self._read, daemon=True)

    def start(self) -> None:
        """Begin to listen; the orchestrator calls this."""
        self._context.add_callback(self._over)
        self._thread.start()

    def join(self) -> None:
        """Wait for the end of the thread that listens."""
        self._thread.join(PATIENCE_S)

    def outgoing(self) -> Iterator[bytes]:
        """Yield what is to be sent, until the end."""
        while True:
            match self._outgoing.get():
                case bytes() as packet:
                    yield packet
                case End(code=grpc.StatusCode() as code, details=details):
                    self._context.abort(code, details)
                case _:
                    return

    def _read(self) -> None:
        try:
            for packet in self._packets:
                self._reading.wait()
                self._hear(packet)
            self.half_closed = not self.gone
            if not self.lingers:
                self.end()  # as an orchestrator does whose worker has said all it had to say
        except grpc.RpcError:
            pass
        finally:
            self._tell(gone=True)

    def _hear(self, packet: bytes) -> None:
        envelope = wire().WorkerMessage.FromString(packet)
        kind = envelope.WhichOneof("msg")
        with self.orchestrator.changed:
            self.orchestrator.heard.append(Heard(time.monotonic(), self, kind, getattr(envelope, kind)))
            self.orchestrator.changed.notify_all()

    def _over(self) -> None:
        self._outgoing.put(None)
        self._reading.set()
        self._tell(gone=True)

    def _tell(self, *, gone: bool) -> None:
        with self.orchestrator.changed:
            self.gone = gone
            self.orchestrator.changed.notify_all()

    # --- what a test says ---

    def acknowledge(self, *, protocol_version: int = VERSION, **fields: Any) -> None:
        """Send a HelloAck."""
        self.send(hello_ack={"protocol_version": protocol_version, **fields})

    def send(self, **message: Any) -> None:
        """Send one message, given as its kind and a dict of its fields."""
        self._outgoing.put(wire().SchedulerMessage(**message).SerializeToString())

    def send_raw(self, packet: bytes) -> None:
        """Send bytes as they are, as one message."""
        self._outgoing.put(packet)

    def end(self, code: grpc.StatusCode | None = None, details: str = "") -> None:
        """End the stream, with a status if there is one."""
        self._outgoing.put(End(code, details))

    def hold(self) -> None:
        """Read nothing more of what the worker sends."""
        self._reading.clear()

    def resume(self) -> None:
        """Read again."""
        self._reading.set()

    def run(
        self, function: str, payload: Any = None, *, request_id: str = "", attempt: int = 1, **fields: Any
    ) -> "Asked":
        """Send a RunJob whose payload is encoded as msgpack, unless it is bytes."""
        body = payload if isinstance(payload, bytes) else msgspec.msgpack.encode(payload or {})
        asked = Asked(self, request_id or f"r{next(_numbers)}", attempt, function, body, fields)
        asked.again()
        return asked

    def cancel(self, request_id: str, attempt: int = 1) -> None:
        """Send a CancelJob."""
        self.send(cancel_job={"request_id": request_id, "attempt": attempt})

    # --- what a test hears ---

    def expect(self, kind: str, within: float = PATIENCE_S, **fields: Any) -> Message:
        """Return the first message of a kind on this connection that no one has taken."""
        return self.orchestrator.expect(kind, within, on=self, **fields)

    def told(self, kind: str, **fields: Any) -> list[Heard]:
        """Return every message of a kind on this connection."""
        return self.orchestrator.told(kind, on=self, **fields)

    def said(self) -> list[str]:
        """Return the kinds of all messages on this connection, in order."""
        with self.orchestrator.changed:
            return [each.kind for each in self.orchestrator.heard if each.connection is self]

    def settle(self) -> None:
        """Wait until the worker has dealt with all that was sent: it answers a job that no worker has at once."""
        self.run("no-such-function").result()

    def until_gone(self, within: float = PATIENCE_S) -> None:
        """Wait until the stream has ended, whoever ended it."""
        self.orchestrator.until(lambda: self.gone, within, "not gone")


class Asked(NamedTuple):
    """One attempt of a request, as it was sent."""

    connection: Connection
    request_id: str
    attempt: int
    function: str
    payload: bytes
    fields: dict[str, Any]

    @property
    def pair(self) -> dict[str, Any]:
        """What names it on the wire."""
        return {"request_id": self.request_id, "attempt": self.attempt}

    def again(self, on: Connection | None = None) -> None:
        """Send the RunJob, the same bytes each time."""
        wanted = {"function_name": self.function, "input_payload": self.payload, **self.pair, **self.fields}
        (on or self.connection).send(run_job=wanted)

    def cancel(self) -> None:
        """Send its CancelJob."""
        self.connection.cancel(self.request_id, self.attempt)

    def accepted(self, within: float = PATIENCE_S) -> Message:
        """Return a JobAccepted of it."""
        return self.connection.orchestrator.expect("job_accepted", within, **self.pair)

    def progress(self, within: float = PATIENCE_S) -> Message:
        """Return its next JobProgress."""
        return self.connection.orchestrator.expect("job_progress", within, **self.pair)

    def result(self, within: float = PATIENCE_S) -> Message:
        """Return its JobResult, on whatever connection it comes."""
        return self.connection.orchestrator.expect("job_result", within, **self.pair)

    def output(self, within: float = PATIENCE_S) -> Any:
        """Return the decoded output of a job that ends well."""
        result = self.result(within)
        assert result.status == OK, result
        return msgspec.msgpack.decode(result.inline)
