"""What is kept of a child's death, and what it does not say."""

import json
import os
import signal
import stat
from pathlib import Path

import pytest

from gen_worker.postmortem import PostMortem, folder_in, names, read
from tests.served import Serve, Server, until

pytestmark = pytest.mark.process


def folder_of(server: Server) -> Path:
    return folder_in(server.folder / "run")


def kept(server: Server, number: int = 1) -> list[PostMortem]:
    """Return the post-mortems of a server, the oldest first, when there are so many."""
    folder = folder_of(server)
    until(lambda: len(names(folder)) >= number, what=f"{number} post-mortems")
    return sorted((read(folder, name) for name in names(folder)), key=lambda told: told.when)


@pytest.mark.promise(1)
def test_a_death_leaves_a_post_mortem_which_the_jobs_error_names(serve: Serve) -> None:
    server = serve()
    pid = server.pids()["cpu:0"]
    error = server.ask("die", "guilty", text="SIGSEGV")["error"]
    first, second = kept(server, 2)
    assert error["detail"]["postmortem"] == second.id
    assert (first.pid, first.device, first.signal, first.ready) == (pid, "cpu:0", "SIGSEGV", True)
    assert any("in die" in line for line in first.stack)
    assert [(job.request_id, job.function, job.state, job.became) for job in first.jobs] == [
        ("guilty", "die", "started", "queued")
    ]
    assert [job.became for job in second.jobs] == ["fatal"]
    assert first.timeline[-1].job == "guilty"
    assert any(first.id in event for event in server.events())
    assert server.status().postmortems == 2


@pytest.mark.promise(1)
def test_the_last_words_of_a_job_are_kept_and_its_payload_is_not(serve: Serve) -> None:
    server = serve()
    server.ask("last-words", "speaker", text="goodbye", gate="a-word-that-nobody-prints")
    told = kept(server, 2)[0]
    assert told.exit_code == 7
    assert ("speaker", "goodbye") in told.printed
    assert told.jobs[0].payload_bytes > 0
    written = b"".join(file.read_bytes() for file in folder_of(server).iterdir())
    assert b"goodbye" in written
    assert b"a-word-that-nobody-prints" not in written


def test_what_was_wanted_leaves_no_post_mortem(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    server.client.restart("cpu:0")
    with server.connect() as connection:
        connection.send("gated", "patient", gate="never")
        server.until_running("patient")
        running = server.job("patient")
        assert running is not None
        server.client.restart(running.gpu or "", now=True)
        assert connection.frame()["error"]["retryable"] is True
    server.signal(signal.SIGTERM)
    server.process.wait(20)
    assert names(folder_of(server)) == []


@pytest.mark.promise(45)
def test_a_kill_leaves_a_post_mortem_of_its_rungs_and_of_where_it_was(serve: Serve) -> None:
    server = serve()
    with server.connect() as connection:
        connection.send("hold-the-interpreter", "stuck")
        server.until_running("stuck")
        server.client.kill("stuck", now=True)
        error = connection.frame()["error"]
    (told,) = kept(server)
    assert error["detail"]["postmortem"] == told.id
    assert told.jobs[0].ended_for == "kill"
    assert [rung.name for rung in told.jobs[0].rungs] == ["dump", "terminate"]
    assert any("hold_the_interpreter" in line for line in told.stack)


def test_a_child_that_dies_while_it_has_no_job_leaves_a_post_mortem_too(serve: Serve) -> None:
    server = serve()
    os.kill(server.pids()["cpu:0"], signal.SIGKILL)
    (told,) = kept(server)
    assert (told.cause, told.jobs, told.ready) == ("SIGKILL", [], True)


@pytest.mark.promise(39)
def test_no_secret_is_in_a_post_mortem_or_in_the_last_words_that_a_caller_is_told(serve: Serve) -> None:
    canary = "canary-7f3a9c2e51"
    server = serve(variables={"MY_API_KEY": canary, "HF_TOKEN": f"hf_{canary}"})
    words = f"key {canary} and https://x.example/y?X-Amz-Signature={canary}0"
    detail = server.ask("last-words", f"r-{canary}", text=words)["error"]["detail"]
    assert any("[secret]" in line for line in detail["stderr"])
    assert canary not in json.dumps(detail)
    kept(server, 2)
    written = b"".join(file.read_bytes() for file in folder_of(server).iterdir())
    assert b"[secret]" in written
    assert canary.encode() not in written


def test_post_mortems_are_for_their_user_alone_and_outlive_the_supervisor(serve: Serve) -> None:
    server = serve()
    server.ask("die", "guilty", text="exit")
    kept(server, 2)
    server.signal(signal.SIGTERM)
    server.process.wait(20)
    folder = folder_of(server)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = list(folder.iterdir())
    assert {file.suffix for file in files} == {".json"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    documents = [json.loads(file.read_bytes()) for file in files]
    assert {document["exit_code"] for document in documents} == {7}


def test_with_0_bytes_for_them_no_post_mortem_is_kept(serve: Serve) -> None:
    server = serve(variables={"GEN_WORKER_POSTMORTEM_BYTES": "0"})
    error = server.ask("die", "guilty", text="exit")["error"]
    assert "postmortem" not in error["detail"]
    assert not folder_of(server).exists()


def test_post_mortems_that_cannot_be_written_cost_nothing_but_a_warning(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "run" / "postmortems").write_text("in the way")
    server = serve()
    assert server.ask("die", "guilty", text="exit")["error"]["kind"] == "child_died"
    until(lambda: any("cannot be written" in event for event in server.events()), what="the warning")
    assert server.ask("echo", "next", text="on")["ok"]
