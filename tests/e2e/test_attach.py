"""`run --attach` and `invoke` against a real server, and what a shell completes from it."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.served import ENDPOINTS, GEN_WORKER, Server, environment, serving, until
from tests.terminal import terminal

pytestmark = pytest.mark.process
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    with serving(folder, module="painter") as made:
        (folder / ".gen-worker.sock").symlink_to("gw.sock")
        (folder / ".gen-worker.sock.json").symlink_to("gw.sock.json")
        (folder / "cat.png").write_bytes(PNG + b"xyz")
        yield made


@pytest.fixture(scope="module", autouse=True)
def _module_alone(server: Server) -> None:
    """One server for all tests here: none of them may start before it."""


def command(server: Server, *arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*GEN_WORKER, *arguments],
        cwd=cwd or server.folder,
        env={**environment(server.folder), **env},
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def events(done: subprocess.CompletedProcess[str]) -> list[object]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


# --- run --attach -----------------------------------------------------------------------------------------------------


def test_attach_prints_as_run_does_and_takes_the_same_words(server: Server) -> None:
    done = command(server, "run", "--attach", "--method", "greet", "Ada", "times=2")
    assert events(done) == [{"event": "result", "value": {"text": "hello hello Ada"}}]
    done = command(server, "run", "--attach", "--method", "paint_all", "--payload", '{"times": 5}', "times=1")
    assert events(done) == [
        {"event": "yield", "value": {"image": "iVBORw0KGgow"}},
        {"event": "result", "value": {"yielded": 1}},
    ]
    done = command(server, "run", "--attach", "--method", "look", "image@cat.png")
    assert events(done) == [{"event": "result", "value": {"text": "local/cat.png image/png 11"}}]


def test_attach_shows_events_as_run_does(server: Server) -> None:
    attached = command(server, "run", "--attach", "--method", "work")
    alone = command(server, "run", "--module", "painter", "--method", "work", PYTHONPATH=str(ENDPOINTS))
    assert attached.stdout == alone.stdout

    def told(done: subprocess.CompletedProcess[str]) -> list[object]:
        lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
        return [(line["type"], line["payload"]) for line in lines]

    last = ("request.progress", {"progress": 1.0, "stage": "done"})
    assert told(alone)[-1] == last
    assert told(attached) == told(alone)


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["--method", "gret"], 2, "error: no function `gret` here\nhint: did you mean `greet`? available: "),
        ([], 2, "error: which function? 11 match: "),
        (["--method", "refuse"], 2, "error: say please\n"),
        (["--method", "greet", "txet=1"], 2, "error: no field `txet`; the fields are `text`, `times`\n"),
        (["--method", "greet", "--device", "cpu"], 2, "error: `--attach` with `--device`, `--offline`,"),
        (["--class", "Greeter"], 2, "error: no endpoint class `Greeter` here\nhint: the classes are none\n"),
    ],
)
def test_what_goes_wrong_is_said_as_run_says_it(server: Server, arguments: list[str], code: int, error: str) -> None:
    done = command(server, "run", "--attach", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(error)


def test_without_a_server_attach_says_how_to_start_one(server: Server, tmp_path: Path) -> None:
    done = command(server, "run", "--attach", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: no server at `./.gen-worker.sock`: no such file or directory\n"
        "hint: `gen-worker serve` starts one; without `--attach` none is needed\n"
    )


# --- files out --------------------------------------------------------------------------------------------------------


def test_bytes_of_the_output_become_a_file(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "cat.png"
    assert events(command(server, "invoke", "paint", "x", "-o", str(target))) == [{"image": str(target)}]
    assert target.read_bytes() == PNG + b"x"
    again = command(server, "invoke", "paint", "x", "-o", str(target))
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == f"error: `{target}` is there already\nhint: `--force` overwrites it\n"
    assert events(command(server, "invoke", "paint", "y", "-o", str(target), "--force")) == [{"image": str(target)}]
    assert target.read_bytes() == PNG + b"y"


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_the_items_of_a_stream_become_numbered_files(server: Server, tmp_path: Path, stream: list[str]) -> None:
    done = command(server, "invoke", "paint-all", "times=2", "-o", str(tmp_path / "all"), *stream)
    assert events(done) == [
        {"image": f"{tmp_path}/all/0000.image.png"},
        {"image": f"{tmp_path}/all/0001.image.png"},
        {"yielded": 2},
    ]
    assert (tmp_path / "all" / "0001.image.png").read_bytes() == PNG + b"1"


def test_a_file_that_the_job_saved_is_copied(server: Server, tmp_path: Path) -> None:
    (event,) = events(command(server, "invoke", "keep", "-o", f"{tmp_path}/"))
    assert isinstance(event, dict)
    assert event["image"]["local_path"] == str(tmp_path / "image.png")
    assert (tmp_path / "image.png").read_bytes() == PNG


def test_without_anything_binary_the_output_is_printed_and_the_error_says_so(server: Server, tmp_path: Path) -> None:
    done = command(server, "invoke", "greet", "Ada", "-o", str(tmp_path / "x"))
    assert (done.returncode, done.stdout) == (2, '{"text":"hello Ada"}\n')
    assert done.stderr == (
        "error: nothing in the output is binary, so `-o` wrote nothing\nhint: the output is on stdout\n"
    )


def test_what_cannot_be_written_is_printed_as_it_came(server: Server, tmp_path: Path) -> None:
    (tmp_path / "image.png").touch()
    done = command(server, "invoke", "paint", "x", "-o", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, '{"image":"iVBORw0KGgp4"}\n')
    assert done.stderr.startswith(f"error: `{tmp_path}/image.png` is there already\n")


# --- deadlines, tokens, other machines --------------------------------------------------------------------------------


def test_the_timeout_is_the_jobs_deadline_too(server: Server) -> None:
    done = command(server, "invoke", "wait", "--timeout", "0.2")
    assert (done.returncode, done.stdout) == (2, "")
    told = "no answer within 0.2 s; `invoke-[0-9a-f]+` is canceled|deadline exceeded"  # whose clock is the first
    assert re.search(f"error: ({told})", done.stderr)


def test_over_tcp_files_travel_in_the_payload_and_the_token_comes_from_the_settings(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(PNG + b"xyz")
    with serving(tmp_path, module="painter", listen="tcp://127.0.0.1:0", token="sesame") as server:
        arguments = ["invoke", "look", "image@cat.png", "--socket", server.address]
        done = command(server, *arguments, GEN_WORKER_TOKEN="sesame")
        assert events(done) == [{"text": "local/cat.png image/png 11"}]
        done = command(server, *arguments, GEN_WORKER_TOKEN="wrong")
        assert done.returncode == 2
        assert "token" in done.stderr


# --- on a terminal ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["invoke", "work"], ["run", "--module", "painter", "--method", "work"]])
def test_progress_is_a_bar_on_a_terminal_and_never_mixes_with_lines(server: Server, arguments: list[str]) -> None:
    environ = {**environment(server.folder), "PYTHONPATH": str(ENDPOINTS), "PYTHONDONTWRITEBYTECODE": "1"}
    with terminal([*GEN_WORKER, *arguments], server.folder, environ) as screen:
        screen.end()
    assert screen.code == 0
    assert "50% denoise" in screen.shown
    lines = [line.rpartition("\x1b[K")[2] for line in screen.shown.splitlines()]
    assert "[work] at work" in lines
    assert any(line.endswith(('{"text":"worked"}', '{"text":"worked"}}')) for line in lines)
    assert not any("━" in line and "{" in line for line in lines)


def test_no_color_leaves_words_alone_and_force_color_paints_pipes(server: Server) -> None:
    plain = command(server, "invoke", "nothing")
    assert plain.stderr.startswith("error: no function `nothing`\nhint: available: ")
    painted = command(server, "invoke", "nothing", FORCE_COLOR="1")
    assert painted.stderr.startswith("\x1b[31merror:\x1b[0m no function `nothing`\n\x1b[34mhint:\x1b[0m available: ")
    assert command(server, "invoke", "nothing", FORCE_COLOR="1", NO_COLOR="1").stderr == plain.stderr


def test_ps_names_states_with_glyphs_on_a_terminal(server: Server) -> None:
    ps = [*GEN_WORKER, "ps", "--socket", str(server.socket)]
    with terminal(ps, server.folder, {**environment(server.folder), "NO_COLOR": "1"}) as screen:
        shown = screen.end()
    assert "○ idle" in shown
    assert "\x1b" not in screen.shown
    assert "○" not in server.run("ps").stdout


# --- completion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("gen-worker invoke pa", ["paint", "paint-all"]),
        ("gen-worker invoke greet ti", ["times="]),
        ("gen-worker invoke look ", ["image@"]),
        ("gen-worker invoke look image@c", ["image@cat.png"]),
        ("gen-worker invoke look image@out", ["image@outputs/"]),
        ("gen-worker run --method gre", ["greet"]),
        ("gen-worker run --method greet te", ["text="]),
        ("gen-worker invoke --socket gw", ["gw.sock"]),
        ("gen-worker invoke nothing te", []),
        ("gen-worker kill no", []),
        ("gen-worker completion z", ["zsh"]),
    ],
)
def test_a_shell_is_offered_what_the_server_and_the_folder_have(server: Server, line: str, words: list[str]) -> None:
    (server.folder / "outputs").mkdir(exist_ok=True)
    done = command(server, _GEN_WORKER_COMPLETE="bash_complete", COMP_WORDS=line)
    assert [each.partition(",")[2] for each in done.stdout.split()] == words
    assert done.stderr == ""


def test_a_supervisor_that_does_not_answer_keeps_no_shell_waiting(server: Server) -> None:
    server.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        done = command(server, _GEN_WORKER_COMPLETE="bash_complete", COMP_WORDS="gen-worker kill my")
        assert time.monotonic() - began < 5
        assert (done.stdout.strip(), done.stderr) == ("", "")
    finally:
        server.signal(signal.SIGCONT)


def test_kill_completes_the_requests_that_run(server: Server) -> None:
    with server.connect() as connection:
        connection.send("wait", "my-request")
        until(lambda: server.job("my-request"), what="the request")
        line = "gen-worker kill my"
        done = command(server, _GEN_WORKER_COMPLETE="bash_complete", COMP_WORDS=line)
        assert done.stdout == "plain,my-request\n"
        connection.cancel("my-request")
        assert {"canceled" in connection.frame() for _ in range(2)} == {
            True,
            False,
        }  # both ends: of it and of its cancel


def test_bash_completes_words_that_it_splits_itself(server: Server) -> None:
    start = server.folder / "bashrc"
    start.write_text(f'PATH="{Path(GEN_WORKER[0]).parent}:$PATH"\neval "$(gen-worker completion bash)"\nPS1="$ "\n')
    environ = {**os.environ, **environment(server.folder)}
    with terminal(["bash", "--rcfile", str(start), "-i"], server.folder, environ) as screen:
        screen.until("$ ")
        for typed in ("gen-worker inv\tgre\tte\tAda ti\t2\n", "gen-worker invoke look image@c\t\n"):
            screen.type(typed)
            screen.until('{"text":')
        screen.until("image/png 11")
        screen.type("exit\n")
        screen.end()
    assert '{"text":"hello hello Ada"}' in screen.shown
