"""`gen-worker run`, as a command: what it prints where, and its exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

GEN_WORKER = [sys.executable, "-m", "gen_worker.cli"]

MAIN = """
import asyncio, os, sys, threading, time
from collections.abc import AsyncIterator, Iterator
import msgspec
from gen_worker import HF, CanceledError, Done, RequestContext, Resources, RetryableError, ValidationError, endpoint

print("printed on import")

class In(msgspec.Struct):
    text: str = ""
    times: int = 1
    data: bytes = b""

class Out(msgspec.Struct):
    text: str

@endpoint
def mine(ctx: RequestContext, payload: In) -> Out:
    return Out(payload.text * payload.times)

@endpoint
class Cases:
    def __init__(self) -> None:
        self.log = []

    def setup(self) -> None:
        print("set up")
        os.write(1, b"native\\n")

    def shutdown(self) -> None:
        sys.stderr.write("shut down\\n")

    def count(self, ctx: RequestContext, payload: In) -> Iterator[Out]:
        for number in range(payload.times):
            yield Out(str(number))

    async def later(self, ctx: RequestContext, payload: In) -> Out:
        await asyncio.sleep(0.01)
        return Out(payload.text)

    async def count_later(self, ctx: RequestContext, payload: In) -> AsyncIterator[Out]:
        for number in range(payload.times):
            yield Out(str(number))

    def boom(self, ctx: RequestContext, payload: In) -> Out:
        raise RuntimeError("boom")

    def boom_late(self, ctx: RequestContext, payload: In) -> Iterator[Out]:
        yield Out("first")
        raise RuntimeError("boom")

    def refuse(self, ctx: RequestContext, payload: In) -> Out:
        raise ValidationError("say please")

    def no_number(self, ctx: RequestContext, payload: In) -> Out:
        return Out(str(int(payload.text)))

    def leave(self, ctx: RequestContext, payload: In) -> Out:
        sys.exit(3)

    def give_up(self, ctx: RequestContext, payload: In) -> Out:
        raise GeneratorExit("no Exception")

    def shut(self, ctx: RequestContext, payload: In) -> Out:
        sys.stdout.close()
        return Out("shut")

    def wrong(self, ctx: RequestContext, payload: In) -> Out:
        return "text"

    def wrong_item(self, ctx: RequestContext, payload: In) -> Iterator[Out]:
        yield Out("right")
        yield {"text": "wrong"}

    def tell(self, ctx: RequestContext, payload: In) -> Out:
        print("from the handler")
        ctx.progress(0.5, stage="half")
        ctx.progress(7)
        ctx.log("hello", level="warning")
        asset = ctx.save_bytes("notes/a.txt", b"kept")
        return Out(asset.local_path)

    def secrets(self, ctx: RequestContext, payload: In) -> Out:
        names = ("ACME_API_KEY", "HF_TOKEN", "WORKER_JWT", "AUTH_TOKEN")
        return Out(",".join(name for name in names if name in os.environ))

    def wait(self, ctx: RequestContext, payload: In) -> Out:
        ctx.log("waiting")
        while True:
            ctx.raise_if_cancelled()
            time.sleep(0.01)

    async def wait_later(self, ctx: RequestContext, payload: In) -> Out:
        ctx.log("waiting")
        await asyncio.sleep(100)
        return Out("")

    def stubborn(self, ctx: RequestContext, payload: In) -> Out:
        ctx.log("waiting")
        while True:
            time.sleep(0.01)

    def stray(self, ctx: RequestContext, payload: In) -> Out:
        threading.Thread(target=threading.Event().wait, name="forgotten").start()
        return Out("done")

@endpoint(model=HF("org/model"))
def needs_model(ctx: RequestContext, payload: In, pipeline: str) -> Out:
    return Out("")
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return project(tmp_path, MAIN)


def project(root: Path, main: str) -> Path:
    (root / "pyproject.toml").write_text('[project]\nname = "mine"\n[tool.gen_worker]\nmain = "mine.main"\n')
    (root / "mine").mkdir()
    (root / "mine" / "__init__.py").touch()
    (root / "mine" / "main.py").write_text(main)
    return root


def run(*arguments: str, cwd: Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*GEN_WORKER, "run", *arguments],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TENSORHUB_CACHE_DIR": str(cwd / "cache"), **env},
    )


