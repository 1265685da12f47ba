"""One connection that many threads, or many tasks, use at once: each gets its own, and nothing stays behind."""

import asyncio
import contextlib
import gc
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gen_worker.client import AsyncClient, Client, JobError, SupervisorUnreachable
from tests.served import PATIENCE_S, Serve, Server, descriptors, until

pytestmark = pytest.mark.process

BIG = random.Random(1).randbytes(200_000)
THREADS = 16
TASKS = 50


class Blob(msgspec.Struct):
    data: bytes


class Look(msgspec.Struct):
    data: memoryview


def memory(pid: int) -> int:
    """Return how many pieces of shared memory a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:gen-worker")


def holdings(server: Server) -> dict[str, int]:
    """Count what this process, the supervisor and its children hold; in the latter two beside a pool that is reused."""
    gc.collect()
    server.until_idle()
    return {
        "threads here": threading.active_count(),
        "descriptors here": len(descriptors(os.getpid())),
        "memory here": memory(os.getpid()),
        "descriptors of the supervisor": len(descriptors(server.pid)) - pool(server.pid),
        "jobs": len(server.status().jobs),
        **{f"descriptors of {name}": len(descriptors(pid)) - pool(pid) for name, pid in server.pids().items()},
    }


def warm_up(server: Server) -> None:
    """Let each child start its loop for async jobs."""
    with Client(server.control) as client:
        jobs = [client.submit("gated-async", {"gate": "warm"}) for _ in server.pids()]
        server.until_running(*(job.request_id for job in jobs))
        server.open("warm")
        assert {job.result()["pid"] for job in jobs} == set(server.pids().values())


def pool(pid: int) -> int:
    """Return how many regions a process has open."""
    return sum("memfd:gen-worker" in name for name in descriptors(pid))


@contextmanager
def nothing_left(server: Server, regions: int = 64) -> Iterator[None]:
    """What the body does leaves nothing here, and in the server no more than some regions, kept for reuse."""
    pids, before = server.pids(), holdings(server)
    yield
    try:
        until(lambda: holdings(server) == before)
    except AssertionError:
        raise AssertionError(f"before {before}, after {holdings(server)}") from None
    assert server.pids() == pids
    assert "Traceback" not in server.log()
    assert memory(server.pid) <= regions


# --- threads ----------------------------------------------------------------------------------------------------------


def test_sixteen_threads_on_one_client_get_each_their_own_and_leave_nothing(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    warm_up(server)
    with nothing_left(server), Client(server.control) as client, ThreadPoolExecutor(THREADS) as threads:
        for done in [threads.submit(busy_thread, client, seed) for seed in range(THREADS)]:
            assert done.result(timeout=60) == 60


def busy_thread(client: Client, seed: int) -> int:
    chance = random.Random(seed)
    deeds: list[Callable[[Client, random.Random], None]] = [
        *[thread_calls] * 8, *[thread_sends_bytes] * 3, thread_streams, thread_cancels, thread_is_late, thread_looks
    ]  # fmt: skip
    for _ in range(60):
        chance.choice(deeds)(client, chance)
    return 60


def thread_calls(client: Client, chance: random.Random) -> None:
    text = str(chance.random())
    assert client.call("echo", {"text": text})["text"] == text


def thread_sends_bytes(client: Client, chance: random.Random) -> None:
    data = BIG[: chance.randrange(40_000, 200_000)]
    assert client.call("echo-blob", {"data": data}, type=Blob).data == data
    assert client.call("echo-blob", {"data": data}, type=Look).data == data


def thread_streams(client: Client, chance: random.Random) -> None:
    wanted = chance.choice([1, 5, 100])
    with closing(client.stream("count", {"times": 100})) as items:
        for number in range(wanted):
            assert next(items)["text"] == f"{number} "


def thread_cancels(client: Client, chance: random.Random) -> None:
    job = client.submit("poll-async", {})
    with pytest.raises(TimeoutError):
        job.result(timeout_s=chance.random() / 50)
    assert client.cancel(job.request_id)
    with pytest.raises(JobError) as caught:
        job.result()
    assert caught.value.kind == "canceled"


def thread_is_late(client: Client, chance: random.Random) -> None:
    with pytest.raises(JobError) as caught:
        client.call("poll-async", {}, timeout_s=chance.random() / 50)
    assert caught.value.kind == "deadline"


def thread_looks(client: Client, chance: random.Random) -> None:
    assert client.list().pid == client.supervisor.pid
    assert client.cancel(f"nobody-{chance.random()}") is False


def test_threads_that_wait_for_one_job_all_get_its_result(serve: Serve) -> None:
    server = serve()
    with Client(server.control) as client, ThreadPoolExecutor(8) as threads:
        job = client.submit("gated", {"text": "shared", "gate": "go"}, type=dict)
        waiting = [threads.submit(job.result) for _ in range(8)]
        server.until_running(job.request_id)
        server.open("go")
        assert [each.result(PATIENCE_S)["text"] for each in waiting] == ["shared"] * 8


def test_a_thread_that_stops_waiting_leaves_the_reading_to_another(serve: Serve) -> None:
    server = serve()
    with Client(server.control) as client, ThreadPoolExecutor(1) as threads:
        reader = client.submit("gated-async", {"gate": "never"})
        other = client.submit("gated-async", {"text": "other", "gate": "go"})
        reading = threads.submit(reader.result, 0.3)
        until(lambda: client._reading)
        opened = threading.Timer(0.6, server.open, ["go"])
        opened.start()
        assert other.result()["text"] == "other"
        opened.join()
        with pytest.raises(TimeoutError):
            reading.result()
        assert client.cancel(reader.request_id)


def test_a_thread_that_is_interrupted_leaves_the_client_usable_and_the_reading_to_another(serve: Serve) -> None:
    server = serve()
    with Client(server.control) as client, ThreadPoolExecutor(2) as threads, interrupting() as interrupt:
        mine = client.submit("gated-async", {"text": "mine", "gate": "go"})
        jobs = [client.submit("gated-async", {"text": str(number), "gate": "go"}) for number in range(2)]
        interrupt(0.1)
        with pytest.raises(KeyboardInterrupt):
            mine.result()
        waiting = [threads.submit(job.result) for job in jobs]
        interrupt(0.1)
        with pytest.raises(KeyboardInterrupt):
            mine.result()
        server.open("go")
        assert [each.result(PATIENCE_S)["text"] for each in waiting] == ["0", "1"]
        assert mine.result()["text"] == "mine"


@contextmanager
def interrupting() -> Iterator[Callable[[float], object]]:
    """Let the main thread be interrupted after so many seconds, as by Ctrl-C."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        yield lambda after_s: signal.setitimer(signal.ITIMER_REAL, after_s)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_fifty_tasks_that_are_cancelled_at_random_leave_nothing(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    warm_up(server)
    with nothing_left(server):
        assert asyncio.run(crowd(server)) > TASKS


