"""The log and the records of jobs: who follows slows nobody, what is kept outlives the supervisor and has no secret."""

import os
import re
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gen_worker.client import Client
from gen_worker.job_records import JobRecord, folder_in, read
from gen_worker.rundir import SupervisorUnreachable
from tests.process.test_control_by_hand import Link
from tests.served import GEN_WORKER, Serve, Server, environment, serving, text_of, until

pytestmark = pytest.mark.process

STOPPED = 20
LINES = 10_000
TAG = b'"message":"x'


def records(server: Server, number: int) -> list[JobRecord]:
    """Return the records of a server's jobs, the first first, when there are so many."""
    folder = folder_in(server.folder / "run")
    until(lambda: len(list(read(folder))) >= number, what=f"{number} records")
    return sorted(read(folder), key=lambda record: record.ts)


def followed(client: Client, after: int, lines: int) -> tuple[int, int]:
    """Follow the log until so many lines of `chatter` came or were missed; return how many of each."""
    came = missed = 0
    while came + missed < lines:
        answer = client.read(after, wait_s=20.0, device="cpu:0", limit=5000)
        assert isinstance(answer.lines, bytes)
        assert answer.lines, "nothing more comes"
        came += answer.lines.count(TAG)
        missed += answer.left_out
        after = answer.last
    return came, missed


def printed(server: Server, *arguments: str) -> str:
    """Return what a command prints that finds no supervisor in the run directory of this one."""
    command = [*GEN_WORKER, *arguments]
    return subprocess.run(command, env=environment(server.folder), capture_output=True, text=True, check=True).stdout


