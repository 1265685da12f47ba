"""The stream to the orchestrator, against a real gRPC server: it comes back from all, and loses nothing quietly."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from gen_worker.wire.scheduler import (
    EVENT_TYPE,
    MESSAGE_BYTES,
    CancelJob,
    Drain,
    FnUnavailable,
    HelloAck,
    JobAccepted,
    JobProgress,
    JobResult,
    JobStatus,
    RunJob,
    SchedulerFrame,
    StateDelta,
    TokenRefresh,
    WorkerFrame,
)
from gen_worker_supervisor.link.connection import Pace
from gen_worker_supervisor.link.redialing import LinkFatalError
from tests.orchestrators import Noted, Stream, begin_grpc, eventually, linked, orchestrator, stay
from tests.scripted.certificates import certificate
from tests.scripted.proxy import Proxy

pytestmark = pytest.mark.process

RUN = RunJob(request_id="r", attempt=1, function_name="f")
ACCEPTED = JobAccepted(request_id="r", attempt=1)
RESULT = JobResult(request_id="r", attempt=1, status=JobStatus.OK, inline=b"x")


def chunk(seq: int, body: bytes = b"x") -> JobProgress:
    """A piece of a stream."""
    return JobProgress(request_id="r", attempt=1, seq=seq, body=body, content_type="application/json")


def refuse(status: grpc.StatusCode, details: str) -> Callable[[Stream], Awaitable[None]]:
    """Refuse the worker."""

    async def play(stream: Stream) -> None:
        await stream.refuse(status, details)

    return play


@pytest.fixture(scope="module", autouse=True)
def _grpc_has_begun() -> None:
    begin_grpc()


def test_the_hello_comes_first_and_nothing_before_its_acknowledgment() -> None:
    asked = asyncio.Event()

    async def play(stream: Stream) -> None:
        hello = await stream.read()
        assert hello is not None
        assert hello.worker_id == "w1"  # type: ignore[union-attr]
        await stream.context.write(b"")  # no message: ignored, here and everywhere
        await asked.wait()
        await stream.write(HelloAck())
        assert await stream.read() is None

    async def check() -> None:
        async with orchestrator(play) as served, linked(served.address, token="TOKEN") as worker:
            await eventually(lambda: served.streams)
            worker.link.send(StateDelta(free_vram_bytes=1))
            await eventually(lambda: worker.session.left_frames)
            assert worker.session.left_frames == [(StateDelta(free_vram_bytes=1), False)]
            asked.set()
            await eventually(lambda: worker.link.status().connected)
            assert served.streams[0].metadata["authorization"] == "Bearer TOKEN"
            assert worker.session.heard == [HelloAck()]
            assert 0.0 < (worker.link.status().rtt_s or 0.0) < 10.0  # from Hello to HelloAck

    asyncio.run(check())


def test_without_a_token_none_is_shown() -> None:
    async def check() -> None:
        async with orchestrator(stay) as served, linked(served.address) as worker:
            await eventually(lambda: worker.link.status().connected)
            assert "authorization" not in served.streams[0].metadata

    asyncio.run(check())


def test_what_both_say_arrives_in_order() -> None:
    said: list[SchedulerFrame] = [
        RUN,
        CancelJob(request_id="r", attempt=1),
        Drain(deadline_ms=5),
        HelloAck(keep=("c/d",)),
    ]
    frames: list[WorkerFrame] = [ACCEPTED, *(chunk(n) for n in range(1, 200)), RESULT]
    taken: list[WorkerFrame | None] = []

    async def play(stream: Stream) -> None:
        await stream.greet()
        await stream.write(*said)
        while (frame := await stream.read()) is not None:
            taken.append(frame)

    async def check() -> None:
        async with orchestrator(play) as served, linked(served.address) as worker:
            await eventually(lambda: len(worker.session.heard) == 5)
            for frame in frames:
                worker.link.send(frame)
            await eventually(lambda: len(worker.session.left_frames) == len(frames))
            assert worker.session.heard[1:] == said
            await worker.link.close(5.0)
            assert worker.session.left_frames == [(frame, True) for frame in frames]
            assert taken == frames

    asyncio.run(check())


def test_closing_writes_what_waits_and_ends_the_stream_in_order() -> None:
    taken: list[WorkerFrame | None] = []

    async def play(stream: Stream) -> None:
        await stream.greet()
        while (frame := await stream.read()) is not None:
            taken.append(frame)

    async def check() -> None:
        async with orchestrator(play) as served, linked(served.address) as worker:
            await eventually(lambda: worker.link.status().connected)
            for seq in range(500):
                worker.link.send(chunk(seq))
            worker.link.send(RESULT)
            await worker.link.close(5.0)
            assert len(taken) == 501
            assert taken[-1] == RESULT
            assert worker.running.done()
            assert "disconnected" in worker.session.heard
            worker.link.send(RESULT)
            await asyncio.sleep(0)
            assert worker.session.left_frames[-1] == (RESULT, False)
            assert len(served.streams) == 1

    asyncio.run(check())


def test_closing_does_not_wait_for_an_orchestrator_that_is_not_there() -> None:
    async def check() -> None:
        async with linked("grpc://127.0.0.1:1") as worker:
            await eventually(lambda: worker.link.status().last_error)
            began = time.monotonic()
            await worker.link.close(30.0)
            assert time.monotonic() - began < 1.0

    asyncio.run(check())


def test_a_peer_that_never_ends_its_half_is_waited_for_no_longer_than_it_may_take() -> None:
    async def play(stream: Stream) -> None:
        await stream.greet()
        await asyncio.Event().wait()

    async def check() -> None:
        async with orchestrator(play) as served, linked(served.address, pace=Pace(farewell_s=0.2)) as worker:
            await eventually(lambda: worker.link.status().connected)
            began = time.monotonic()
            await worker.link.close(30.0)
            assert 0.2 <= time.monotonic() - began < 2.0

    asyncio.run(check())


def test_a_stream_that_ends_is_dialed_again_and_what_waited_is_told() -> None:
    async def leave(stream: Stream) -> None:
        await stream.greet()
        await stream.take(JobAccepted)
        await stream.refuse(grpc.StatusCode.ABORTED, "worker_stream_superseded")

    async def check() -> None:
        async with orchestrator(leave, stay) as served, linked(served.address) as worker:
            await eventually(lambda: worker.link.status().connected)
            worker.link.send(ACCEPTED)
            await eventually(lambda: len(served.streams) == 2 and worker.link.status().connected)
            worker.link.send(RESULT)
            await eventually(lambda: (RESULT, True) in worker.session.left_frames)
            kinds = [each if isinstance(each, str) else type(each).__name__ for each in worker.session.heard]
            assert kinds == ["HelloAck", "disconnected", "HelloAck"]
            assert worker.link.status().attempts == 2
            assert worker.link.status().last_error == "ABORTED: worker_stream_superseded"
            assert any("lost grpc://127.0.0.1" in each for each in worker.events())

    asyncio.run(check())


@pytest.mark.promise(19)
@pytest.mark.parametrize(
    "garbage",
    [b"\xff\xff\xff", b"\x12\x05ab", b"\x0a\x80\x80\x80\x80\x80", b"\x12\x04\x0a\x02\xff\xfe"],
    ids=["tag", "truncated", "varint", "utf8"],
)
def test_garbage_ends_the_stream_and_not_the_worker(garbage: bytes) -> None:
    async def speak_garbage(stream: Stream) -> None:
        await stream.greet()
        await stream.context.write(garbage)
        await stream.read()

    async def check() -> None:
        async with orchestrator(speak_garbage, stay) as served, linked(served.address) as worker:
            await eventually(lambda: len(served.streams) == 2 and worker.link.status().connected)
            assert worker.link.status().last_error.startswith("INTERNAL: the orchestrator sent")

    asyncio.run(check())


@pytest.mark.parametrize("first", [RUN, Drain(), TokenRefresh(token="x")], ids=lambda frame: type(frame).__name__)
def test_an_orchestrator_that_does_not_begin_with_its_acknowledgment_is_left(
    first: RunJob | Drain | TokenRefresh,
) -> None:
    async def hasty(stream: Stream) -> None:
        await stream.read()
        await stream.write(first)
        await stream.read()

    async def check() -> None:
        async with orchestrator(hasty, stay) as served, linked(served.address) as worker:
            await eventually(lambda: len(served.streams) == 2 and worker.link.status().connected)
            assert worker.session.heard == [HelloAck(file_base_url="http://files", keep=("a/b",))]
            assert f"began with {type(first).__name__}" in worker.link.status().last_error

    asyncio.run(check())


def test_an_orchestrator_that_says_nothing_is_left_in_time() -> None:
    async def mute(stream: Stream) -> None:
        await asyncio.Event().wait()

    async def check() -> None:
        async with orchestrator(mute, stay) as served, linked(served.address, pace=Pace(ack_s=0.2)) as worker:
            await eventually(lambda: len(served.streams) == 2 and worker.link.status().connected)
            assert worker.link.status().last_error == "DEADLINE_EXCEEDED: no HelloAck within 0.2 s"

    asyncio.run(check())


def test_redirects_lead_to_the_leader_at_once() -> None:
    async def check() -> None:
        async with (
            orchestrator(stay) as leader,
            orchestrator(refuse(grpc.StatusCode.FAILED_PRECONDITION, f"not_leader:127.0.0.1:{leader.port}")) as second,
            orchestrator(refuse(grpc.StatusCode.FAILED_PRECONDITION, f"not_leader:127.0.0.1:{second.port}")) as first,
            linked(first.address) as worker,
        ):
            await eventually(lambda: worker.link.status().connected)
            assert worker.link.status().address == leader.address
            assert worker.link.status().attempts == 3
            assert sum("is not the leader" in each for each in worker.events()) == 2

    asyncio.run(check())


def test_a_circle_of_redirects_ends_in_a_pause() -> None:
    def to_itself(port: int) -> Callable[[Stream], Awaitable[None]]:
        return refuse(grpc.StatusCode.FAILED_PRECONDITION, f"not_leader:127.0.0.1:{port}")

    async def check() -> None:
        async with orchestrator(stay) as served:
            served.plays = (*[to_itself(served.port)] * 6, stay)
            async with linked(served.address) as worker:
                await eventually(lambda: worker.link.status().connected)
                assert len(served.streams) == 7

    asyncio.run(check())


@pytest.mark.parametrize(
    ("status", "details", "told"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "protocol_version_mismatch", "version 2"),
        (grpc.StatusCode.FAILED_PRECONDITION, "worker_id_mismatch", "another worker id"),
        (grpc.StatusCode.FAILED_PRECONDITION, "release_id_mismatch", "this release"),
        (grpc.StatusCode.FAILED_PRECONDITION, "missing worker identity", "who the worker is"),
    ],
)
def test_a_refusal_for_good_ends_the_link_with_what_to_do(status: grpc.StatusCode, details: str, told: str) -> None:
    async def check() -> None:
        async with orchestrator(refuse(status, details)) as served, linked(served.address) as worker:
            with pytest.raises(LinkFatalError, match=told) as raised:
                await asyncio.wait_for(worker.running, 5.0)
            assert raised.value.hint

    asyncio.run(check())


@pytest.mark.promise(19)
def test_an_acknowledgment_of_another_version_is_fatal() -> None:
    async def other(stream: Stream) -> None:
        await stream.read()
        await stream.write(HelloAck(protocol_version=3))
        await stream.read()

    async def check() -> None:
        async with orchestrator(other) as served, linked(served.address) as worker:
            with pytest.raises(LinkFatalError, match="version 2"):
                await asyncio.wait_for(worker.running, 5.0)
            assert worker.session.heard == []

    asyncio.run(check())


def test_without_any_orchestrator_the_link_gives_up_in_time() -> None:
    async def check() -> None:
        async with linked("grpc://127.0.0.1:1", disconnected_timeout_s=0.5) as worker:
            began = time.monotonic()
            with pytest.raises(LinkFatalError, match=r"no orchestrator for 0\.5 s"):
                await asyncio.wait_for(worker.running, 5.0)
            assert 0.4 <= time.monotonic() - began < 2.0

    asyncio.run(check())


def test_the_next_address_is_dialed_where_the_first_is_dead() -> None:
    async def check() -> None:
        async with orchestrator(stay) as served, linked("grpc://127.0.0.1:1", served.address) as worker:
            await eventually(lambda: worker.link.status().connected)
            assert worker.link.status().address == served.address

    asyncio.run(check())


def test_a_new_token_is_shown_on_later_connections_only() -> None:
    async def rotate(stream: Stream) -> None:
        await stream.greet()
        await stream.write(TokenRefresh(token="NEW", expires_at_unix=2_000_000_000), RUN)
        await stream.take(JobAccepted)

    async def check() -> None:
        session = Noted()
        async with orchestrator(rotate, stay) as served, linked(served.address, session=session, token="OLD") as worker:
            session.on_received = lambda frame: worker.link.send(ACCEPTED)
            await eventually(lambda: len(served.streams) == 2 and worker.link.status().connected)
            assert [stream.metadata["authorization"] for stream in served.streams] == ["Bearer OLD", "Bearer NEW"]
            assert RUN in session.heard
            assert not any("NEW" in each for each in worker.events())

    asyncio.run(check())


def test_a_token_that_a_peer_repeats_is_told_nowhere() -> None:
    async def check() -> None:
        gossip = refuse(grpc.StatusCode.UNAUTHENTICATED, "token SECRET-1 is expired")
        async with orchestrator(gossip, stay) as served, linked(served.address, token="SECRET-1") as worker:
            await eventually(lambda: worker.link.status().connected)
            assert worker.link.status().last_error == "UNAUTHENTICATED: token [secret] is expired"
            assert not any("SECRET-1" in each for each in worker.events())

    asyncio.run(check())


@pytest.mark.parametrize(("token", "hint"), [("", "is not set"), ("OLD", "which it does not take")])
def test_a_worker_that_is_refused_for_its_token_says_whether_it_has_shown_one(token: str, hint: str) -> None:
    async def check() -> None:
        refusal = refuse(grpc.StatusCode.UNAUTHENTICATED, "a token is wanted")
        async with orchestrator(refusal, stay) as served, linked(served.address, token=token) as worker:
            await eventually(lambda: worker.link.status().connected)
            assert any("hint: `WORKER_JWT`" in each and hint in each for each in worker.events()), worker.events()

    asyncio.run(check())


def test_a_bug_in_what_handles_a_message_is_no_trouble_with_the_connection() -> None:
    def stumble(_frame: object) -> None:
        raise ZeroDivisionError("a bug")

    async def play(stream: Stream) -> None:
        await stream.greet()
        await stream.write(RUN, RUN)
        await stream.take(StateDelta)

    async def check() -> None:
        session = Noted()
        session.on_received = stumble
        async with orchestrator(play) as served, linked(served.address, session=session) as worker:
            await eventually(lambda: len(session.heard) == 3)
            assert sum("ZeroDivisionError" in each for each in worker.events()) == 2
            assert worker.link.status().connected
            worker.link.send(StateDelta())
            await eventually(lambda: session.left_frames)
            assert session.left_frames == [(StateDelta(), True)]

    asyncio.run(check())


def test_the_same_trouble_is_told_once_a_minute() -> None:
    async def check() -> None:
        again = refuse(grpc.StatusCode.UNAVAILABLE, "maintenance")
        async with orchestrator(again, again, again, stay) as served, linked(served.address) as worker:
            await eventually(lambda: worker.link.status().connected)
            assert sum("maintenance" in each for each in worker.events()) == 1

    asyncio.run(check())


def test_a_message_that_no_stream_carries_costs_only_itself() -> None:
    async def check() -> None:
        async with orchestrator(stay) as served, linked(served.address) as worker:
            await eventually(lambda: worker.link.status().connected)
            huge = chunk(1, bytes(MESSAGE_BYTES))
            worker.link.send(huge)
            worker.link.send(RESULT)
            await eventually(lambda: len(worker.session.left_frames) == 2)
            assert [written for _, written in worker.session.left_frames] == [False, True]
            assert len(served.streams) == 1

    asyncio.run(check())


def test_an_orchestrator_that_takes_nothing_is_heard_no_further_until_it_does() -> None:
    """Its own messages then wait with it: what they would cause has no room here."""
    slow = asyncio.Event

    async def check() -> None:
        may_read = slow()
        read: list[WorkerFrame | None] = []

        async def deaf(stream: Stream) -> None:
            await stream.greet()

            async def listen() -> None:
                await may_read.wait()
                while (frame := await stream.read()) is not None:
                    read.append(frame)

            listening = asyncio.create_task(listen())
            for number in range(3000):
                await stream.write(RunJob(request_id=f"r{number}", attempt=1, function_name="f"))
            await listening

        session = Noted()
        detail = "x" * 10_000  # so that the connection's own buffers fill up

        def gate(frame: object) -> None:
            worker.link.send(FnUnavailable(function_name=frame.request_id, reason="no", detail=detail))  # type: ignore[attr-defined]

        async with orchestrator(deaf) as served, linked(served.address, session=session) as worker:
            session.on_received = gate
            await eventually(lambda: worker.link._outbox.full, "a full queue")
            heard = len(session.heard)
            assert heard < 3000
            await asyncio.sleep(0.05)
            assert len(session.heard) == heard
            may_read.set()
            await eventually(lambda: len(read) == 3000)
            assert [frame.function_name for frame in read] == [f"r{n}" for n in range(3000)]  # type: ignore[union-attr]

    asyncio.run(check())


def test_progress_of_its_own_is_dropped_before_what_a_job_makes() -> None:
    async def check() -> None:
        may_read = asyncio.Event()
        read: list[WorkerFrame | None] = []

        async def deaf(stream: Stream) -> None:
            await stream.greet()
            await may_read.wait()
            while (frame := await stream.read()) is not None:
                read.append(frame)

        async with orchestrator(deaf) as served, linked(served.address) as worker:
            await eventually(lambda: worker.link.status().connected)
            for seq in range(1, 901):
                worker.link.send(chunk(seq, b"x" * 4000))
            told = JobProgress(request_id="r", attempt=1, seq=901, body=b"{}", content_type=EVENT_TYPE)
            for _ in range(600):
                worker.link.send(told)
            worker.link.send(RESULT)
            may_read.set()
            await eventually(lambda: read and read[-1] == RESULT)
            assert [frame.seq for frame in read if isinstance(frame, JobProgress) and frame != told] == [*range(1, 901)]
            assert all(frame == told for frame, written in worker.session.left_frames if not written)

    asyncio.run(check())


@pytest.fixture
def proxied() -> Iterator[Callable[[int], Proxy]]:
    """Make proxies in front of ports; they end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda port: stack.enter_context(Proxy(f"127.0.0.1:{port}"))


