"""The program around the commands: help, version, wrong usage, signals, and how quickly it starts."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from gen_worker.cli.program import commands
from gen_worker.postmortem import Held, folder_in, write
from tests.pure.test_postmortem_files import told
from tests.served import ENDPOINTS, environment, until
from tests.terminal import terminal

GEN_WORKER = str(Path(sys.executable).with_name("gen-worker"))
COMMANDS = commands.list_commands(click.Context(commands))


def gen_worker(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [GEN_WORKER, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=cwd,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
    )


def test_help_lists_every_command_with_a_line_about_it() -> None:
    done = gen_worker("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command} +[A-Z][^.]*\.$", done.stdout, re.MULTILINE)
    assert "Exit codes:" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = gen_worker(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: gen-worker {command} ")
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_the_help_has_the_commands_by_what_one_does_with_them_in_one_column() -> None:
    shown = gen_worker("--help").stdout
    sections = re.findall(r"^([A-Z][a-z ]+):\n((?:  .*\n)+)", shown.partition("Exit codes:")[0], re.MULTILINE)
    assert [title for title, _ in sections][:4] == ["Options", "Write an endpoint", "Serve it", "Call it"]
    listed = re.findall(r"^  ([a-z]+)( +)[A-Z]", "".join(rows for _, rows in sections[1:]), re.MULTILINE)
    assert [name for name, _ in listed] == COMMANDS
    assert len({len(name + space) for name, space in listed}) == 1


@pytest.mark.parametrize("module", ["gen_worker", "gen_worker.cli"])
def test_the_module_is_the_same_program(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=30)
    assert done.stdout == gen_worker("--help").stdout


def test_without_a_command_the_help_goes_to_stderr() -> None:
    done = gen_worker()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == gen_worker("--help").stdout


def test_the_version_is_the_packages() -> None:
    import gen_worker as package

    assert gen_worker("--version").stdout == f"gen-worker {package.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "stderr"),
    [
        (["rnu"], "error: no command `rnu`\nhint: did you mean `gen-worker run`?\n"),
        (["discover"], "error: no command `discover`\nhint: it is a module: `python -m gen_worker.discover`\n"),
        (
            ["invoke", "--method", "zoo", "hi"],
            "error: no option `--method`\nhint: the function is the first word: `gen-worker invoke FUNCTION …`\n",
        ),
        (["invoke", "f", "--text", "hi"], "error: no option `--text`\nhint: fields have no dashes: `text=…`\n"),
        (["run", "--num-cats=1"], "error: no option `--num-cats`\nhint: fields have no dashes: `num_cats=…`\n"),
        (
            ["invoke", "f", "-5"],
            "error: no option `-5`\nhint: a value that begins with a dash needs its field: `field=-…`\n",
        ),
        (["prune"], "error: no command `prune`\nhint: did you mean `gen-worker cache prune`?\n"),
        (
            ["cache", "export", "hf:acme/x"],
            "error: missing option `-o`, `--output`\nhint: `gen-worker cache export --help` says what it takes\n",
        ),
        *(
            (
                ["serve", "--vram-budget", value],
                f"error: `--vram-budget` takes a number of GB, more than 0, not `{value}`\nhint: as 24 or 0.5\n",
            )
            for value in ("4GB", "0", "nan")
        ),
        (["zzzz"], "error: no command `zzzz`\nhint: `gen-worker --help` lists the commands\n"),
        (["run", "--prety"], "error: no option `--prety`\nhint: did you mean `--pretty`?\n"),
        (["kill"], "error: missing argument `REQUEST`\nhint: `gen-worker kill --help` says what it takes\n"),
        (["invoke"], "error: missing argument `FUNCTION`\nhint: `gen-worker invoke --help` says what it takes\n"),
        *(
            (
                [command, "--timeout", value],
                f"error: `--timeout` takes seconds, 0 or more, not `{value}`\nhint: 0 sets no limit\n",
            )
            for command, value in [("invoke", "soon"), ("invoke", "nan"), ("repl", "inf"), ("repl", "1e10")]
        ),
        (
            ["invoke", "f", "--timeout=-1"],
            "error: `--timeout` takes seconds, 0 or more, not `-1`\nhint: 0 sets no limit\n",
        ),
        (
            ["serve", "--devices", "auto", "--device", "0"],
            "error: `--devices` and `--device` together\nhint: give one of them\n",
        ),
    ],
)
def test_wrong_usage_is_said_in_our_form(arguments: list[str], stderr: str) -> None:
    done = gen_worker(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", stderr)


@pytest.mark.parametrize("command", ["run --module x", "serve --module x", "invoke f", "repl", "ps", "kill a"])
def test_a_setting_that_cannot_be_meant_is_refused_by_every_command(command: str) -> None:
    done = gen_worker(*command.split(), GEN_WORKER_MAX_QUEUED="lots")
    assert (done.returncode, done.stderr) == (
        2,
        "error: `GEN_WORKER_MAX_QUEUED` in the environment must be a whole number, not `lots`\n",
    )


def test_a_reader_that_goes_away_leaves_no_traceback() -> None:
    with subprocess.Popen([GEN_WORKER, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (141, "")


def test_a_full_disk_is_said_without_a_traceback() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([GEN_WORKER, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (2, "error: the output cannot be written: no space left on device\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["--help", "ps --json", "invoke f -", "run --module nothing", "serve --module 1"])
def test_a_command_does_without_a_standard_stream_that_is_closed(closed: str, command: str, tmp_path: Path) -> None:
    variables = {**os.environ, "GEN_WORKER_RUN_DIR": str(tmp_path)}
    whole, without = (
        subprocess.run(
            ["sh", "-c", f'"$0" {command} {redirection}', GEN_WORKER],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
            env=variables,
            stdin=subprocess.DEVNULL,
        )
        for redirection in ("", closed)
    )
    assert without.returncode == whole.returncode
    assert without.stdout == ("" if ">&-" in closed.split() else whole.stdout)
    assert without.stderr == ("" if "2>&-" in closed else whole.stderr)


@pytest.mark.process
@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_serve_serves_without_a_standard_stream(closed: str, tmp_path: Path) -> None:
    command = f'exec "$0" serve --no-stdin --module faulty --devices cpu:1 --socket {tmp_path}/s {closed}'
    with subprocess.Popen(["sh", "-c", command, GEN_WORKER], cwd=ENDPOINTS, env=environment(tmp_path)) as process:
        try:
            until((tmp_path / "s.json").exists, what="the server being ready")
            done = gen_worker("invoke", "echo", "text=hi", "--socket", str(tmp_path / "s"))
            assert (done.returncode, json.loads(done.stdout)["text"]) == (0, "hi"), done.stderr
        finally:
            process.terminate()


@pytest.mark.parametrize("command", [["ps"], ["kill", "a"]])
def test_the_operators_commands_say_where_supervisors_run(command: list[str]) -> None:
    program = (
        "import socket\ndel socket.AF_UNIX, socket.SOCK_SEQPACKET, socket.CMSG_SPACE\n"
        f"from gen_worker.cli import execute\nraise SystemExit(execute({command!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (4, "error: supervisors run on Linux only\n")


@pytest.mark.parametrize("hidden", ["os.memfd_create", "os.pidfd_open", "socket.AF_UNIX", "socket.SOCK_SEQPACKET"])
def test_serve_refuses_a_system_without_the_calls_it_needs(hidden: str) -> None:
    name = hidden.split(".")[1]
    program = (
        f"import os, socket\ndel {hidden}\nfrom gen_worker.cli import execute\nraise SystemExit(execute(['serve']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert (
        done.stderr == f"error: `serve` needs Linux: this system has no `{name}`\nhint: `gen-worker run` works here\n"
    )


def test_run_works_on_a_system_without_those_calls(tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text(
        "import msgspec\nfrom gen_worker import RequestContext, endpoint\n"
        "class In(msgspec.Struct):\n    text: str\n"
        "@endpoint\ndef alone(ctx: RequestContext, payload: In) -> In:\n    return payload\n"
    )
    program = (
        "import os, socket\ndel os.memfd_create, os.pidfd_open, socket.AF_UNIX, socket.SOCK_SEQPACKET\n"
        "from gen_worker.cli import execute\nraise SystemExit(execute(['run', '--module', 'alone', 'hello']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, '{"event":"result","value":{"text":"hello"}}\n'), done.stderr


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom gen_worker.cli import execute\nexecute(['--help'])\n"
        "heavy = {'asyncio', 'torch', 'numpy', 'grpc', 'psutil', 'pynvml', 'huggingface_hub', 'textual'}\n"
        "heavy.add('gen_worker.client')\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("command", ["invoke", "ps", "kill", "serve", "run"])
def test_a_command_imports_no_event_loop_before_it_works(command: str) -> None:
    program = (
        f"import sys\nfrom gen_worker.cli import execute\nexecute([{command!r}, '--help'])\n"
        "heavy = {'asyncio', 'torch', 'psutil', 'textual', 'gen_worker_supervisor', 'gen_worker_child'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("imported", ["click", "msgspec"])
@pytest.mark.parametrize("program", [[GEN_WORKER], [sys.executable, "-m", "gen_worker"]])
def test_ctrl_c_ends_a_command_without_a_word_while_it_is_imported(
    tmp_path: Path, program: list[str], imported: str
) -> None:
    (tmp_path / f"{imported}.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    with subprocess.Popen(
        [*program, "ps"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 130


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str) -> None:
    done = gen_worker("completion", shell)
    assert done.returncode == 0
    assert "_GEN_WORKER_COMPLETE" in done.stdout


def test_a_shell_is_told_what_may_come_next() -> None:
    done = gen_worker(_GEN_WORKER_COMPLETE="bash_complete", COMP_WORDS="gen-worker in", COMP_CWORD="1")
    assert done.stdout == "plain,invoke\n"


def test_a_shell_is_told_the_models_of_the_server_here(tmp_path: Path) -> None:
    models = {"pipeline": {"provider": "hf", "ref": "acme/words"}, "text": {"provider": "tensorhub", "ref": "acme/x"}}
    sidecar = {"functions": [{"name": "paint", "models": models}, {"name": "echo"}]}
    (tmp_path / ".gen-worker.sock.json").write_text(json.dumps(sidecar))
    for begun, words in (
        ("hf:acme/w", "plain,hf:acme/words\n"),
        ("coz", "open,cozy:\n"),
        ("cozy:", "plain,cozy:acme/x\n"),
    ):
        line = f"gen-worker prefetch {begun}"
        done = gen_worker(_GEN_WORKER_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD="2", cwd=tmp_path)
        assert done.stdout == words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("gen-worker serve --module ", ["voice", "painter", "painter.main"]),
        ("gen-worker run --module painter.", ["painter.main"]),
        ("gen-worker validate --module v", ["voice"]),
        ("gen-worker serve --devices c", ["cpu", "cpu:2"]),
        ("gen-worker serve --device a", ["auto"]),
        ("gen-worker up --devices c", ["cpu", "cpu:2"]),
        ("gen-worker repl --devices c", ["cpu", "cpu:2"]),
        ("gen-worker train --device c", ["cpu"]),
        ("gen-worker run --device cp", ["cpu"]),
        ("gen-worker orchestrator --devices c", ["cpu", "cpu:2"]),
    ],
)
def test_a_shell_is_told_the_modules_and_the_devices_of_this_machine(
    tmp_path: Path, line: str, words: list[str]
) -> None:
    (tmp_path / "src" / "painter").mkdir(parents=True)
    for name in ("voice.py", "conftest.py", "no-module.py", "src/painter/__init__.py", "src/painter/main.py"):
        (tmp_path / name).write_text("raise SystemExit('imported')\n")
    done = gen_worker(_GEN_WORKER_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD="3", cwd=tmp_path)
    assert [each.partition(",")[2] for each in done.stdout.splitlines()] == words


def test_what_a_program_reads_or_a_wide_terminal_shows_is_not_cut(tmp_path: Path) -> None:
    request = "invoke-" + "0123456789" * 2
    death = told(jobs=[Held(request, "paint", "started", ended_for="deadline", became="fatal")])
    folder_in(tmp_path).mkdir()
    write(folder_in(tmp_path), death)
    command = [GEN_WORKER, "postmortem"]
    assert request in gen_worker("postmortem", GEN_WORKER_RUN_DIR=str(tmp_path)).stdout
    with terminal(command, tmp_path, {**os.environ, "GEN_WORKER_RUN_DIR": str(tmp_path), "COLUMNS": "200"}) as wide:
        assert request in wide.end()
    with terminal(command, tmp_path, {**os.environ, "GEN_WORKER_RUN_DIR": str(tmp_path), "COLUMNS": "80"}) as narrow:
        assert max(map(len, narrow.end().splitlines())) <= 80
