"""What a job leaves behind, threads, tasks and processes, costs nobody else anything and ends with its supervisor."""

import os
import signal
import subprocess
import threading

import pytest

from gen_worker.doctor import limits
from gen_worker_supervisor.processes.reaper import children_of_this_process
from tests.served import Serve, alive, text_of, until

pytestmark = pytest.mark.process


def test_a_file_saved_after_its_job_has_ended_is_refused_and_its_child_lives(serve: Serve) -> None:
    server = serve()
    pids = server.pids()
    assert text_of(server.ask("save_too_late", text="done", gate="go")) == "done"
    server.open("go")
    until(lambda: (server.folder / "late").exists(), what="the late save")
    until(lambda: "the job has ended" in (server.folder / "late").read_text(), what="the reason")
    assert server.pids() == pids
    assert text_of(server.ask("echo", text="on")) == "on"


def test_a_task_that_exits_the_interpreter_costs_its_child_only(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    pids = server.pids()
    assert text_of(server.ask("leave_a_task_that_exits", "left", text="done", gate="go")) == "done"
    (home,) = server.homes("left")
    server.open("go")
    until(lambda: not alive(home), what="the end of the child")
    assert text_of(server.ask("echo", text="on")) == "on"
    sibling = next(name for name, pid in pids.items() if pid != home)
    assert server.pids()[sibling] == pids[sibling]


@pytest.mark.promise(13)
def test_a_daemon_that_a_job_started_ends_with_the_supervisor(serve: Serve) -> None:
    server = serve()
    daemon = int(text_of(server.ask("start_a_daemon")))
    assert alive(daemon)
    server.signal(signal.SIGTERM)
    assert server.process.wait(10) == 0
    until(lambda: not alive(daemon), what="the end of the daemon")


@pytest.mark.promise(13)
def test_a_daemon_that_a_job_started_ends_at_the_next_start_when_the_supervisor_was_killed(serve: Serve) -> None:
    server = serve()
    daemon = int(text_of(server.ask("start_a_daemon")))
    left = server.control.parent
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait(10)
    assert left.exists()
    assert alive(daemon)
    assert str(daemon) in limits.orphans().remedy
    server.sidecar.unlink()
    following = serve()
    until(lambda: not alive(daemon), what="the end of the daemon")
    assert f"had left are ended: {daemon}" in following.log()
    assert not left.exists()
    assert text_of(following.ask("echo", text="on")) == "on"


def test_the_processes_of_a_supervisor_are_found_while_threads_of_it_end() -> None:
    done = threading.Event()

    def begin_and_end_threads() -> None:
        while not done.is_set():
            thread = threading.Thread(target=lambda: None)
            thread.start()
            thread.join()

    busy = [threading.Thread(target=begin_and_end_threads) for _ in range(4)]
    for thread in busy:
        thread.start()
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert all(child.pid in children_of_this_process() for _ in range(300))
    finally:
        done.set()
        child.kill()
        child.wait()
        for thread in busy:
            thread.join()