def test_a_connection_that_is_reset_comes_back(proxied: Callable[[int], Proxy]) -> None:
    async def check() -> None:
        async with orchestrator(stay) as served:
            proxy = proxied(served.port)
            async with linked(f"grpc://{proxy.address}") as worker:
                await eventually(lambda: worker.link.status().connected)
                proxy.reset()
                await eventually(lambda: len(served.streams) == 2 and worker.link.status().connected)
                assert worker.session.heard.count("disconnected") == 1

    asyncio.run(check())


def test_a_connection_that_is_cut_in_the_middle_of_a_message_loses_none_of_them_quietly(
    proxied: Callable[[int], Proxy],
) -> None:
    async def check() -> None:
        async with orchestrator(stay) as served:
            proxy = proxied(served.port)
            async with linked(f"grpc://{proxy.address}") as worker:
                await eventually(lambda: worker.link.status().connected)
                proxy.cut_after(5000)
                frames = [chunk(seq, b"x" * 1000) for seq in range(50)]
                for frame in frames:
                    worker.link.send(frame)
                await eventually(lambda: len(worker.session.left_frames) == 50)
                assert [frame for frame, _ in worker.session.left_frames] == frames
                await eventually(lambda: len(served.streams) == 2 and worker.link.status().connected)

    asyncio.run(check())


