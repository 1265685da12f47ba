"""Children that work are replaced, at their limits or by an operator: no job is lost, and nobody waits for a boot."""

import threading

import pytest

from gen_worker.wire.status import DeviceStatus
from tests.served import Serve, Server, alive, until

pytestmark = pytest.mark.process


def device(server: Server) -> DeviceStatus:
    return server.devices()["cpu:0"]


def until_replaced(server: Server, pid: int) -> None:
    """Wait until another child is in the device's place and the one before it is gone."""
    until(lambda: device(server).pid not in (pid, None) and not alive(pid), what="another child")


def test_after_so_many_jobs_another_child_serves_and_none_of_them_is_lost(serve: Serve) -> None:
    server = serve(variables={"GEN_WORKER_RECYCLE_JOBS": "20"})
    pids = set()

    def comes_from_another() -> bool:
        answer = server.ask("echo", text="a")
        assert answer["ok"], answer
        pids.add(answer["events"][-1]["value"]["pid"])
        return len(pids) > 2

    until(comes_from_another, what="a third child")
    assert "is replaced: it has done 20 jobs" in server.log()
    assert server.status().jobs_failed == 0
    until(lambda: sum(map(alive, pids)) == 1, what="only the last child being there")


def test_where_there_is_room_for_two_the_next_child_is_ready_before_the_old_one_goes(serve: Serve) -> None:
    server = serve()
    until(lambda: server.status().memory, what="the memory being measured")
    old = server.pids()["cpu:0"]
    restarted = server.client.restart("cpu:0")
    assert (restarted.outcome, restarted.pid) == ("restarted", server.pids()["cpu:0"])
    assert restarted.pid != old
    until(lambda: not alive(old), what="the old child's end")
    events = server.events()
    ready = next(place for place, event in enumerate(events) if f"child {restarted.pid} ready" in event)
    taken = next(place for place, event in enumerate(events) if f"child {restarted.pid} is in the place" in event)
    assert ready < taken


def test_a_restart_waits_for_the_job_that_runs(serve: Serve) -> None:
    server = serve()
    old = server.pids()["cpu:0"]
    job = server.client.submit("gated", {"gate": "go"}, request_id="busy")
    server.until_running("busy")
    asked = threading.Thread(target=server.client.restart, args=("cpu:0",))
    asked.start()
    until(lambda: any("is replaced: an operator wants it" in event for event in server.events()))
    assert server.pids()["cpu:0"] == old
    server.open("go")
    assert job.result()["pid"] == old
    asked.join(20.0)
    until_replaced(server, old)


def test_a_restart_at_once_ends_the_job_and_its_caller_may_try_again(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    with server.connect() as connection:
        connection.send("gated", "busy", gate="never")
        server.until_running("busy")
        home = next(name for name, found in server.devices().items() if found.jobs)
        (other,) = {"cpu:0", "cpu:1"} - {home}
        pids = server.pids()
        restarted = server.client.restart(home, now=True, timeout_s=20.0)
        error = connection.frame()
    assert restarted.outcome == "restarted"
    assert restarted.seconds < 5.0
    assert error["error"]["retryable"] is True
    assert server.runs()["busy"] == 1
    assert server.pids()[other] == pids[other]
    assert not alive(pids[home])


def test_a_device_that_is_not_there_is_not_restarted(serve: Serve) -> None:
    server = serve()
    answer = server.client.restart("cuda:7")
    assert (answer.outcome, answer.candidates) == ("not_found", ["cpu:0"])


def test_a_child_is_replaced_at_its_age(serve: Serve) -> None:
    server = serve(variables={"GEN_WORKER_RECYCLE_AGE_S": "1"})
    until_replaced(server, server.pids()["cpu:0"])
    assert "s old" in server.log()