def events(done: subprocess.CompletedProcess[str]) -> list[Any]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def result(done: subprocess.CompletedProcess[str]) -> Any:
    (event,) = events(done)
    assert event["event"] == "result"
    return event["value"]


@contextmanager
def started(*arguments: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    command = [*GEN_WORKER, "run", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=cwd, stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def until(stream: IO[str] | None, text: str) -> None:
    assert stream is not None
    for line in stream:
        if text in line:
            return
    raise AssertionError(f"the output ended before `{text}`")


# --- what it prints ---------------------------------------------------------------------------------------------------


def test_the_function_named_like_the_package_runs_without_being_chosen(root: Path) -> None:
    done = run("hello ", "times=2", cwd=root)
    assert (done.returncode, result(done)) == (0, {"text": "hello hello "})
    assert "printed on import" in done.stderr


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("later", [{"text": "a"}]),
        ("count", [{"text": "0"}, {"text": "1"}, {"yielded": 2}]),
        ("count-later", [{"text": "0"}, {"text": "1"}, {"yielded": 2}]),
        ("count_later", [{"text": "0"}, {"text": "1"}, {"yielded": 2}]),
    ],
)
def test_every_shape_of_handler_runs(root: Path, method: str, values: list[Any]) -> None:
    done = run("--method", method, "a", "times=2", cwd=root)
    assert done.returncode == 0
    assert events(done) == [
        *({"event": "yield", "value": value} for value in values[:-1]),
        {"event": "result", "value": values[-1]},
    ]


def test_only_results_reach_stdout(root: Path) -> None:
    done = run("--method", "tell", cwd=root)
    saved = Path(result(done)["text"])
    assert saved == root / ".gen-worker-run/outputs/notes/a.txt"
    assert saved.read_bytes() == b"kept"
    lines = done.stderr.splitlines()
    assert {"printed on import", "set up", "native", "from the handler", "shut down"} <= set(lines)
    progress, warned, beyond, log = (json.loads(line) for line in lines if line.startswith("{"))
    assert (progress["type"], progress["payload"]) == ("request.progress", {"progress": 0.5, "stage": "half"})
    assert warned["payload"]["level"] == "warning"
    assert "a fraction from 0 to 1, got 7" in warned["payload"]["message"]
    assert beyond["payload"] == {"progress": 1.0}
    assert (log["type"], log["payload"]) == ("request.log", {"level": "warning", "message": "hello"})
    assert list(progress) == sorted(progress)


def test_events_can_be_wanted_as_text(root: Path) -> None:
    done = run("--method", "tell", "--log-format", "text", cwd=root)
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("[")] == [
        "[tell] 50% half",
        "[tell] warning: `ctx.progress` takes a fraction from 0 to 1, got 7",
        "[tell] 100%",
        "[tell] warning: hello",
    ]
    assert run("--method", "tell", cwd=root, GEN_WORKER_LOG_FORMAT="text").stderr == done.stderr


def test_saved_files_go_where_the_variable_says(root: Path, tmp_path: Path) -> None:
    done = run("--method", "tell", cwd=root, GEN_WORKER_LOCAL_OUTPUT_DIR=str(tmp_path / "out"))
    assert result(done)["text"] == str(tmp_path / "out" / "notes" / "a.txt")


def test_pretty_json_is_indented(root: Path) -> None:
    done = run("--pretty", "a", cwd=root)
    assert done.stdout == '{\n  "event": "result",\n  "value": {\n    "text": "a"\n  }\n}\n'


def test_fields_go_over_the_payload_from_a_file_or_stdin(root: Path) -> None:
    (root / "payload.json").write_text('{"text": "a", "times": 3}')
    assert result(run("--payload-file", "payload.json", "text=b", cwd=root)) == {"text": "bbb"}
    assert result(run("--payload-file", "-", "times=1", cwd=root, stdin='{"text": "c"}')) == {"text": "c"}
    assert result(run("--payload", '{"text": "d"}', cwd=root)) == {"text": "d"}


