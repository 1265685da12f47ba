"""Where a child's threads are is told whatever it does, at once, and costs its jobs and its siblings nothing."""

import os
import signal
import threading
import time

import pytest

from gen_worker.client import Client
from gen_worker.postmortem import folder_in, names, read
from gen_worker.wire.control import Stacked
from tests.served import Serve, Server, until

pytestmark = pytest.mark.process


def home(server: Server, request_id: str) -> str:
    def look() -> str | None:
        job = server.job(request_id)
        return None if job is None else job.gpu

    found = until(look, what="a job at work")
    assert found is not None
    return found


def asked(server: Server, device: str) -> Stacked:
    began = time.monotonic()
    shown = server.client.stack(device, timeout_s=10.0)
    assert time.monotonic() - began < 2.0  # of which the machine may take one
    return shown


def seen(server: Server, device: str, text: str) -> Stacked:
    """Wait until a text is in what is shown of a device's child; return that."""

    def look() -> Stacked | None:
        shown = asked(server, device)
        return shown if any(text in line for line in shown.lines) else None

    found = until(look, what=text)
    assert found is not None
    return found


def job_thread(shown: Stacked) -> str:
    """Return what is shown of the job thread."""
    text = "\n".join(shown.lines)
    return text[text.index("[gen-worker-job]") :].partition("\nThread ")[0]


WAYS = {
    "sleep_with_the_interpreter": "taken by a signal",
    "match": "taken by a signal",
    "sleep_without_the_interpreter": "",
    "wait_for_a_lock": "",
    "spin": "",
}


def quick(client: Client, server: Server) -> None:
    """Have a job done that takes no time."""
    server.open("open")
    assert client.call("spin", {"gate": "open"})["text"] == "done"


@pytest.mark.promise(7)
def test_a_job_is_found_whatever_it_does_while_its_sibling_serves(serve: Serve) -> None:
    server = serve(module="hanging", devices=f"cpu:{len(WAYS) + 1}")
    with Client(server.control) as client:
        jobs = {name: client.submit(name.replace("_", "-"), {"gate": name}, request_id=name) for name in WAYS}
        homes = {name: home(server, name) for name in WAYS}
        pids = server.pids()
        for name, how in WAYS.items():
            shown = seen(server, homes[name], f"in {name}")
            assert (shown.outcome, shown.pid) == ("shown", pids[homes[name]])
            assert how in shown.message
            assert (not how) == (not shown.message)
            assert f"in {name}" in job_thread(shown)
            quick(client, server)
        server.open("spin")
        assert jobs.pop("spin").result()["text"] == "done"
        assert server.pids() == pids
        for name in jobs:
            killed = client.kill(name, now=True)
            assert any(f"in {name}" in line for line in killed.stack)
    assert "most recent call first" not in server.log()


def test_a_coroutine_that_waits_is_named_by_its_request(serve: Serve) -> None:
    server = serve(module="hanging")
    with Client(server.control) as client:
        client.submit("wait-on-the-loop", {}, request_id="patient")

        def awaited() -> str:
            """Return where its task waits, which it does not before it has begun."""
            return "\n".join(asked(server, "cpu:0").lines).partition("Task patient")[2]

        until(lambda: "in wait_on_the_loop" in awaited(), what="where it waits")
        assert client.cancel("patient")


def test_one_that_is_stopped_is_told_of_and_goes_on_as_if_nobody_had_asked(serve: Serve) -> None:
    server = serve(module="hanging", devices="cpu:2")
    with Client(server.control) as client:
        job = client.submit("go-on-slowly", {"gate": "go"}, request_id="stopped")
        device = home(server, "stopped")
        pid = server.pids()[device]
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(3):
                shown = asked(server, device)
                assert (shown.outcome, shown.pid) == ("failed", pid)
                assert "it is stopped" in shown.message
                assert any(f"thread {pid} " in line and "state T" in line for line in shown.lines)
            quick(client, server)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert "in go_on_slowly" in job_thread(seen(server, device, "in go_on_slowly"))
        server.open("go")
        assert job.result()["text"] == "done"
        assert server.pids()[device] == pid


def test_many_who_ask_at_once_share_one_look_and_the_record_of_a_death_has_none_of_it(serve: Serve) -> None:
    server = serve(module="hanging")
    with Client(server.control) as client:
        client.submit("sleep-with-the-interpreter", {}, request_id="held")
        home(server, "held")
        seen(server, "cpu:0", "in sleep_with")
        found: list[Stacked] = []

        def ask() -> None:
            with Client(server.control) as other:
                found.append(other.stack("cpu:0", timeout_s=10.0))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert {each.outcome for each in found} == {"shown"}
        os.kill(server.pids()["cpu:0"], signal.SIGKILL)
        until(lambda: server.devices()["cpu:0"].restarts == 1)
        folder = folder_in(server.folder / "run")
        (name,) = until(lambda: names(folder), what="a post-mortem")
        assert (read(folder, name).cause, read(folder, name).stack) == ("SIGKILL", [])
    assert server.client.stack("cpu:9").candidates == ["cpu:0"]


def test_a_child_that_boots_or_sets_up_shows_where(serve: Serve) -> None:
    server = serve(module="hanging", variables={"GEN_WORKER_STALL_TIMEOUT_S": "0"})
    with Client(server.control) as client:
        client.submit("stuck", {}, request_id="loading")
        assert seen(server, "cpu:0", "in setup").message == ""
        server.open("import-hangs")
        os.kill(server.pids()["cpu:0"], signal.SIGKILL)
        until(lambda: server.devices()["cpu:0"].restarts == 1)
        assert "it boots" in seen(server, "cpu:0", "hanging.py").message
    server.process.kill()  # it would wait for the end of what hangs
    server.process.wait(10.0)


def test_to_be_asked_again_and_again_costs_no_job_its_answer(serve: Serve) -> None:
    server = serve()
    with Client(server.control) as client:
        pid = server.pids()["cpu:0"]
        jobs = [client.submit("echo", {"text": str(number)}) for number in range(300)]
        shown = [asked(server, "cpu:0").outcome for _ in range(50)]
        assert [job.result()["text"] for job in jobs] == [str(number) for number in range(300)]
        assert set(shown) == {"shown"}
        assert server.pids()["cpu:0"] == pid
