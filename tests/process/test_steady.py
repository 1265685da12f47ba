"""A supervisor that has served long holds what it held when it began."""

import psutil
import pytest

from tests.served import Connection, Serve, Server, descriptors, text_of, until

pytestmark = pytest.mark.process

MIB = 1 << 20


def settled_descriptors(server: Server) -> int:
    server.until_idle()
    return len(descriptors(server.pid))


def run_echoes(server: Server, number: int, prefix: str) -> None:
    with server.connect() as connection:
        for each in range(number):
            connection.send("echo", f"{prefix}-{each}", text=str(each))
        answers = connection.frames(number)
    assert all(text_of(answer) == name.rpartition("-")[2] for name, answer in answers.items())


def kill_one(server: Server, name: str) -> None:
    with server.connect() as connection:
        connection.send("poll", name)
        until(lambda: server.job(name))
        assert server.client.kill(name).outcome == "killed"
        assert connection.frame()["error"]["kind"] == "killed"


def stream_ticks(server: Server, number: int, prefix: str) -> None:
    """Streams that end by themselves, over either link, and some that are left in the middle."""
    for each in range(number):
        name = f"{prefix}-{each}"
        with server.connect() as connection:
            connection.send("count", name, times=3, stream=True)
            assert take_stream(connection) == 3
        items = server.client.stream("count", {"times": 40})
        assert next(items)["pid"]
        if each % 2:
            assert len(list(items)) == 39
        items.close()


def take_stream(connection: Connection) -> int:
    """Read a stream to its end; return how many items it had."""
    items = 0
    while (frame := connection.frame()).get("event") != "result":
        items += frame["event"] == "yield"
    assert connection.frame()["done"]
    return items


def call_over_control(server: Server, number: int) -> None:
    for each in range(0, number, 20):
        jobs = [server.client.submit("echo", {"text": str(each + at)}) for at in range(20)]
        assert [job.result()["text"] for job in jobs] == [str(each + at) for at in range(20)]


def cancel_some(server: Server, number: int, prefix: str) -> None:
    """Jobs that are canceled while they wait, and the one that runs before them."""
    with server.connect() as connection, server.connect() as other:
        connection.send("poll", f"{prefix}-first")
        until(lambda: server.job(f"{prefix}-first"))
        for each in range(number):
            connection.send("poll", f"{prefix}-{each}")
        until(lambda: len(server.status().jobs) == number + 1)
        for each in [*range(number), "first"]:
            other.cancel(f"{prefix}-{each}")
        assert all(frame["canceled"] for frame in other.frames(number + 1).values())
        assert {frame["error"]["kind"] for frame in connection.frames(number + 1).values()} == {"canceled"}


def use(server: Server, jobs: int, prefix: str) -> None:
    """Run so many jobs, on every path there is."""
    for each in range(jobs // 100):
        run_echoes(server, 50, f"{prefix}-echo-{each}")
    call_over_control(server, jobs // 4)
    stream_ticks(server, jobs // 40, f"{prefix}-tick")
    cancel_some(server, jobs // 5, f"{prefix}-cancel")


@pytest.mark.promise(50)
def test_after_ten_thousand_jobs_all_is_as_after_a_hundred(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    use(server, 200, "warm")
    use(server, 200, "warmer")
    before = settled_descriptors(server)
    pids = [server.pid, *server.pids().values()]
    open_before = [len(descriptors(pid)) for pid in pids]
    rss = [psutil.Process(pid).memory_info().rss for pid in pids]
    use(server, 10_000, "job")
    until(lambda: settled_descriptors(server) <= before, what="as many descriptors as before")
    assert [len(descriptors(pid)) for pid in pids] == open_before
    assert [server.pid, *server.pids().values()] == pids
    grown = [psutil.Process(pid).memory_info().rss - was for pid, was in zip(pids, rss, strict=True)]
    assert max(grown) < 8 * MIB, grown
    assert server.status().jobs == []


@pytest.mark.promise(44)
def test_a_thousand_jobs_and_two_hundred_kills_cost_no_descriptor_and_no_child(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    run_echoes(server, 100, "warm")
    kill_one(server, "warm")
    pids, before = server.pids(), settled_descriptors(server)
    rss = psutil.Process(server.pid).memory_info().rss
    run_echoes(server, 1000, "job")
    for number in range(200):
        kill_one(server, f"kill-{number}")
    until(lambda: settled_descriptors(server) <= before, what="as many descriptors as before")
    assert server.pids() == pids
    assert psutil.Process(server.pid).memory_info().rss < rss + 8 * MIB
    assert server.status().jobs == []


@pytest.mark.promise(1)
def test_children_that_die_leave_no_descriptor_behind(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    server.ask("die", text="exit")
    before = settled_descriptors(server)
    for number in range(4):
        assert server.ask("die", text="exit", times=number + 1)["error"]["kind"] == "child_died"
        server.until_idle()
        run_echoes(server, 50, f"after-{number}")
    until(lambda: settled_descriptors(server) <= before)


def test_big_bodies_leave_no_descriptor_behind(serve: Serve) -> None:
    server = serve()
    text = "x" * (2 * MIB)
    for _ in range(3):
        server.ask("echo", text=text)
    before = settled_descriptors(server)
    for _ in range(20):
        assert text_of(server.ask("echo", text=text)) == text
        server.ask("save-bytes", text="kept.bin", times=MIB)
    until(lambda: settled_descriptors(server) <= before)


def test_clients_that_come_and_go_leave_no_descriptor_behind(serve: Serve) -> None:
    server = serve()
    server.ask("echo")
    before = settled_descriptors(server)
    for number in range(50):
        with server.connect() as silent, server.connect() as streaming, server.connect() as rude:
            silent.end()
            streaming.send("tick", f"tick-{number}", stream=True)
            streaming.frame()
            rude.write(b"}")
    until(lambda: settled_descriptors(server) <= before)