@pytest.mark.promise(12)
def test_followers_that_stopped_reading_slow_no_child_and_no_other_follower(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    stopped = [Link(server) for _ in range(STOPPED)]
    newest = server.client.read(-1, limit=1).last
    for link in stopped:
        link.say("read", newest, 60_000, False, "", "", "debug", 5000)  # and never takes the answer
    began = time.monotonic()
    with server.connect() as talker, server.connect() as other, Client(server.control) as follower:
        talker.send("chatter", "talker", text="said", times=LINES)
        came, missed = followed(follower, newest, LINES)
        other.send("echo", "other", text="quick")
        assert text_of(other.frame()) == "quick"
        assert text_of(talker.frame()) == "said"
    assert came + missed >= LINES
    assert came > LINES // 2
    assert time.monotonic() - began < 10.0
    lag = server.status().loop_lag_max_s
    assert lag is not None
    assert lag < 0.5
    for link in stopped:
        link.sock.close()


def test_who_waits_for_a_line_that_never_comes_is_answered_in_time_and_leaves_nothing_when_gone(serve: Serve) -> None:
    server = serve()
    newest = server.client.read(-1, limit=1).last
    began = time.monotonic()
    answer = server.client.read(newest, wait_s=0.3, request_id="nobody")
    assert (answer.lines, answer.left_out) == (b"", 0)
    assert 0.3 <= time.monotonic() - began < 5.0
    for _ in range(30):
        with Link(server) as link:
            link.say("read", newest, 600_000, False, "", "nobody", "debug", 10)
    server.ask("talk", "after", text="T")
    told = server.client.read(newest, wait_s=5.0, request_id="after")
    assert isinstance(told.lines, bytes)
    assert b'"T printed"' in told.lines


def test_the_latest_question_of_a_connection_counts(serve: Serve) -> None:
    server = serve()
    with Link(server) as link:
        link.say("read", 0, 600_000, False, "", "nobody", "debug", 10)
        link.say("read", 0, 0, True, "", "", "debug", 1)
        name, lines, last, left_out = link.hear()
        assert (name, last, left_out) == ("lines", 1, 0)
        assert msgspec.json.decode(lines)["seq"] == 1


def test_who_follows_a_supervisor_that_is_killed_is_told_and_its_log_and_records_stay(serve: Serve) -> None:
    server = serve()
    server.ask("talk", "talker", text="T")
    (record,) = records(server, 1)
    assert (record.request_id, record.outcome, record.device, record.link) == ("talker", "ok", "cpu:0", "serve")
    newest = server.client.read(-1, limit=1).last
    logs = server.folder / "run" / "logs"
    until(lambda: b"T printed" in b"".join(file.read_bytes() for file in logs.iterdir()), what="the file")
    server.signal(signal.SIGKILL)
    with pytest.raises(SupervisorUnreachable):
        server.client.read(newest, wait_s=60.0, request_id="nobody")
    for folder in (logs, folder_in(server.folder / "run")):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert printed(server, "jobs").splitlines()[1].split()[1:3] == ["talker", "talk"]
    assert "T printed" in printed(server, "logs", "talker")


@pytest.mark.promise(39)
def test_no_secret_is_in_the_log_its_files_and_the_records_of_jobs(serve: Serve) -> None:
    canary = "canary-7f3a9c2e51"
    signed = f"https://x.example/y?X-Amz-Signature={canary}0"
    server = serve(variables={"MY_API_KEY": canary, "HF_TOKEN": f"hf_{canary}"})
    server.ask("talk", f"r-{canary}", text=f"key {canary} and {signed}")
    server.ask("last-words", f"s-{canary}", text=f"token=abc{canary[7:]}def {signed}")
    records(server, 2)
    ring = server.client.read(0, limit=5000).lines
    server.signal(signal.SIGTERM)
    server.process.wait(20)
    assert isinstance(ring, bytes)
    kept = [file.read_bytes() for name in ("logs", "jobs") for file in (server.folder / "run" / name).iterdir()]
    assert len(kept) == 2
    for content in (ring, *kept, server.log().encode()):
        assert b"[secret]" in content
        assert canary.encode() not in content
        assert canary[7:].encode() not in content


def test_with_0_bytes_for_them_nothing_of_the_log_and_the_jobs_is_kept(serve: Serve) -> None:
    server = serve(variables={"GEN_WORKER_LOG_BYTES": "0", "GEN_WORKER_JOB_LOG_BYTES": "0"})
    server.ask("talk", "talker", text="T")
    assert server.client.read(0).lines
    server.signal(signal.SIGTERM)
    assert server.process.wait(20) == 0, server.log()
    assert not any((server.folder / "run").iterdir()), server.log()


def test_a_request_whose_lines_were_pushed_out_is_not_told_to_have_said_nothing(serve: Serve) -> None:
    server = serve(variables={"GEN_WORKER_LOG_BYTES": "0"})
    server.ask("talk", "talker", text="T")
    server.ask("echo", "silent", text="T")
    records(server, 2)
    assert server.run("logs", "silent").stderr == "hint: `silent` has told nothing\n"
    server.ask("chatter", "flood", times=20_000)
    server.ask("echo", "late", text="T")
    records(server, 4)
    done = server.run("logs", "talker")
    gone = r"hint: `talker` has told nothing since [-:. \d]+Z; what it told before that is not kept any more\n"
    assert (done.stdout, bool(re.fullmatch(gone, done.stderr))) == ("", True), done.stderr
    assert server.run("logs", "late").stderr == "hint: `late` has told nothing\n"
    assert server.run("logs", "late", "--grep", "x").stderr == "hint: `late` has told nothing that is meant here\n"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["silent"], 0, "hint: `silent` has told nothing\n"),
        (["talker", "--level", "error"], 0, "hint: `talker` has told nothing that is meant here\n"),
        (["cpu:0", "--grep", "nowhere"], 0, "hint: `cpu:0` has told nothing that is meant here\n"),
        (["talkr"], 5, "error: no device and no request `talkr`\nhint: did you mean `talker`?\n"),
    ],
)
def test_what_has_told_nothing_is_known_after_its_supervisor_has_ended(
    ended: Server, arguments: list[str], code: int, told: str
) -> None:
    done = subprocess.run(
        [*GEN_WORKER, "logs", *arguments], env=environment(ended.folder), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", told)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server that has ended, with what it left."""
    with serving(tmp_path_factory.mktemp("ended")) as server:
        server.ask("talk", "talker", text="T")
        server.ask("echo", "silent", text="T")
        records(server, 2)
        server.signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
    return server


def test_files_that_cannot_be_written_cost_nothing_but_a_warning_each(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    for name in ("logs", "jobs"):
        (tmp_path / "run" / name).write_text("in the way")
    server = serve()
    for number in range(3):
        assert server.ask("echo", f"r{number}", text="on")["ok"]
    until(lambda: len(told(server)) == 2, what="both warnings")
    assert server.ask("echo", "last", text="on")["ok"]
    assert len(told(server)) == 2


def told(server: Server) -> list[str]:
    return [event for event in server.events() if "nothing more is kept" in event]


@pytest.mark.promise(1)
def test_a_record_says_how_often_a_job_was_tried_and_what_it_died_of(serve: Serve) -> None:
    server = serve()
    error: dict[str, Any] = server.ask("die", "guilty", text="SIGSEGV")["error"]
    (record,) = records(server, 1)
    assert (record.outcome, record.cause, record.deaths) == ("child_died", "SIGSEGV", 2)
    assert record.postmortem == error["detail"]["postmortem"]
    assert record.in_bytes > 0
    assert os.path.exists(server.folder / "run" / "postmortems" / f"{record.postmortem}.json")


def test_a_record_says_what_memory_a_job_took_and_how_long_it_held_its_device(serve: Serve) -> None:
    server = serve()
    with server.connect() as connection:
        connection.send("gated", "slow", gate="go")
        server.until_running("slow")
        connection.send("gated", "next", gate="go")
        until(lambda: server.job("next"), what="the next job")
        server.open("go")
        connection.frames(2)
    slow, following = records(server, 2)
    assert [each.request_id for each in (slow, following)] == ["slow", "next"]
    assert slow.peak_rss > 1 << 20
    assert slow.device_s >= slow.run_s > 0
    assert 0 < following.queue_s < slow.queue_s + slow.device_s + 1.0
