"""`gen-worker repl`, as a command: a script's lines, and a person's."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.served import ENDPOINTS, GEN_WORKER, environment, serving, until
from tests.terminal import Terminal, terminal

pytestmark = pytest.mark.process
REPL = [*GEN_WORKER, "repl", "--module", "painter", "--devices", "cpu:1"]


def variables(folder: Path) -> dict[str, str]:
    own = {"GEN_WORKER_LOCAL_OUTPUT_DIR": str(folder / "outputs"), "PYTHONDONTWRITEBYTECODE": "1"}
    return {**environment(folder), **own, "TMPDIR": str(folder)}


def script(folder: Path, *lines: str, command: list[str] = REPL) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ENDPOINTS,
        env=variables(folder),
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=60,
    )


@contextmanager
def typed(folder: Path, *options: str) -> Iterator[Terminal]:
    with terminal([*REPL, *options], ENDPOINTS, variables(folder)) as made:
        made.until("> ")
        yield made


def private_servers(folder: Path) -> list[Path]:
    return list((folder / "run").glob("[0-9]*/supervisor.json")) + list(folder.glob("gen-worker-*"))


# --- as a script ------------------------------------------------------------------------------------------------------


def test_piped_lines_are_a_script_without_a_prompt(tmp_path: Path) -> None:
    done = script(tmp_path, "greet Ada times=2", "# a remark", "", 'paint-all {"times": 2}', "greet 'two words'")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        '{"text":"hello hello Ada"}',
        '{"image":"iVBORw0KGgow"}',
        '{"image":"iVBORw0KGgox"}',
        '{"yielded":2}',
        '{"text":"hello two words"}',
    ]
    assert private_servers(tmp_path) == []


def test_a_failed_line_ends_nothing_and_the_last_one_decides_the_exit_code(tmp_path: Path) -> None:
    done = script(
        tmp_path, "leave", "refuse", "grete", "greet 'open", "greet txet=1", "greet -", "greet text@-", "greet Ada"
    )
    assert done.returncode == 2
    assert json.loads(done.stdout) == {"text": "hello Ada"}
    errors = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
    assert re.fullmatch(r"hint: `gen-worker postmortem [0-9a-z-]+` tells what is known of it", errors.pop(1))
    assert errors == [
        "error: `leave` killed its child twice, the second time alone in it: exit code 7",
        "error: say please",
        "error: no function `grete`",
        "hint: did you mean `greet`?",
        "error: the line cannot be split into words: no closing quotation",
        "hint: a `'` or `\"` is left open",
        "error: no field `txet`; the fields are `text`, `times`",
        "hint: did you mean `text`?",
        *("error: `-` is stdin, which the lines come from", "hint: `@payload.json` is a payload from a file") * 2,
    ]


def test_a_line_that_is_no_text_costs_itself_only(tmp_path: Path) -> None:
    environment = {**variables(tmp_path), "PYTHONIOENCODING": "utf-8:strict"}
    lines = b"greet text=\xff\n\xff\ngreet Ada\n"
    done = subprocess.run(REPL, cwd=ENDPOINTS, env=environment, input=lines, capture_output=True, timeout=60)
    assert (done.returncode, json.loads(done.stdout)) == (2, {"text": "hello Ada"})
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("word", ["exit", "quit"])
def test_a_word_leaves_before_the_end_with_the_code_of_the_last_failed_line(tmp_path: Path, word: str) -> None:
    done = script(tmp_path, "leave", "greet Ada", word, "greet Bob")
    assert (done.returncode, done.stdout) == (1, '{"text":"hello Ada"}\n')


def test_the_session_can_be_asked_what_there_is(tmp_path: Path) -> None:
    done = script(tmp_path, "log 3", "help", "functions", "log")
    assert (done.returncode, done.stderr) == (2, "error: `log` takes nothing, not `3`\n")
    lines = done.stdout.splitlines()
    assert "greet      [text=] [times=]" in lines
    assert "look       image@" in lines
    assert any(line.startswith("FUNCTION FIELD=VALUE ...") for line in lines)
    assert lines[-1] == "ready"


def test_an_only_function_needs_no_name(tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text(
        "import msgspec\nfrom gen_worker import RequestContext, endpoint\n"
        "class In(msgspec.Struct):\n    text: str\n"
        "@endpoint\ndef alone(ctx: RequestContext, payload: In) -> In:\n    return payload\n"
    )
    command = [*GEN_WORKER, "repl", "--module", "alone", "--devices", "cpu:1"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=variables(tmp_path),
        input="hello\nalone text=there\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, '{"text":"hello"}\n{"text":"there"}\n'), done.stderr


def test_files_go_in_by_their_path(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"\x89PNG\r\n\x1a\nxyz")
    done = script(tmp_path, f"look image@{tmp_path}/cat.png")
    assert json.loads(done.stdout) == {"text": "local/cat.png image/png 11"}


def test_a_server_that_runs_is_used_and_left_running(tmp_path: Path) -> None:
    with serving(tmp_path, module="painter") as server:
        command = [*GEN_WORKER, "repl", "--socket", str(server.socket)]
        done = script(tmp_path, "greet Ada", "log", command=command)
        assert (done.returncode, json.loads(done.stdout)) == (2, {"text": "hello Ada"})
        assert done.stderr == "error: the server writes its log where it was started\n"
        assert server.ask("greet", text="Bob")["ok"]


def test_a_server_that_cannot_start_is_told_by_its_own_words(tmp_path: Path) -> None:
    done = script(tmp_path, "greet Ada", command=[*GEN_WORKER, "repl", "--module", "no_such_module"])
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: no module `no_such_module`" in done.stderr
    assert done.stderr.endswith("error: the server has ended, its log is above\n")
    assert private_servers(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--socket", "nothing.sock"], "error: no server at `nothing.sock`: no such file or directory\n"),
        (["--socket", "a.sock", "--module", "painter"], "error: `--socket` and `--module` together\n"),
    ],
)
def test_a_named_server_is_never_replaced_by_a_private_one(tmp_path: Path, options: list[str], error: str) -> None:
    done = script(tmp_path, "greet Ada", command=[*GEN_WORKER, "repl", *options])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(error)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_private_server_ends_with_its_session_however_that_ends(tmp_path: Path, number: int) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        REPL, cwd=ENDPOINTS, env=variables(tmp_path), stdin=pipe, stdout=pipe, stderr=pipe
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"greet Ada\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == {"text": "hello Ada"}
        (server,) = (tmp_path / "run").glob("[0-9]*")
        process.send_signal(number)
        process.wait(30)
        until(lambda: not server.exists(), what="the server's end")
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)


# --- on a terminal ----------------------------------------------------------------------------------------------------


def test_a_person_gets_a_prompt_completion_and_history(tmp_path: Path) -> None:
    with typed(tmp_path) as screen:
        screen.type("gre\tte\tAda\n")
        assert "greet text=Ada" in screen.until('{"text":"hello Ada"}')
        screen.until("> ")
        screen.type("\x1b[A\n")
        screen.until('{"text":"hello Ada"}')
        screen.until("> ")
        screen.type("\x04")
        screen.end()
    assert screen.code == 0
    assert private_servers(tmp_path) == []


def test_progress_is_a_bar_that_leaves_no_trace_among_the_results(tmp_path: Path) -> None:
    with typed(tmp_path) as screen:
        screen.type("work\n")
        seen = screen.until('{"text":"worked"}')
        screen.until("> ")
        screen.type("exit\n")
        screen.end()
    assert "[work] at work" in seen
    assert "denoise" in screen.shown
    assert '\r\x1b[K{"text":"worked"}' in screen.shown


def test_ctrl_c_at_the_prompt_clears_the_line(tmp_path: Path) -> None:
    with typed(tmp_path) as screen:
        screen.type("greet Bo")
        screen.until("Bo")
        screen.interrupt("> ")
        screen.type("greet Ada\n")
        assert "Bob" not in screen.until('{"text":"hello Ada"}')
        screen.until("> ")
        screen.type("\x04")
        screen.end()
    assert screen.code == 0


def test_ctrl_c_cancels_the_call_and_the_session_goes_on(tmp_path: Path) -> None:
    with typed(tmp_path) as screen:
        screen.type("wait\n")
        screen.until("[wait] waiting")
        screen.type("\x03")
        screen.until("canceling; press Ctrl-C again to stop waiting")
        screen.until("error: canceled")
        screen.until("> ")
        screen.type("greet Ada\n")
        screen.until('{"text":"hello Ada"}')
        screen.type("exit\n")
        screen.end()
    assert screen.code == 0


def test_a_second_ctrl_c_ends_a_call_that_does_not_listen_at_once(tmp_path: Path) -> None:
    with typed(tmp_path) as screen:
        screen.type("stuck\n")
        screen.until("[stuck] waiting")
        screen.type("\x03")
        screen.until("canceling")
        screen.type("\x03")
        screen.until("no longer waiting for it")
        screen.until("> ")
        screen.type("greet Ada\n")
        screen.until('{"text":"hello Ada"}')
        screen.type("exit\n")
        screen.end()
    assert screen.code == 0


def test_ctrl_c_while_the_private_server_starts_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        f"import pathlib, time\npathlib.Path({str(tmp_path / 'began')!r}).touch()\ntime.sleep(100)\n"
    )
    with terminal([*GEN_WORKER, "repl", "--module", "slow"], tmp_path, variables(tmp_path)) as screen:
        until((tmp_path / "began").exists, what="the import")
        screen.type("\x03")
        screen.end()
    assert screen.code == 130
    assert "Traceback" not in screen.shown
    assert private_servers(tmp_path) == []


def test_a_script_ends_at_a_ctrl_c(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        REPL, cwd=ENDPOINTS, env=variables(tmp_path), stdin=pipe, stdout=pipe, stderr=pipe
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"wait\ngreet Ada\n")
        process.stdin.flush()
        assert b"waiting" in process.stderr.readline()
        os.kill(process.pid, signal.SIGINT)
        stdout, _ = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (130, b"")