async def crowd(server: Server) -> int:
    async with AsyncClient(server.control) as client:
        ended = sum(await asyncio.gather(*(busy_task(client, seed) for seed in range(TASKS))))
        async with asyncio.timeout(PATIENCE_S):
            while (await client.list()).jobs:
                pass
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return ended


async def busy_task(client: AsyncClient, seed: int) -> int:
    chance = random.Random(seed)
    ended = 0
    for _ in range(20):
        deed = chance.choice([task_calls, task_sends_bytes, task_streams, task_waits])(client, chance)
        doing = asyncio.create_task(deed)
        asyncio.get_running_loop().call_later(chance.random() ** 3, doing.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await doing
            ended += 1
    return ended


async def task_calls(client: AsyncClient, chance: random.Random) -> None:
    text = str(chance.random())
    assert (await client.call("echo", {"text": text}))["text"] == text


async def task_sends_bytes(client: AsyncClient, chance: random.Random) -> None:
    data = BIG[: chance.randrange(40_000, 200_000)] * chance.choice([1, 1, 30])
    assert (await client.call("echo-blob", {"data": data}, type=chance.choice([Blob, Look]))).data == data


async def task_streams(client: AsyncClient, chance: random.Random) -> None:
    wanted, number = chance.choice([1, 5, 100]), 0
    async with aclosing(client.stream("count", {"times": 100})) as items:
        async for item in items:
            assert item["text"] == f"{number} "
            if (number := number + 1) == wanted:
                break


async def task_waits(client: AsyncClient, chance: random.Random) -> None:
    job = await client.submit("poll-async", {})
    with contextlib.suppress(TimeoutError):
        await job.result(timeout_s=chance.random() / 50)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(chance.random() / 50):
            await job.result()


def test_a_task_that_is_cancelled_cancels_its_job_and_no_other(serve: Serve) -> None:
    async def main() -> None:
        async with AsyncClient(server.control) as client:
            other = await client.submit("gated-async", {"text": "undisturbed", "gate": "go"})
            task = asyncio.create_task(client.call("poll-async", {}, request_id="left"))
            await asyncio.to_thread(server.until_running, other.request_id, "left")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(until, lambda: server.job("left") is None)
            server.open("go")
            assert (await other.result())["text"] == "undisturbed"

    server = serve()
    asyncio.run(main())
    assert (server.folder / "ended").read_text() == "left"


def test_a_loop_that_leaves_a_stream_cancels_its_job(serve: Serve) -> None:
    async def main() -> None:
        async with AsyncClient(server.control) as client:
            async for item in client.stream("tick-async", {}, request_id="left"):
                assert item["text"] == "0"
                break
            await asyncio.to_thread(until, lambda: server.job("left") is None)

    server = serve()
    asyncio.run(main())


def test_a_loop_goes_on_while_a_big_payload_is_sent_and_the_supervisor_reads_nothing(serve: Serve) -> None:
    async def main() -> None:
        async with AsyncClient(server.control) as client:
            server.signal(signal.SIGSTOP)
            calls = [asyncio.create_task(client.call("echo", {"text": "x" * 40_000})) for _ in range(50)]
            calls.append(asyncio.create_task(client.call("echo-blob", {"data": BIG * 100})))
            async with asyncio.timeout(PATIENCE_S):
                while not client._writing:  # noqa: ASYNC110 - nobody says when the socket is full
                    await asyncio.sleep(0)
            assert not any(call.done() for call in calls)
            server.signal(signal.SIGCONT)
            answers = await asyncio.gather(*calls)
            assert len(answers[-1]["data"]) == len(BIG) * 100

    server = serve()
    asyncio.run(main())


# --- connections that break -------------------------------------------------------------------------------------------


def test_a_supervisor_that_dies_is_told_to_every_thread(serve: Serve) -> None:
    server = serve()
    with Client(server.control) as client, ThreadPoolExecutor(4) as threads:
        jobs = [client.submit("gated-async", {"gate": "never"}) for _ in range(4)]
        waiting = [threads.submit(job.result) for job in jobs]
        server.until_running(*(job.request_id for job in jobs))
        server.signal(signal.SIGKILL)
        for each in waiting:
            with pytest.raises(SupervisorUnreachable, match="gone"):
                each.result(PATIENCE_S)
        with pytest.raises(SupervisorUnreachable, match="gone"):
            client.call("echo", {})


def test_a_client_that_is_closed_tells_the_threads_that_wait(serve: Serve) -> None:
    server = serve()
    with ThreadPoolExecutor(4) as threads:
        with Client(server.control) as client:
            jobs = [client.submit("gated-async", {"gate": "never"}) for _ in range(4)]
            waiting = [threads.submit(job.result) for job in jobs]
            until(lambda: len(client._waiting) == 3)
        for each in waiting:
            with pytest.raises(SupervisorUnreachable, match="was closed"):
                each.result(PATIENCE_S)
    for job in jobs:
        assert server.client.cancel(job.request_id)


def test_a_supervisor_that_dies_is_told_to_every_task(serve: Serve) -> None:
    async def main() -> None:
        async with AsyncClient(server.control) as client:
            jobs = [await client.submit("gated-async", {"gate": "never"}) for _ in range(4)]
            await asyncio.to_thread(server.until_running, *(job.request_id for job in jobs))
            waiting = [asyncio.create_task(job.result()) for job in jobs]
            server.signal(signal.SIGKILL)
            for each in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(each, SupervisorUnreachable)
            with pytest.raises(SupervisorUnreachable, match="gone"):
                await client.call("echo", {})

    server = serve()
    asyncio.run(main())


def test_a_result_waits_for_a_client_that_comes_back(serve: Serve) -> None:
    server = serve()
    order = {"text": "kept", "gate": "go"}
    with Client(server.control) as client:
        client.submit("gated", order, request_id="order")
        server.until_running("order")
    server.open("go")
    until(lambda: server.job("order") is None)
    with Client(server.control) as client:
        assert client.call("gated", order, request_id="order")["text"] == "kept"
    assert server.runs() == {"order": 1}


def test_a_result_waits_for_an_asyncio_client_that_comes_back(serve: Serve) -> None:
    async def main() -> None:
        async with AsyncClient(server.control) as client:
            await client.submit("gated", order, request_id="order")
            await asyncio.to_thread(server.until_running, "order")
        server.open("go")
        await asyncio.to_thread(until, lambda: server.job("order") is None)
        async with AsyncClient(server.control) as client:
            job = await client.submit("gated", order, request_id="order")
            assert (await job.result())["text"] == "kept"

    server = serve()
    order = {"text": "kept", "gate": "go"}
    asyncio.run(main())
    assert server.runs() == {"order": 1}


def test_a_result_that_came_and_was_not_taken_is_there_for_the_next_client(serve: Serve) -> None:
    server = serve()
    with Client(server.control) as client:
        job = client.submit("gated", {"text": "kept"}, request_id="order")
        until(lambda: client.list() and job.done)
    with Client(server.control) as client:
        assert client.call("gated", {"text": "kept"}, request_id="order")["text"] == "kept"
    assert server.runs() == {"order": 1}


def test_an_output_of_another_type_can_be_asked_for_again(serve: Serve) -> None:
    server = serve()
    with Client(server.control) as client:
        with pytest.raises(msgspec.ValidationError):
            client.call("gated", {"text": "kept"}, request_id="order", type=Blob)
        assert client.call("gated", {"text": "kept"}, request_id="order")["text"] == "kept"
    assert server.runs() == {"order": 1}


def test_a_client_whose_job_another_one_takes_over_is_told_and_the_other_gets_the_result(serve: Serve) -> None:
    server = serve()
    order: dict[str, Any] = {"text": "kept", "gate": "go"}
    with Client(server.control) as first, Client(server.control) as second:
        job = first.submit("gated", order, request_id="order")
        server.until_running("order")
        other = second.submit("gated", order, request_id="order")
        with pytest.raises(JobError, match="another connection has taken `order` over"):
            job.result()
        server.open("go")
        assert other.result()["text"] == "kept"


def test_a_client_finds_the_supervisor_of_a_tcp_address(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(listen="tcp://127.0.0.1:0")
    monkeypatch.setenv("GEN_WORKER_RUN_DIR", str(server.folder / "run"))
    with Client(server.address) as client:
        assert client.supervisor.pid == server.pid
