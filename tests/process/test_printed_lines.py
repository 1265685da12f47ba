"""What an author's code prints comes out line by line, says whose it is, and corrupts nothing."""

import pytest

from tests.served import Serve, Server, text_of, until

pytestmark = pytest.mark.process


def lines_of(server: Server, expected: int, prefix: str) -> list[str]:
    """Wait for this many lines with the prefix and return them without it."""

    def found() -> list[str]:
        lines = [line.removeprefix(prefix) for line in server.log().splitlines() if line.startswith(prefix)]
        return lines if len(lines) >= expected else []

    return until(found, what=f"{expected} lines after `{prefix}`")


def test_every_way_to_print_comes_out_under_its_child_and_job(serve: Serve) -> None:
    server = serve()
    with server.connect() as connection:
        connection.send("talk", "talker", text="T", gate="heard")
        lines_of(server, 6, "[cpu:0 job=talker] ")  # lines of native code are the job's as long as it runs
        server.open("heard")
        assert text_of(connection.frame()) == "T"
        connection.send("echo", "after", text="still in step")
        assert text_of(connection.frame()) == "still in step"
    lines = lines_of(server, 7, "[cpu:0 job=talker] ")
    assert sorted(lines) == sorted(
        [
            "T printed",
            "T to stderr",
            "T os.write 1",
            "T os.write 2",
            "T native",
            '{"ok":true,"events":[]}',
            "T without newline",
        ]
    )


def test_lines_of_jobs_that_run_side_by_side_are_whole_and_say_whose_they_are(serve: Serve) -> None:
    server = serve()
    with server.connect() as connection:
        for name in ("one", "two"):
            connection.send("talk-async", name, text=name, times=25)
        connection.frames(2)
    for name in ("one", "two"):
        assert lines_of(server, 25, f"[cpu:0 job={name}] ") == [f"{name} says {number}" for number in range(25)]


def test_children_are_told_apart(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    with server.connect() as connection:
        connection.send("gated", "holder", gate="go")
        server.until_running("holder")
        connection.send("chatter", "talker", text="T", times=7)
        assert connection.frame()["request_id"] == "talker"
        server.open("go")
        connection.frame()
    holder = next(name for name, pid in server.pids().items() if pid == server.homes("holder")[0])
    (other,) = set(server.pids()) - {holder}
    assert set(lines_of(server, 7, f"[{other} job=talker] ")) == {"x" * 200}


def test_a_child_that_dies_leaves_its_last_words_with_its_job(serve: Serve) -> None:
    server = serve()
    frame = server.ask("last-words", "dying", text="farewell")
    assert frame["error"]["kind"] == "child_died"
    assert "farewell" in frame["error"]["detail"]["stderr"]
    assert lines_of(server, 2, "[cpu:0 job=dying] ") == ["farewell", "farewell"]  # it is rerun once