LOOK = """
import msgspec
from gen_worker import Asset, RequestContext, endpoint, io

class In(msgspec.Struct):
    text: str = ""
    data: bytes = b""
    files: list[Asset] = []

class Out(msgspec.Struct):
    found: list[str]

@endpoint
def look(ctx: RequestContext, payload: In) -> Out:
    return Out([payload.text, payload.data.decode(), *(io.read_bytes(file).decode() for file in payload.files)])
"""


def test_a_field_takes_stdin_and_pipes_as_it_takes_files(tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    for word, found in (
        ("text@-", ["piped", ""]),
        ("data@-", ["", "piped"]),
        ("files@-", ["", "", "piped"]),
        ("files@/dev/stdin", ["", "", "piped"]),
    ):
        assert result(run("--module", "look", word, cwd=tmp_path, stdin="piped")) == {"found": found}


def test_a_file_asset_may_come_from_what_only_the_command_has_open(tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    (tmp_path / "notes.txt").write_text("written")
    with open(tmp_path / "notes.txt", "rb") as file:
        command = [*GEN_WORKER, "run", "--module", "look", f"files@/dev/fd/{file.fileno()}"]
        done = subprocess.run(
            command, cwd=tmp_path, pass_fds=[file.fileno()], capture_output=True, text=True, timeout=60
        )
    assert result(done) == {"found": ["", "", "written"]}


def test_stdin_is_given_to_one_field_only(tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    done = run("--module", "look", "text@-", "data@-", cwd=tmp_path, stdin="piped")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: stdin can be read once, by `text@-` or by `data@-`" in done.stderr


def test_the_only_word_can_be_the_whole_payload(root: Path) -> None:
    (root / "it.json").write_text('{"text": "a"}')
    assert result(run("--method", "mine", "@it.json", cwd=root)) == {"text": "a"}
    assert result(run("--method", "mine", "-", cwd=root, stdin='{"text": "b"}')) == {"text": "b"}
    assert result(run("--method", "mine", ' {"text": "c"}', cwd=root)) == {"text": "c"}
    done = run("--method", "mine", "--payload", "{}", "-", cwd=root)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: `--payload` or `--payload-file`, and `-`, which is a whole payload\nhint: give one" in done.stderr


def test_the_list_is_one_document_whatever_the_import_prints(root: Path) -> None:
    done = run("--list", cwd=root)
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert document["endpoint"]["main_module"] == "mine.main"
    assert "count-later" in [function["name"] for function in document["functions"]]
    assert done.stderr == "printed on import\n"


def test_a_module_can_be_named_without_a_project(tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text(MAIN)
    assert result(run("--module", "alone", "--method", "mine", "a", cwd=tmp_path)) == {"text": "a"}
    assert json.loads(run("--module", "alone", "--list", cwd=tmp_path).stdout)["endpoint"]["main_module"] == "alone"


def test_a_project_can_be_named_from_elsewhere(root: Path) -> None:
    assert result(run("--config", str(root), "a", cwd=Path("/"))) == {"text": "a"}
    assert result(run("--config", str(root / "pyproject.toml"), "a", cwd=Path("/"))) == {"text": "a"}


def test_the_list_and_the_functions_of_a_module_in_memory_can_be_had(root: Path) -> None:
    program = f"""
import sys, types
main = types.ModuleType("made_up")
sys.modules["made_up"] = main
exec({MAIN!r}, main.__dict__)
from gen_worker.cli import execute
assert execute(["run", "--module", "made_up", "--list"]) == 0
assert execute(["run", "--module", "made_up", "--method", "mine", "a"]) == 0
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout[done.stdout.index("{") : done.stdout.rindex('{"event"')])
    assert listed["endpoint"]["main_module"] == "made_up"
    assert done.stdout.endswith('{"event":"result","value":{"text":"a"}}\n')


def test_the_workers_secrets_do_not_reach_the_endpoint_and_its_own_do(root: Path) -> None:
    done = run("--method", "secrets", cwd=root, ACME_API_KEY="1", HF_TOKEN="2", WORKER_JWT="3", AUTH_TOKEN="4")
    assert result(done) == {"text": "ACME_API_KEY"}


# --- how it fails -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["--method", "refuse"], 2, "error: say please"),
        (["--method", "no-number", "abc"], 2, "error: invalid literal for int() with base 10: 'abc'"),
        (["--method", "boom"], 1, "error: RuntimeError: boom"),
        (["--method", "leave"], 1, "error: SystemExit: 3"),
        (["--method", "give-up"], 1, "error: GeneratorExit: no Exception"),
        (["--method", "wrong"], 1, "error: WrongTypeError: `wrong` returned a `str`, its annotation says `Out`"),
        (
            ["--method", "needs-model", "--offline"],
            3,
            "error: `org/model` is not on this machine",
        ),
        (
            ["--payload", '{"text": 5}'],
            2,
            "error: `mine` does not take this payload: Expected `str`, got `int` - at `$.text`",
        ),
        (["--payload", "{"], 2, "error: `--payload` is not JSON: Input data was truncated"),
        (["--payload", "[1]"], 2, "error: a payload is a JSON object, `--payload` holds something else"),
        (["--payload-file", "nothing"], 2, "error: cannot read `nothing`: no such file or directory"),
        (["--payload", "{}", "--payload-file", "a"], 2, "error: `--payload` and `--payload-file` together"),
        (["txet=1"], 2, "error: no field `txet`; the fields are `text`, `times`, `data`\nhint: did you mean `text`?"),
        (["--method", "bom"], 2, "error: no function `bom` in `mine.main`\nhint: did you mean `boom`?"),
        (["boom", "hi"], 2, "hint: `run` takes the function as an option: `--method boom`"),
        (["--class", "Case"], 2, "error: no endpoint class `Case` in `mine.main`\nhint: did you mean `Cases`?"),
        (["--class", "Cases"], 2, "error: which function?"),
        (["--device", "tpu"], 2, "error: `--device` must be `cpu`, `cuda` or `cuda:N`, not `tpu`"),
        (["--module", "no-such"], 2, "error: `no-such` is not a module name"),
        (["--module", "nothing.here"], 2, "error: no module `nothing`"),
        (["--module", "nothing.here", "--list"], 2, "error: no module `nothing`"),
        (["--config", "/nothing"], 2, "error: no `/nothing`"),
    ],
)
def test_what_goes_wrong_is_said_with_its_exit_code(root: Path, arguments: list[str], code: int, error: str) -> None:
    done = run(*arguments, cwd=root)
    assert error in done.stderr
    assert done.returncode == code
    assert done.stdout == ""
    assert "gen_worker" not in done.stderr.replace("gen_worker.api.errors", ""), "a frame of ours is in the trace"


def test_code_that_closes_its_stdout_costs_nothing(root: Path) -> None:
    done = run("--method", "shut", cwd=root)
    assert (done.returncode, json.loads(done.stdout)["value"]["text"]) == (0, "shut")
    assert "Traceback" not in done.stderr


def test_a_value_error_is_told_with_the_line_that_raised_it_and_without_a_traceback(root: Path) -> None:
    done = run("--method", "no-number", "abc", cwd=root)
    (hint,) = [line for line in done.stderr.splitlines() if line.startswith("hint: ")]
    assert re.fullmatch(r"hint: it was raised at `.*/main\.py:\d+`", hint)
    assert "Traceback" not in done.stderr


def test_a_traceback_holds_the_authors_lines_and_only_those(root: Path) -> None:
    done = run("--method", "boom-late", cwd=root)
    assert events(done) == [{"event": "yield", "value": {"text": "first"}}]
    assert 'raise RuntimeError("boom")' in done.stderr
    assert "executor.py" not in done.stderr
    assert done.stderr.endswith("error: RuntimeError: boom\nshut down\n")


def test_an_item_of_another_type_ends_the_stream_after_those_before_it(root: Path) -> None:
    done = run("--method", "wrong-item", cwd=root)
    assert events(done) == [{"event": "yield", "value": {"text": "right"}}]
    assert "error: WrongTypeError: `wrong_item` yielded a `dict`, its annotation says `Out`\n" in done.stderr
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)


@pytest.mark.parametrize(
    ("main", "error"),
    [
        (
            "import nothing_like_it",
            "error: `mine.main` does not import: ModuleNotFoundError: No module named 'nothing_like_it'",
        ),
        ("x = 1 / 0", "error: `mine.main` does not import: ZeroDivisionError: division by zero"),
        ("x = 1", "error: no functions in `mine.main`\nhint: mark a class or a function with `@endpoint`"),
        (
            "from gen_worker import endpoint\n@endpoint\nclass A:\n    pass\n",
            "main.py:2: `A` has nothing to serve: add a public method",
        ),
        (
            "from gen_worker import endpoint\n@endpoint\ndef f(ctx, payload): ...\n",
            "must be annotated with a `msgspec.Struct`",
        ),
    ],
)
def test_a_module_that_cannot_be_served_is_refused(tmp_path: Path, main: str, error: str) -> None:
    done = run(cwd=project(tmp_path, main))
    assert error in done.stderr
    assert done.returncode == 2


def test_an_import_that_ends_the_process_is_told_by_its_cause(tmp_path: Path) -> None:
    root = project(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    done = run("--list", cwd=root)
    assert done.returncode == 2
    assert 'main.py", line 2 in <module>' in done.stderr
    assert done.stderr.endswith("\nerror: importing `mine.main` ended the process: SIGSEGV\n")


def test_without_a_project_the_hint_says_what_to_do(tmp_path: Path) -> None:
    done = run(cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: no `{tmp_path}/pyproject.toml`; "
        "run from the root of the endpoint or say where it is with `--config PATH`\n"
        "hint: a module needs no project: `--module my_endpoint.main`\n"
    )


def test_a_setup_that_fails_is_told_with_its_traceback(tmp_path: Path) -> None:
    main = MAIN.replace('print("set up")', 'raise OSError("no weights")')
    done = run("--method", "count", cwd=project(tmp_path, main))
    assert done.returncode == 1
    assert 'raise OSError("no weights")' in done.stderr
    assert "error: `Cases` cannot be set up" in done.stderr


def test_threads_that_the_endpoint_forgot_do_not_keep_the_process(root: Path) -> None:
    done = run("--method", "stray", cwd=root)
    assert (done.returncode, result(done)) == (0, {"text": "done"})
    assert "warning: the endpoint left threads running, they end now: forgotten" in done.stderr


# --- Ctrl-C, and nobody reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["wait", "wait-later"])
def test_ctrl_c_asks_the_job_to_end(root: Path, method: str) -> None:
    with started("--method", method, cwd=root) as process:
        until(process.stderr, "waiting")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert stdout == ""
    assert "canceling; press Ctrl-C again to end at once" in stderr
    assert "error: canceled\n" in stderr
    assert "shut down" in stderr
    assert "Traceback" not in stderr


def test_a_second_ctrl_c_ends_what_does_not_listen(root: Path) -> None:
    with started("--method", "stubborn", cwd=root) as process:
        until(process.stderr, "waiting")
        process.send_signal(signal.SIGINT)
        until(process.stderr, "canceling")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 130


def test_a_second_ctrl_c_ends_native_code(root: Path) -> None:
    (root / "painter.py").write_text((Path(__file__).parents[1] / "endpoints" / "painter.py").read_text())
    with started("--module", "painter", "--method", "native", cwd=root) as process:
        until(process.stderr, "waiting")
        process.send_signal(signal.SIGINT)
        until(process.stderr, "canceling")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 130


def test_a_handler_that_leaves_the_process_takes_the_command_with_it(root: Path) -> None:
    (root / "painter.py").write_text((Path(__file__).parents[1] / "endpoints" / "painter.py").read_text())
    done = run("--module", "painter", "--method", "leave", cwd=root)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


def test_ctrl_c_while_importing_ends_at_once(tmp_path: Path) -> None:
    root = project(tmp_path, "import sys, time\nprint('importing', file=sys.stderr, flush=True)\ntime.sleep(60)\n")
    with started(cwd=root) as process:
        until(process.stderr, "importing")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_a_reader_that_goes_away_is_no_error_of_the_endpoint(root: Path) -> None:
    with started("--method", "count", "times=1000000", cwd=root) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 141
    assert "Traceback" not in stderr
    assert stderr.endswith("shut down\n")


# --- producers --------------------------------------------------------------------------------------------------------

PRODUCER = """
import msgspec
from gen_worker import ConversionContext, RequestContext, endpoint
from gen_worker.api.types import SourceRepo

class In(msgspec.Struct):
    source: SourceRepo

class Out(msgspec.Struct):
    ref: str
    path: str

@endpoint(kind="conversion")
def mine(ctx: ConversionContext, payload: In) -> Out:
    return Out(payload.source.ref, ctx.source_path or "")

@endpoint
def plain(ctx: RequestContext, payload: In) -> Out:
    return Out(payload.source.ref, "")
"""


def test_a_folder_stands_for_the_source_of_a_producer(tmp_path: Path) -> None:
    root = project(tmp_path, PRODUCER)
    (root / "weights").mkdir()
    done = run("--source-path", "weights", cwd=root)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["value"] == {"ref": "local/weights", "path": str(root / "weights")}
    above = run("--source-path", "weights/../weights/.", cwd=root)
    assert json.loads(above.stdout)["value"] == {"ref": "local/weights", "path": str(root / "weights")}
    named = run("--source-path", "weights", "source.ref=org/repo", cwd=root)
    assert json.loads(named.stdout)["value"]["ref"] == "org/repo"


PRODUCING = """
import msgspec
from typing import Any

from gen_worker import ConversionContext, endpoint
from gen_worker.api.types import DestinationRepo, SourceRepo

class In(msgspec.Struct):
    source: SourceRepo | None = None
    destination: DestinationRepo = msgspec.field(default_factory=lambda: DestinationRepo("acme/tiny", ["PROD"]))

class Out(msgspec.Struct):
    told: dict[str, Any]

@endpoint(kind="conversion")
def make(ctx: ConversionContext, payload: In) -> Out:
    saved = ctx.save_checkpoint_bytes("model.safetensors", b"weights")
    return Out(ctx.publish_repo_revision(artifact_refs=[saved]))
"""


def test_what_a_producer_would_publish_is_said_and_not_done(tmp_path: Path) -> None:
    done = run(cwd=project(tmp_path, PRODUCING))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["value"]["told"]
    assert (told["stubbed"], told["destination_repo"]) == (True, "acme/tiny")
    said = next(json.loads(line) for line in done.stderr.splitlines() if "stubbed" in line)
    assert said["kind"] == "publish_repo_revision.stubbed"
    assert said["would_publish"] == {"destination_repo": "acme/tiny", "paths": ["model.safetensors"], "tags": ["prod"]}


def test_a_source_without_a_ref_is_the_callers_mistake(tmp_path: Path) -> None:
    done = run('{"source":{"ref":" "}}', cwd=project(tmp_path, PRODUCING))
    assert (done.returncode, done.stderr) == (2, "error: `source.ref` is empty: name what to start from\n")


def test_a_source_that_cannot_be_had_ends_like_a_model_that_cannot(tmp_path: Path) -> None:
    done = run("source.ref=acme/nowhere", cwd=project(tmp_path, PRODUCING))
    assert done.returncode == 3
    assert done.stderr.startswith("error: the source cannot be had: `acme/nowhere` is on the platform's hub, whose")
    assert "\nhint: `--source-path FOLDER` takes a folder" in done.stderr


def test_publishing_for_real_needs_a_platform(tmp_path: Path) -> None:
    done = run("--allow-publish", cwd=project(tmp_path, PRODUCING))
    assert done.returncode == 2
    assert done.stderr.startswith("error: `--allow-publish` without a platform to publish to\nhint: set `COZY_HUB_URL`")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--source-path", "nowhere"], "error: no folder `nowhere`"),
        (["--source-path", "/"], "error: no folder `/`"),
        (
            ["--source-path", ".", "--method", "plain"],
            "error: `--source-path` is for producers, `plain` is of the kind",
        ),
    ],
)
def test_a_source_path_that_cannot_be_meant_is_refused(tmp_path: Path, arguments: list[str], told: str) -> None:
    done = run(*arguments, cwd=project(tmp_path, PRODUCER))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(told)


def test_what_a_job_took_is_told_when_asked_for(root: Path) -> None:
    done = run("--verbose", "hello", cwd=root)
    (told,) = [json.loads(line) for line in done.stderr.splitlines() if "request.memory" in line]
    assert told["payload"].keys() == {"host_bytes"}
    assert 1 << 20 < told["payload"]["host_bytes"] < 1 << 30
    assert "[mine] peak memory: " in run("--verbose", "--log-format", "text", "hello", cwd=root).stderr
