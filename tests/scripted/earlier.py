"""An orchestrator of the earlier generation that a test plays; it remembers all that it was told.

with EarlierOrchestrator() as orchestrator:
    stream = orchestrator.stream()
    stream.run("echo", {"text": "hi"}, run_id="r")
    assert stream.hear(TaskExecutionResult).success
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import grpc
import msgspec

from gen_worker.pb import EARLIER_SERVICE
from gen_worker.pb.convert_earlier import decode, encode
from gen_worker.wire.earlier import Message, Order, TaskExecutionRequest, TaskExecutionResult, WorkerRegistration
from tests.scripted.certificates import Certificate

PATIENCE_S = 20.0
START_S = 60.0  # for a worker that is just started: it imports gRPC and its code, on a host with much to do
OPTIONS = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 << 20)]
F = TypeVar("F")


class Stream:
    """One connection of a worker."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self.context = context
        self.heard: list[Message] = []
        self.changed = threading.Condition()
        self.outgoing: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._taken = 0

    def say(self, *orders: Order) -> None:
        """Send messages."""
        for order in orders:
            self.outgoing.put(order)

    def run(self, function: str, payload: dict[str, Any], *, run_id: str, **more: Any) -> None:
        """Ask for a run."""
        packed = msgspec.msgpack.encode(payload)
        self.say(TaskExecutionRequest(run_id=run_id, function_name=function, input_payload=packed, **more))

    def hear(self, kind: type[F], where: Callable[[F], bool] = lambda message: True) -> F:
        """Return the first message of a kind, since the one that was returned last."""
        deadline = time.monotonic() + PATIENCE_S
        with self.changed:
            while True:
                for at in range(self._taken, len(self.heard)):
                    message = self.heard[at]
                    if isinstance(message, kind) and where(message):
                        self._taken = at + 1
                        return message
                if not self.changed.wait(deadline - time.monotonic()):
                    raise AssertionError(f"no such {kind.__name__}; heard: {self.heard[-10:]}")

    def result(self, run_id: str) -> TaskExecutionResult:
        """Return the result of a run, whenever it came."""
        self._taken = 0
        return self.hear(TaskExecutionResult, lambda result: result.run_id == run_id)

    def results(self, run_id: str) -> list[TaskExecutionResult]:
        """Return every result of a run that came over this connection."""
        return [each for each in self.heard if isinstance(each, TaskExecutionResult) and each.run_id == run_id]

    def forget(self) -> None:
        """Remember nothing of what was heard but the registrations, so that the names of runs are free again."""
        with self.changed:
            self.heard[:] = [each for each in self.heard if isinstance(each, WorkerRegistration)]
            self._taken = len(self.heard)

    def cut(self) -> None:
        """End the connection as a server does that dies."""
        self.outgoing.put(None)


class EarlierOrchestrator:
    """A gRPC server on the loopback; `address` is `host:port`. One with a `leader` sends every worker there."""

    def __init__(self, *, tls: Certificate | None = None, leader: str = "") -> None:
        self._leader = leader
        self._streams: queue.SimpleQueue[Stream] = queue.SimpleQueue()
        self._server = grpc.server(ThreadPoolExecutor(8), options=OPTIONS)
        handler = grpc.stream_stream_rpc_method_handler(self._connect)
        handlers = grpc.method_handlers_generic_handler(EARLIER_SERVICE, {"ConnectWorker": handler})
        self._server.add_generic_rpc_handlers((handlers,))
        if tls is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            credentials = grpc.ssl_server_credentials([(tls.key, tls.certificate)])
            port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.address = f"127.0.0.1:{port}"
        self.metadata: list[dict[str, Any]] = []

    def __enter__(self) -> "EarlierOrchestrator":
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Be there no more; what is connected ends."""
        self._server.stop(grace=None).wait()

    def stream(self) -> Stream:
        """Return the next connection, once its worker has registered itself."""
        try:
            stream = self._streams.get(timeout=START_S)
        except queue.Empty:
            raise AssertionError(f"nobody connected within {START_S:.0f} s") from None
        stream.hear(WorkerRegistration, lambda told: not told.is_heartbeat)
        return stream

    def _connect(self, packets: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        stream = Stream(context)
        self.metadata.append(dict(context.invocation_metadata()))
        if self._leader:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"not_leader:{self._leader}")
        threading.Thread(target=self._hear, args=(packets, stream), daemon=True).start()
        self._streams.put(stream)
        while (order := stream.outgoing.get()) is not None:
            yield encode(order)
        context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    def _hear(self, packets: Iterator[bytes], stream: Stream) -> None:
        try:
            for packet in packets:
                message = decode(packet)
                assert message is not None
                with stream.changed:
                    stream.heard.append(message)
                    stream.changed.notify_all()
        except grpc.RpcError:
            pass  # the connection is gone
        finally:
            stream.outgoing.put(None)
