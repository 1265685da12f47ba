"""The orchestrator that tests play, itself: what it says, what it remembers, and how it is cut off."""

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from tests.scripted.certificates import certificate
from tests.scripted.orchestrator import OK, ScriptedOrchestrator
from tests.scripted.proxy import Proxy
from tests.scripted.wire import SERVICE, wire

pytestmark = [
    pytest.mark.process,
    pytest.mark.needs("grpc_tools", "cryptography"),
    pytest.mark.usefixtures("grpc_awake"),
]


class Caller:
    """A worker that does what the test says, message by message."""

    def __init__(self, address: str, *, authority: bytes | None = None) -> None:
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        if authority is None:
            self._channel = grpc.insecure_channel(address)
        else:
            self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(authority))
        packets = iter(self._outgoing.get, None)
        self.call = self._channel.stream_stream(f"/{SERVICE}/Connect")(
            packets, metadata=(("authorization", "Bearer t"),)
        )

    def say(self, **message: Any) -> None:
        self._outgoing.put(wire().WorkerMessage(**message).SerializeToString())

    def hear(self) -> Any:
        return wire().SchedulerMessage.FromString(next(self.call))

    def close(self) -> None:
        self._outgoing.put(None)
        self._channel.close()


@contextmanager
def calling(address: str, **options: Any) -> Iterator[Caller]:
    caller = Caller(address, **options)
    try:
        yield caller
    finally:
        caller.close()


@pytest.fixture
def orchestrator() -> Iterator[ScriptedOrchestrator]:
    with ScriptedOrchestrator() as made:
        yield made


def test_it_speaks_and_remembers(orchestrator: ScriptedOrchestrator) -> None:
    with calling(orchestrator.address) as worker:
        worker.say(hello={"worker_id": "w", "protocol_version": 2})
        connection = orchestrator.greet(file_base_url="http://files")
        assert connection.metadata["authorization"] == "Bearer t"
        assert connection.hello.worker_id == "w"
        assert worker.hear().hello_ack.file_base_url == "http://files"
        job = connection.run("echo", {"text": "hi"})
        assert worker.hear().run_job.request_id == job.request_id
        worker.say(job_accepted=job.pair)
        worker.say(job_result={**job.pair, "status": OK, "inline": b"\x02"})
        job.accepted()
        assert job.output() == 2
        assert connection.said() == ["hello", "job_accepted", "job_result"]
        assert orchestrator.of(job.request_id) == ["job_accepted", "job_result"]


def test_it_ends_a_stream_with_a_status(orchestrator: ScriptedOrchestrator) -> None:
    with calling(orchestrator.address) as worker:
        worker.say(hello={"worker_id": "w"})
        orchestrator.connection().end(grpc.StatusCode.FAILED_PRECONDITION, "not_leader:elsewhere:1")
        with pytest.raises(grpc.RpcError) as raised:
            worker.hear()
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert raised.value.details() == "not_leader:elsewhere:1"


def test_it_speaks_tls() -> None:
    tls = certificate()
    with (
        ScriptedOrchestrator(tls=tls) as orchestrator,
        calling(orchestrator.address, authority=tls.authority) as worker,
    ):
        worker.say(hello={"worker_id": "w"})
        assert orchestrator.greet().hello.worker_id == "w"


def test_its_proxy_stalls_and_goes_on_and_cuts(orchestrator: ScriptedOrchestrator) -> None:
    with Proxy(orchestrator.address) as proxy, calling(proxy.address) as worker:
        worker.say(hello={"worker_id": "w"})
        connection = orchestrator.greet()
        proxy.stall()
        worker.say(state_delta={"phase": 5})
        proxy.resume()
        connection.expect("state_delta", phase=5)
        proxy.cut_after(3)
        worker.say(state_delta={"phase": 6})
        connection.until_gone()
        assert connection.said() == ["hello", "state_delta"]