@pytest.mark.promise(16)
def test_a_half_open_connection_is_noticed_by_its_silence(proxied: Callable[[int], Proxy]) -> None:
    async def check() -> None:
        async with orchestrator(stay) as served:
            proxy = proxied(served.port)
            async with linked(f"grpc://{proxy.address}", pace=Pace(ping_s=1.0, pong_s=0.3)) as worker:
                await eventually(lambda: worker.link.status().connected)
                proxy.stall()
                await eventually(lambda: "disconnected" in worker.session.heard, "noticing")
                proxy.resume()
                await eventually(lambda: worker.link.status().connected)

    asyncio.run(check())


def test_tls_with_an_authority_of_its_own(tmp_path: Path) -> None:
    shown = certificate()
    credentials = grpc.ssl_server_credentials([(shown.key, shown.certificate)])

    async def check() -> None:
        async with orchestrator(stay, credentials=credentials) as served:
            address = f"grpcs://127.0.0.1:{served.port}"
            async with linked(address, ca_bundle=shown.authority) as worker:
                await eventually(lambda: worker.link.status().connected)
                assert worker.link.status().address == address
            async with linked(address, ca_bundle=certificate().authority) as worker:
                await eventually(lambda: worker.link.status().last_error)
                assert "handshake failed" in worker.link.status().last_error
            async with linked(served.address) as worker:
                await eventually(lambda: worker.link.status().last_error)
                assert not worker.link.status().connected

    asyncio.run(check())


def test_a_redirect_without_a_scheme_keeps_tls() -> None:
    shown = certificate()
    credentials = grpc.ssl_server_credentials([(shown.key, shown.certificate)])

    async def check() -> None:
        async with orchestrator(stay, credentials=credentials) as leader:
            away = refuse(grpc.StatusCode.FAILED_PRECONDITION, f"not_leader:127.0.0.1:{leader.port}")
            async with (
                orchestrator(away, credentials=credentials) as first,
                linked(f"127.0.0.1:{first.port}", use_tls=True, ca_bundle=shown.authority) as worker,
            ):
                await eventually(lambda: worker.link.status().connected)
                assert len(leader.streams) == 1

    asyncio.run(check())


def test_an_orchestrator_that_comes_later_is_found() -> None:
    async def check() -> None:
        async with orchestrator(stay) as served:
            port = served.port
        async with linked(f"grpc://127.0.0.1:{port}") as worker:
            await eventually(lambda: worker.link.status().last_error)
            async with orchestrator(stay, port=port):
                await eventually(lambda: worker.link.status().connected)

    asyncio.run(check())
