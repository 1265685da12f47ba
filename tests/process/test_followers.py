"""Commands that follow a supervisor: they end with it and with their reader, and miss nothing that was told."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.served import GEN_WORKER, PATIENCE_S, Serve, Server, environment

pytestmark = pytest.mark.process

FOLLOWERS = [
    ("logs", "--follow", "-n", "1"),
    ("events", "--follow", "-n", "1", "--json"),
    ("top", "--json", "--interval", "3600"),
]


@contextmanager
def following(server: Server, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Have a command run that goes on, and end it."""
    command = [*GEN_WORKER, *arguments, "--socket", str(server.control)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, env=environment(server.folder), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def first_line(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("arguments", FOLLOWERS, ids=lambda arguments: arguments[0])
def test_a_follower_whose_reader_goes_ends_though_nothing_comes(serve: Serve, arguments: tuple[str, ...]) -> None:
    with following(serve(), *arguments) as follower:
        assert first_line(follower)
        assert follower.stdout is not None
        follower.stdout.close()
        assert follower.wait(PATIENCE_S) == 141
        assert follower.stderr is not None
        assert follower.stderr.read() == b""


@pytest.mark.parametrize("arguments", FOLLOWERS, ids=lambda arguments: arguments[0])
def test_a_follower_ends_with_130_and_without_a_word_on_ctrl_c(serve: Serve, arguments: tuple[str, ...]) -> None:
    with following(serve(), *arguments) as follower:
        assert first_line(follower)
        follower.send_signal(signal.SIGINT)
        _, said = follower.communicate(timeout=PATIENCE_S)
        assert (follower.returncode, said) == (130, b"")


@pytest.mark.parametrize("command", ["logs", "events"])
def test_who_follows_a_supervisor_that_stops_reads_its_last_words(serve: Serve, command: str) -> None:
    server = serve()
    with server.connect() as connection, following(server, command, "--follow", "-n", "1", "--json") as follower:
        assert first_line(follower)
        connection.send("gated", "cut-off", gate="never")
        server.until_running("cut-off")
        server.signal(signal.SIGTERM)
        lines, said = follower.communicate(timeout=PATIENCE_S * 2)
        told = [json.loads(line) for line in lines.splitlines()]
    assert follower.returncode == 4
    assert said.startswith(b"error: the supervisor is gone")
    assert told[-1]["message"] == "stopped"
    assert any("cut-off" in line["message"] for line in told)
    assert any(line["message"].startswith("stopping") for line in told)
    numbers = [line["seq"] for line in told]
    assert command == "events" or numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_who_follows_a_supervisor_that_is_killed_is_told_at_once(serve: Serve) -> None:
    server = serve()
    with following(server, "logs", "--follow", "-n", "1") as follower:
        assert first_line(follower)
        server.signal(signal.SIGKILL)
        _, said = follower.communicate(timeout=PATIENCE_S)
        assert (follower.returncode, said.startswith(b"error: the supervisor is gone")) == (4, True)
