"""The Python client, against a supervisor that is a few lines in a thread: frames, shared memory, errors, the end."""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gen_worker import __version__
from gen_worker.client import AsyncClient, Client, JobError, SupervisorUnreachable
from gen_worker.wire import control
from gen_worker.wire.channel import close_all, receive_packet, send_packet
from gen_worker.wire.messages import FRAME_LIMIT, ErrorDetail
from gen_worker.wire.regions import Mapped, OwnRegion, open_region, size_class
from gen_worker.wire.status import Status

BIG = os.urandom(1 << 20)
Answers = list[Any]


class Supervisor:
    """Answers one client; echoes payloads, in shared memory when they came in shared memory."""

    def __init__(self, folder: Path, protocol: int = control.CONTROL_PROTOCOL) -> None:
        self.path = folder / "control.sock"
        self.seen: list[Any] = []
        self.mapped: dict[int, Mapped] = {}
        self.own: dict[int, OwnRegion] = {}
        self.one_shot = False
        self.refusal: control.Error | None = None
        self.answer: Callable[[Any], Answers] = self.echo
        self._protocol = protocol
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(os.fspath(self.path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        if self._listener.fileno() < 0:
            return
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()
        for region in [*self.own.values(), *self.mapped.values()]:
            region.close()
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        buffer = memoryview(bytearray(FRAME_LIMIT))
        decode = msgspec.msgpack.Decoder(control.ClientFrame).decode
        with sock:
            while True:
                length, descriptors = receive_packet(sock, buffer)
                if not length:
                    return
                frame = decode(buffer[:length])
                self.seen.append(frame)
                for answer in self.take(frame, descriptors):
                    if answer is None:
                        return
                    region = getattr(answer, "body", None)
                    fds = [self.own[region.region].fd] if isinstance(region, control.Attached) else []
                    send_packet(sock, msgspec.msgpack.encode(answer), fds)
                close_all(descriptors)

    def take(self, frame: Any, descriptors: list[int]) -> Answers:
        match frame:
            case control.Open():
                return [self.refusal or control.Opened(self._protocol, "boot", os.getpid(), "9.9")]
            case control.Submit(body=control.Attached(length, region)):
                mapped = self.mapped.get(region) or open_region(os.dup(descriptors[0]), length, writable=False)
                if region:
                    self.mapped[region] = mapped
                return self.answer(msgspec.structs.replace(frame, body=bytes(mapped.body(length))))
            case _:
                return self.answer(frame)

    def echo(self, frame: Any) -> Answers:
        match frame:
            case control.Submit():
                return [
                    control.Accepted(frame.request_id, 1),
                    control.Result(frame.request_id, 1, self.body(frame.body)),
                ]
            case control.Cancel():
                return [control.Canceled(frame.request_id, True)]
            case control.List():
                return [
                    control.Listed(msgspec.json.encode(Status(ts=1.0, host="h", version="9.9", pid=1, uptime_s=2.0)))
                ]
            case _:
                return []

    def body(self, data: control.Value) -> control.Value:
        assert isinstance(data, bytes)
        if len(data) <= 48 * 1024:
            return data
        number = 0 if self.one_shot else size_class(len(data)) >> 20
        if number not in self.own:
            self.own[number] = OwnRegion.create(size_class(len(data)), shared_with_readers_only=True)
        self.own[number].view[: len(data)] = data
        return control.Attached(len(data), number)

    def frames(self, kind: Any) -> list[Any]:
        return [frame for frame in self.seen if isinstance(frame, kind)]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gw-") as made:
        yield Path(made)


@pytest.fixture
def supervisor(folder: Path) -> Iterator[Supervisor]:
    made = Supervisor(folder)
    yield made
    made.close()


@pytest.fixture
def client(supervisor: Supervisor) -> Iterator[Client]:
    with Client(supervisor.path) as made:
        yield made


class Reply(msgspec.Struct):
    data: bytes


class Look(msgspec.Struct):
    data: memoryview


def test_a_call_returns_the_output_and_acknowledges_it(client: Client, supervisor: Supervisor) -> None:
    assert client.call("echo", {"a": [1, "x", None]}) == {"a": [1, "x", None]}
    assert client.call("echo", {"data": b"x"}, type=Reply) == Reply(b"x")
    assert client.list().host == "h"
    assert [frame.attempt for frame in supervisor.frames(control.Ack)] == [1, 1]
    assert client.supervisor.version == "9.9"


def test_a_deadline_and_a_wish_for_events_travel_with_the_job(client: Client, supervisor: Supervisor) -> None:
    client.call("echo", {}, timeout_s=1.5, request_id="mine", on_event=lambda kind, value: None)
    (frame,) = supervisor.frames(control.Submit)
    assert (frame.request_id, frame.timeout_ms, frame.events, frame.stream) == ("mine", 1500, True, False)


@pytest.mark.parametrize("endless", [float("inf"), 1e300])
def test_any_long_time_can_be_waited_for(supervisor: Supervisor, endless: float) -> None:
    with Client(supervisor.path, endless) as client:
        assert client.call("echo", 1, timeout_s=endless) == 1
        assert client.submit("echo", 2).result(endless) == 2
        assert client.cancel("r", endless)


@pytest.mark.parametrize("endless", [float("inf"), 1e300])
def test_a_task_can_wait_for_any_long_time(supervisor: Supervisor, endless: float) -> None:
    async def talk() -> None:
        async with AsyncClient(supervisor.path, endless) as client:
            assert await client.call("echo", 1, timeout_s=endless) == 1
            assert await (await client.submit("echo", 2)).result(endless) == 2
            assert await client.cancel("r", endless)

    asyncio.run(talk())


@pytest.mark.parametrize("time_s", [float("nan"), -1.0, float("-inf")])
def test_what_is_no_time_is_refused_before_anything_is_sent(
    client: Client, supervisor: Supervisor, time_s: float
) -> None:
    for wait in (
        lambda: client.submit("echo", 1, timeout_s=time_s),
        lambda: client.cancel("r", time_s),
        lambda: Client(supervisor.path, time_s),
    ):
        with pytest.raises(ValueError, match="`timeout_s` is a number of seconds, 0 or more"):
            wait()
    client.list()
    assert not supervisor.frames(control.Submit | control.Cancel)


def test_a_task_is_refused_what_is_no_time(supervisor: Supervisor) -> None:
    async def talk() -> None:
        async with AsyncClient(supervisor.path) as client:
            with pytest.raises(ValueError, match="0 or more: nan"):
                await client.submit("echo", 1, timeout_s=float("nan"))

    asyncio.run(talk())


def test_a_function_that_takes_no_fields_is_called_by_its_name_alone(client: Client) -> None:
    assert client.call("echo") == {}


def test_a_job_can_be_canceled_by_whoever_holds_it(supervisor: Supervisor) -> None:
    supervisor.answer = lambda frame: supervisor.echo(frame) if isinstance(frame, control.Cancel) else []
    with Client(supervisor.path) as client:
        assert client.submit("echo", 1, request_id="r").cancel()
    assert supervisor.frames(control.Cancel) == [control.Cancel("r")]


def test_big_bytes_travel_in_one_region_that_is_used_again(client: Client, supervisor: Supervisor) -> None:
    for number in range(5):
        data = bytes([number]) * (1 << 20)
        assert client.call("echo", {"data": data}) == {"data": data}
    bodies = [frame.body for frame in supervisor.frames(control.Submit)]
    assert {body.region for body in bodies} == {1}
    client.list()
    assert [frame.region for frame in supervisor.frames(control.Release)] == [2] * 5


def test_a_region_is_not_used_again_before_its_job_has_ended(client: Client, supervisor: Supervisor) -> None:
    waiting: list[Any] = []

    def together(frame: Any) -> Answers:
        if not isinstance(frame, control.Submit):
            return supervisor.echo(frame)
        waiting.append(control.Result(frame.request_id, 1, b"\xc0"))
        return waiting if len(waiting) == 3 else []

    supervisor.answer = together
    jobs = [client.submit("echo", BIG) for _ in range(3)]
    assert [job.result() for job in jobs] == [None] * 3
    assert [frame.body.region for frame in supervisor.frames(control.Submit)] == [1, 2, 3]


def test_memory_that_comes_for_one_use_is_unmapped_after_it(client: Client, supervisor: Supervisor) -> None:
    supervisor.one_shot = True
    assert client.call("echo", {"data": BIG}) == {"data": BIG}
    maps = Path("/proc/self/maps").read_text()
    assert client.call("echo", {"data": BIG}) == {"data": BIG}
    assert maps.count("gen-worker") == Path("/proc/self/maps").read_text().count("gen-worker")
    client.list()
    assert supervisor.frames(control.Release) == []


def test_a_view_of_the_output_holds_its_region_as_long_as_it_lives(client: Client, supervisor: Supervisor) -> None:
    look = client.call("echo", {"data": BIG}, type=Look)
    assert look.data == BIG
    assert look.data.readonly
    client.list()
    assert supervisor.frames(control.Release) == []
    assert len(supervisor.frames(control.Ack)) == 1
    del look
    client.call("echo", {})
    client.list()
    assert [frame.region for frame in supervisor.frames(control.Release)] == [2]
    assert len(supervisor.frames(control.Ack)) == 2


def test_a_view_can_be_looked_at_after_its_client_and_the_result_is_acknowledged(supervisor: Supervisor) -> None:
    with Client(supervisor.path) as client:
        look = client.call("echo", {"data": BIG}, type=Look)
    assert bytes(look.data) == BIG
    supervisor.close()
    assert len(supervisor.frames(control.Ack)) == 1


def test_answers_come_in_any_order(client: Client, supervisor: Supervisor) -> None:
    held: list[Any] = []

    def last_first(frame: Any) -> Answers:
        if isinstance(frame, control.Submit):
            held.insert(0, control.Result(frame.request_id, 1, frame.body))
            return held if len(held) == 3 else []
        return []

    supervisor.answer = last_first
    jobs = [client.submit("echo", number) for number in range(3)]
    assert [job.result() for job in jobs] == [0, 1, 2]


def test_items_of_a_stream_come_as_they_are_made_and_are_counted_back(client: Client, supervisor: Supervisor) -> None:
    def count(frame: Any) -> Answers:
        if not isinstance(frame, control.Submit):
            return []
        items = [control.Item(frame.request_id, msgspec.msgpack.encode(number)) for number in range(20)]
        return [*items, control.Result(frame.request_id, 1, b"", yielded=20)]

    supervisor.answer = count
    assert list(client.stream("count", {})) == list(range(20))
    (frame,) = supervisor.frames(control.Submit)
    assert frame.stream
    assert sum(more.items for more in supervisor.frames(control.More)) <= 20


def test_before_waiting_for_an_item_the_ones_taken_are_said(client: Client, supervisor: Supervisor) -> None:
    def one_by_one(frame: Any) -> Answers:
        match frame:
            case control.Submit():
                return [control.Item(frame.request_id, msgspec.msgpack.encode(0))]
            case control.More(request_id, items):
                assert items == 1
                if len(supervisor.frames(control.More)) == 3:
                    return [control.Result(request_id, 1, b"", yielded=3)]
                return [control.Item(request_id, msgspec.msgpack.encode(len(supervisor.frames(control.More))))]
        return []

    supervisor.answer = one_by_one
    assert list(client.stream("count", {})) == [0, 1, 2]


@pytest.mark.parametrize("stream", [False, True])
def test_the_result_of_a_function_that_streams_is_the_list_of_its_items(
    client: Client, supervisor: Supervisor, stream: bool
) -> None:
    def one_by_one(frame: Any) -> Answers:
        match frame:
            case control.Submit(request_id):
                items = [control.Item(request_id, msgspec.msgpack.encode(number)) for number in range(3)]
                return items if stream else [*items, control.Result(request_id, 1, b"", yielded=3)]
            case control.More(request_id) if sum(more.items for more in supervisor.frames(control.More)) == 3:
                return [control.Result(request_id, 1, b"", yielded=3)]
        return []

    supervisor.answer = one_by_one
    job = client.submit("count", {}, stream=stream)
    assert job.result() == job.result() == [0, 1, 2]
    assert list(job.items()) == [0, 1, 2]
    assert bool(supervisor.frames(control.More)) == stream


def test_a_stream_without_items_is_an_empty_list(client: Client, supervisor: Supervisor) -> None:
    supervisor.answer = lambda frame: (
        [control.Result(frame.request_id, 1, b"")] if isinstance(frame, control.Submit) else []
    )
    assert client.call("count", {}) == []
    assert list(client.stream("count", {})) == []


def test_items_that_went_to_an_earlier_connection_are_not_passed_over(client: Client, supervisor: Supervisor) -> None:
    def rest(frame: Any) -> Answers:
        if not isinstance(frame, control.Submit):
            return []
        item = control.Item(frame.request_id, msgspec.msgpack.encode(2))
        return [item, control.Result(frame.request_id, 1, b"", yielded=3)]

    supervisor.answer = rest
    with pytest.raises(JobError, match="2 of 3 items went to an earlier connection") as caught:
        client.call("count", {})
    assert (caught.value.kind, caught.value.retryable) == ("retryable", True)


def test_items_of_a_run_that_died_with_its_child_are_not_in_the_list(client: Client, supervisor: Supervisor) -> None:
    def twice(frame: Any) -> Answers:
        if not isinstance(frame, control.Submit):
            return []
        items = [control.Item(frame.request_id, msgspec.msgpack.encode(number)) for number in (0, 1, 0, 1, 2)]
        return [*items, control.Result(frame.request_id, 1, b"", yielded=3)]

    supervisor.answer = twice
    assert client.call("count", {}) == [0, 1, 2]


def test_the_only_item_of_a_function_that_does_not_stream_is_its_output(client: Client) -> None:
    assert list(client.stream("echo", {"a": 1})) == [{"a": 1}]
    assert list(client.submit("echo", 5).items()) == [5]


def test_leaving_a_stream_early_cancels_its_job_only(client: Client, supervisor: Supervisor) -> None:
    submitted: list[str] = []

    def endless(frame: Any) -> Answers:
        match frame:
            case control.Submit(request_id=request_id, stream=True):
                submitted.append(request_id)
                return [control.Item(request_id, msgspec.msgpack.encode(number)) for number in range(3)]
            case control.Cancel(request_id):
                item = control.Item(request_id, msgspec.msgpack.encode(9))
                return [
                    item,
                    control.Error(request_id, 1, "canceled", "canceled", False),
                    control.Canceled(request_id, True),
                ]
        return supervisor.echo(frame)

    supervisor.answer = endless
    for item in client.stream("count", {}):
        assert item == 0
        break
    assert client.call("echo", 5) == 5
    client.list()
    assert [frame.request_id for frame in supervisor.frames(control.Cancel)] == submitted
    assert len(supervisor.frames(control.Ack)) == 2


def test_events_reach_who_asked_for_them(client: Client, supervisor: Supervisor) -> None:
    def talk(frame: Any) -> Answers:
        if not isinstance(frame, control.Submit):
            return []
        event = control.Event(frame.request_id, "progress", b'{"progress":0.5}')
        return [event, *supervisor.echo(frame)]

    supervisor.answer = talk
    seen: list[Any] = []
    assert client.call("echo", 1, on_event=lambda kind, value: seen.append((kind, value))) == 1
    assert client.call("echo", 2) == 2
    assert seen == [("progress", {"progress": 0.5})]


def test_a_bad_end_is_a_typed_error(client: Client, supervisor: Supervisor) -> None:
    detail = ErrorDetail(cause="SIGSEGV", rung=4)
    supervisor.answer = lambda frame: (
        [control.Error(frame.request_id, 1, "child_died", "it died", True, detail)]
        if isinstance(frame, control.Submit)
        else []
    )
    with pytest.raises(JobError) as caught:
        client.call("crash", {})
    assert (caught.value.kind, str(caught.value), caught.value.retryable) == ("child_died", "it died", True)
    assert caught.value.detail == detail


def test_an_output_of_another_type_than_asked_for_is_said_with_its_path(client: Client) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"\$\.data"):
        client.call("echo", {"data": 5}, type=Reply)
    assert client.call("echo", 1) == 1


def test_waiting_can_be_bounded_and_taken_up_again(client: Client, supervisor: Supervisor) -> None:
    late: list[Any] = []
    supervisor.answer = lambda frame: late if isinstance(frame, control.List) else []
    job = client.submit("echo", 1, request_id="slow")
    with pytest.raises(TimeoutError):
        job.result(timeout_s=0.01)
    late[:] = [control.Result("slow", 1, b"\x01"), control.Listed(b"{}")]
    assert client.list_json() == b"{}"
    assert job.result() == 1


def test_a_request_id_names_one_job_at_a_time(client: Client, supervisor: Supervisor) -> None:
    supervisor.answer = lambda frame: []
    client.submit("echo", 1, request_id="mine")
    with pytest.raises(ValueError, match="`mine` has not ended yet"):
        client.submit("echo", 1, request_id="mine")


def test_cancel_and_kill_say_what_came_of_it(client: Client, supervisor: Supervisor) -> None:
    assert client.cancel("a") is True
    killed = control.Killed("a", "killed", rung=4, stack=["line"], seconds=0.4)
    supervisor.answer = lambda frame: [killed]
    assert client.kill("a", now=True) == killed
    assert supervisor.frames(control.Kill) == [control.Kill("a", True)]


def test_a_frame_that_is_refused_is_the_error_of_its_job(client: Client, supervisor: Supervisor) -> None:
    supervisor.answer = lambda frame: [control.Error(frame.request_id, 0, "usage", "no such function", False)]
    with pytest.raises(JobError, match="no such function"):
        client.call("nothing", BIG)


@pytest.mark.parametrize("moment", ["idle", "waiting"])
def test_a_supervisor_that_goes_away_is_said(supervisor: Supervisor, moment: str) -> None:
    with Client(supervisor.path) as client:
        supervisor.answer = lambda frame: [None]
        with pytest.raises(SupervisorUnreachable, match="closed the connection"):
            client.call("echo", 1)
        with pytest.raises(SupervisorUnreachable):
            client.call("echo", 1)


def test_a_place_where_nobody_listens_is_said(folder: Path) -> None:
    with pytest.raises(SupervisorUnreachable, match="no such file"):
        Client(folder / "nothing.sock")


def test_another_protocol_is_refused_with_the_version_to_use(folder: Path) -> None:
    supervisor = Supervisor(folder, protocol=7)
    with pytest.raises(
        SupervisorUnreachable, match=r"\(gen-worker 9.9\) speaks control protocol 7, .* speaks 1"
    ) as caught:
        Client(supervisor.path)
    assert caught.value.hint == f"use the client of gen-worker 9.9, or serve with gen-worker {__version__}"
    supervisor.close()


def test_a_supervisor_that_says_nothing_does_not_hold_the_client(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.fspath(folder / "control.sock"))
        listener.listen()
        with pytest.raises(SupervisorUnreachable, match=r"within 0\.05 s"):
            Client(folder / "control.sock", connect_timeout_s=0.05)


@pytest.mark.parametrize("reply", [b"\x93", b"\x91\xa3huh", b"\x92\xa6listed\x92\x01\x05"])
def test_bytes_that_are_no_frame_end_the_connection(supervisor: Supervisor, reply: bytes) -> None:
    with Client(supervisor.path) as client:
        supervisor.answer = lambda frame: [msgspec.Raw(reply)]
        with pytest.raises(SupervisorUnreachable, match=r"gone|cannot be read"):
            client.list()


def test_a_client_leaves_no_descriptor_and_no_mapping(supervisor: Supervisor) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with Client(supervisor.path) as client:
        client.call("echo", BIG)
        client.call("echo", BIG + BIG)
    supervisor.close()
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert "memfd:gen-worker" not in Path("/proc/self/maps").read_text()


def test_a_supervisor_that_refuses_the_version_is_quoted(supervisor: Supervisor) -> None:
    text = "the client speaks control protocol 1, this supervisor speaks 7: use the client of gen-worker 9.9"
    supervisor.refusal = control.Error("", 0, "usage", text, False)
    with pytest.raises(SupervisorUnreachable) as caught:
        Client(supervisor.path)
    assert str(caught.value) == f"the supervisor refuses this client: {text}"


# --- asyncio ----------------------------------------------------------------------------------------------------------


def with_client(supervisor: Supervisor, body: Callable[[AsyncClient], Awaitable[None]]) -> None:
    """Run `body` in a loop of its own, with a client."""

    async def main() -> None:
        async with AsyncClient(supervisor.path) as client:
            await body(client)

    asyncio.run(main())


def test_an_asyncio_client_gives_what_the_blocking_one_gives(supervisor: Supervisor) -> None:
    async def body(client: AsyncClient) -> None:
        assert client.supervisor.version == "9.9"
        assert await client.call("echo", {"a": [1, "x", None]}) == {"a": [1, "x", None]}
        assert await client.call("echo", {"data": BIG}, type=Reply) == Reply(BIG)
        look = await client.call("echo", {"data": BIG * 5}, type=Look)
        assert look.data == BIG * 5
        assert (await client.list()).host == "h"
        assert await client.cancel("a") is True
        assert [item async for item in client.stream("echo", 5)] == [5]
        with pytest.raises(msgspec.ValidationError, match=r"\$\.data"):
            await client.call("echo", {"data": 5}, type=Reply)

    with_client(supervisor, body)
    supervisor.close()
    assert [frame.attempt for frame in supervisor.frames(control.Ack)] == [1] * 4


def test_an_asyncio_client_counts_items_back_before_it_waits(supervisor: Supervisor) -> None:
    def one_by_one(frame: Any) -> Answers:
        count = len(supervisor.frames(control.More))
        match frame:
            case control.Submit(request_id) | control.More(request_id) if count < 3:
                return [control.Item(request_id, msgspec.msgpack.encode(count))]
            case control.More(request_id):
                return [control.Result(request_id, 1, b"", yielded=3)]
        return []

    async def body(client: AsyncClient) -> None:
        assert [item async for item in client.stream("count", {})] == [0, 1, 2]

    supervisor.answer = one_by_one
    with_client(supervisor, body)


def test_an_asyncio_client_that_waits_in_vain_can_wait_again(supervisor: Supervisor) -> None:
    async def body(client: AsyncClient) -> None:
        job = await client.submit("echo", 1, request_id="slow")
        with pytest.raises(TimeoutError):
            await job.result(timeout_s=0.01)
        late[:] = [control.Result("slow", 1, b"\x01"), control.Listed(b"{}")]
        assert await client.list_json() == b"{}"
        assert job.done
        assert supervisor.frames(control.Ack) == []
        assert await job.result() == 1

    late: list[Any] = []
    supervisor.answer = lambda frame: late if isinstance(frame, control.List) else []
    with_client(supervisor, body)
    supervisor.close()
    assert len(supervisor.frames(control.Ack)) == 1
    assert supervisor.frames(control.Cancel) == []


def test_a_cancelled_task_cancels_its_job_once_and_takes_nothing_of_it(supervisor: Supervisor) -> None:
    def canceled(frame: Any) -> Answers:
        match frame:
            case control.Cancel(request_id):
                return [control.Result(request_id, 1, b"\x01"), control.Canceled(request_id, False)]
            case control.Submit():
                return []
        return supervisor.echo(frame)

    async def body(client: AsyncClient) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await client.call("echo", 1)
        await client.list()

    supervisor.answer = canceled
    with_client(supervisor, body)
    supervisor.close()
    assert len(supervisor.frames(control.Ack)) == 1
    assert len(supervisor.frames(control.Cancel)) == 1


def test_an_asyncio_client_refuses_another_protocol_as_the_blocking_one_does(folder: Path) -> None:
    async def main() -> None:
        with pytest.raises(SupervisorUnreachable, match="speaks control protocol 7") as caught:
            async with AsyncClient(newer.path):
                pass
        assert "use the client of gen-worker 9.9" in caught.value.hint

    newer = Supervisor(folder, protocol=7)
    asyncio.run(main())
    newer.close()


def test_an_asyncio_client_is_not_held_by_a_supervisor_that_says_nothing(folder: Path) -> None:
    async def main() -> None:
        async with AsyncClient(folder / "control.sock", connect_timeout_s=0.05):
            pass

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.fspath(folder / "control.sock"))
        listener.listen()
        with pytest.raises(SupervisorUnreachable, match=r"within 0\.05 s"):
            asyncio.run(main())


def test_an_asyncio_client_that_was_not_entered_says_so(supervisor: Supervisor) -> None:
    with pytest.raises(RuntimeError, match="`async with`"):
        asyncio.run(AsyncClient(supervisor.path).call("echo", 1))


def test_an_asyncio_client_leaves_no_descriptor_no_mapping_and_no_thread(supervisor: Supervisor) -> None:
    async def body(client: AsyncClient) -> None:
        await asyncio.gather(*(client.call("echo", {"data": BIG * 5}) for _ in range(3)))
        calls = [asyncio.create_task(client.call("echo", {"data": BIG * 5})) for _ in range(3)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*calls, return_exceptions=True)
        )

    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    with_client(supervisor, body)
    supervisor.close()
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert "memfd:gen-worker" not in Path("/proc/self/maps").read_text()
    assert threading.active_count() <= threads


def test_the_client_for_programs_that_wait_loads_no_asyncio() -> None:
    script = "import sys, gen_worker.client; gen_worker.client.Client; assert 'asyncio' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
