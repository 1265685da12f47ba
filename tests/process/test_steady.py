"""A supervisor that has served long holds what it held when it began."""

import psutil
import pytest

from tests.served import Serve, Server, descriptors, text_of, until

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


def test_a_thousand_jobs_and_two_hundred_kills_cost_no_descriptor_and_no_child(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    run_echoes(server, 100, "warm")
    kill_one(server, "warm")
    pids, before = server.pids(), settled_descriptors(server)
    rss = psutil.Process(server.pid).memory_info().rss
    run_echoes(server, 1000, "job")
    for number in range(200):
        kill_one(server, f"kill-{number}")
    until(lambda: settled_descriptors(server) == before, what="as many descriptors as before")
    assert server.pids() == pids
    assert psutil.Process(server.pid).memory_info().rss < rss + 8 * MIB
    assert server.status().jobs == []


def test_children_that_die_leave_no_descriptor_behind(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    server.ask("die", text="exit")
    before = settled_descriptors(server)
    for number in range(4):
        assert server.ask("die", text="exit", times=number + 1)["error"]["kind"] == "child_died"
        server.until_idle()
        run_echoes(server, 50, f"after-{number}")
    assert settled_descriptors(server) == before


def test_big_bodies_leave_no_descriptor_behind(serve: Serve) -> None:
    server = serve()
    text = "x" * (2 * MIB)
    for _ in range(3):
        server.ask("echo", text=text)
    before = settled_descriptors(server)
    for _ in range(20):
        assert text_of(server.ask("echo", text=text)) == text
        server.ask("save-bytes", text="kept.bin", times=MIB)
    until(lambda: settled_descriptors(server) == before)


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
    until(lambda: settled_descriptors(server) == before)
