"""`gen-worker invoke`, as a command, against a server that is a few lines in a thread."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from gen_worker.cli.servers import sidecar as sidecar_of
from gen_worker.wire.address import TcpAddress

GEN_WORKER = [sys.executable, "-m", "gen_worker.cli"]
SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "steps": {"type": "integer"}},
    "required": ["text"],
}


class Server:
    """Answers each request line with what `answer` returns; keeps what it was asked."""

    def __init__(self, listener: socket.socket) -> None:
        self.seen: Queue[Any] = Queue()
        self.answer: Callable[[Any], list[Any]] = lambda request: [buffered(request["payload"])]
        self._listener = listener
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines, suppress(ConnectionError):  # clients may leave
            for line in lines:
                request = json.loads(line)
                self.seen.put(request)
                for answer in self.answer(request):
                    if answer is None:
                        return
                    connection.sendall(answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


def buffered(value: Any) -> dict[str, Any]:
    return {"ok": True, "events": [{"event": "result", "value": value}]}


def failed(kind: str, message: str, **more: Any) -> dict[str, Any]:
    return {"ok": False, "error": {"kind": kind, "message": message, **more}}


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path_factory.mktemp("i")
    monkeypatch.setenv("GEN_WORKER_RUN_DIR", str(made / "run"))
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(".gen-worker.sock")
        listener.listen()
        made = Server(listener)
        yield made
        made.close()


@pytest.fixture
def sidecar(folder: Path) -> Path:
    path = folder / ".gen-worker.sock.json"
    path.write_text(json.dumps({"functions": [{"name": "echo-it", "input_schema": SCHEMA}]}))
    return path


def invoke(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*GEN_WORKER, "invoke", *arguments], input=stdin, capture_output=True, text=True, timeout=60)


def payload(*arguments: str, stdin: str = "") -> Any:
    done = invoke("echo-it", *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- the payload ------------------------------------------------------------------------------------------------------


def test_fields_are_coerced_by_the_schema_that_the_server_keeps_beside_its_socket(
    server: Server, sidecar: Path
) -> None:
    assert payload("text=5", "steps=5") == {"text": "5", "steps": 5}
    assert payload("a cat") == {"text": "a cat"}
    assert payload("me@home.org") == {"text": "me@home.org"}
    assert payload() == {}


def test_one_argument_can_be_the_whole_payload(server: Server, sidecar: Path, folder: Path) -> None:
    (folder / "payload.json").write_text('{"text": "from a file"}')
    assert payload('{"text": "json"}') == {"text": "json"}
    assert payload("@payload.json") == {"text": "from a file"}
    assert payload("-", stdin='{"text": "piped"}') == {"text": "piped"}


@pytest.mark.parametrize("word", ["5", "true", '"quoted"', "[1]"])
def test_json_that_is_no_object_is_a_value(server: Server, sidecar: Path, word: str) -> None:
    assert payload(word) == {"text": word}


@pytest.mark.parametrize(
    ("word", "error"),
    [("-", "error: stdin is empty\n"), ("@", "error: no file is named\n"), ("@empty", "error: `empty` is empty\n")],
)
def test_a_payload_from_nothing_is_said(server: Server, folder: Path, word: str, error: str) -> None:
    (folder / "empty").touch()
    assert invoke("echo-it", word).stderr.startswith(error)


def test_without_a_sidecar_the_schema_comes_from_the_module(server: Server, folder: Path) -> None:
    (folder / "echoes.py").write_text(
        "import msgspec\nfrom gen_worker import RequestContext, endpoint\nprint('noise')\n"
        "class In(msgspec.Struct):\n    text: str\n    steps: int = 1\n"
        "@endpoint\ndef echo_it(ctx: RequestContext, payload: In) -> In:\n    return payload\n"
    )
    assert payload("hello", "steps=3", "--module", "echoes") == {"text": "hello", "steps": 3}


def test_without_any_schema_values_are_guessed(server: Server) -> None:
    assert payload("text=5", "deep.er=x") == {"text": 5, "deep": {"er": "x"}}


def test_either_spelling_of_a_function_is_known(server: Server, sidecar: Path) -> None:
    assert invoke("echo_it", "a").returncode == 0
    assert server.seen.get(timeout=5)["function"] == "echo-it", "by which a server knows a variant, too"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["eko-it", "a"], "error: no function `eko-it`\nhint: did you mean `echo-it`? available: `echo-it`\n"),
        (["zzz", "a"], "error: no function `zzz`\nhint: available: `echo-it`\n"),
        (["echo-it", "txet=a"], "error: no field `txet`; the fields are `text`, `steps`\nhint: did you mean `text`?\n"),
        (["echo-it", "a", "b"], "error: two values without a field name: `a` and `b`\n"),
        (
            ["echo-it", "-", "steps=1"],
            "error: `-` is a whole payload, and there are other words\nhint: as text it is `",
        ),
        (["echo-it", "steps=1", "@it.json"], "error: `@it.json` is a whole payload, and there are other words\n"),
        (["echo-it", '{"text": "a"}', "steps=1"], 'error: `{"text": "a"}` is a whole payload, and there are'),
        (["echo-it", '{"text": "a"'], 'error: `{"text": "a"` is not JSON: Input data was truncated\nhint: text is `'),
        (["echo-it", "@nothing"], "error: cannot read `nothing`: no such file or directory\n"),
        (["echo-it", "-"], "error: stdin is empty\nhint: a payload is a JSON object"),
    ],
)
def test_a_payload_that_cannot_be_made_is_not_sent(
    server: Server, sidecar: Path, arguments: list[str], error: str
) -> None:
    done = invoke(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(error)
    assert server.seen.empty()


# --- what comes back --------------------------------------------------------------------------------------------------


def test_only_the_values_are_printed(server: Server) -> None:
    events = [
        {"event": "yield", "value": 1},
        {"event": "yield", "value": {"a": 2}},
        {"event": "result", "value": {"yielded": 2}},
    ]
    server.answer = lambda request: [{"ok": True, "events": events}]
    assert invoke("count").stdout == '1\n{"a": 2}\n{"yielded": 2}\n'
    assert server.seen.get_nowait()["stream"] is False


def test_a_stream_is_printed_as_it_is_made_and_progress_goes_to_stderr(server: Server) -> None:
    release = threading.Event()

    def answer(request: Any) -> Iterator[Any]:
        yield {"event": "yield", "value": 1}
        release.wait(30)
        yield {"event": "progress", "value": {"progress": 0.5}}
        yield {"event": "result", "value": {"yielded": 1}}
        yield {"ok": True, "done": True}

    server.answer = answer  # type: ignore[assignment]
    command = [*GEN_WORKER, "invoke", "count", "--stream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        release.set()
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (0, '{"yielded": 1}\n')
    request = server.seen.get_nowait()
    event = json.loads(stderr)
    assert (event["type"], event["payload"]) == ("request.progress", {"progress": 0.5})
    assert event["request_id"] == request["request_id"]
    assert (request["stream"], request["events"], request["function"]) == (True, True, "count")


def test_events_can_be_wanted_as_text(server: Server) -> None:
    server.answer = lambda request: [
        {"event": "log", "value": {"message": "hot", "level": "warning"}},
        {"event": "progress", "value": {"progress": 0.5, "stage": "denoise"}},
        buffered(1),
    ]
    done = invoke("paint", "--log-format", "text")
    assert (done.stdout, done.stderr) == ("1\n", "[paint] warning: hot\n[paint] 50% denoise\n")


def test_pretty_values_are_indented(server: Server) -> None:
    assert invoke("echo", "a=1", "--pretty").stdout == '{\n  "a": 1\n}\n'


def test_a_long_answer_arrives_whole(server: Server) -> None:
    text = "x" * (5 << 20)
    server.answer = lambda request: [buffered(text)]
    assert json.loads(invoke("echo").stdout) == text


def test_a_server_on_tcp_can_be_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(listener)
        assert invoke("echo", "a=1", "--socket", f"tcp://127.0.0.1:{listener.getsockname()[1]}").stdout == '{"a": 1}\n'
        server.close()


# --- how it fails -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("usage", 2),
        ("not_found", 2),
        ("invalid", 2),
        ("model_resolution", 3),
        ("canceled", 130),
        ("user_exception", 1),
        ("child_died", 1),
        ("killed", 1),
        ("quarantined", 1),
        ("deadline", 1),
        ("out_of_memory", 1),
        ("retryable", 1),
        ("busy", 1),
        ("draining", 1),
        ("unavailable", 1),
        ("internal", 1),
        ("something_new", 1),
    ],
)
def test_the_kind_of_an_error_decides_the_exit_code(server: Server, kind: str, code: int) -> None:
    server.answer = lambda request: [failed(kind, "it went wrong")]
    done = invoke("echo")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("error: it went wrong\n")


def test_who_is_refused_because_too_many_wait_is_told_when_to_try_again(server: Server) -> None:
    server.answer = lambda request: [
        failed("busy", "3 jobs wait already", detail={"retry_after_s": 2.5}, retryable=True)
    ]
    done = invoke("echo", "--tenant", "ada", "--priority", "7")
    assert done.stderr == "error: 3 jobs wait already\nhint: try again in 2.5 s\n"
    asked = server.seen.get(timeout=5)
    assert (asked["tenant"], asked["priority"]) == ("ada", 7)


def test_a_death_is_told_with_its_cause_its_rung_and_the_last_lines_of_its_stack(server: Server) -> None:
    detail = {"cause": "SIGSEGV", "rung": 4, "exit_code": 7, "stack": ['  File "main.py", line 3 in f']}
    server.answer = lambda request: [failed("child_died", "the child died", detail=detail, retryable=False)]
    done = invoke("crash")
    assert done.returncode == 1
    assert done.stderr == (
        '  File "main.py", line 3 in f\n'
        "error: the child died (cause SIGSEGV, exit code 7, rung 4)\n"
        "hint: the log of `gen-worker serve` has the rest of what the child said\n"
    )


def test_a_payload_that_the_function_does_not_take_comes_with_the_command_that_shows_what_it_takes(
    server: Server,
) -> None:
    server.answer = lambda request: [failed("usage", "`echo` does not take this payload")]
    done = invoke("echo")
    assert done.stderr == (
        "error: `echo` does not take this payload\nhint: `gen-worker run --list` shows what it takes\n"
    )


@pytest.mark.parametrize(
    ("raised", "hint"),
    [("ValueError: no", "hint: it was raised at `main.py:3`\n"), ("gen_worker.api.errors.ValidationError: no", "")],
)
def test_a_refused_payload_is_told_with_the_line_only_if_that_may_be_a_bug(
    server: Server, raised: str, hint: str
) -> None:
    frames = ['  File "main.py", line 3, in f', "    g(1)", '  File "/usr/lib/python3.11/g.py", line 9, in g', "    x"]
    stack = ["Traceback (most recent call last):", *frames, raised]
    server.answer = lambda request: [failed("invalid", "no", detail={"stack": stack})]
    done = invoke("echo")
    assert (done.returncode, done.stderr) == (2, f"error: no\n{hint}")


def test_what_may_go_well_later_is_said(server: Server) -> None:
    server.answer = lambda request: [failed("retryable", "the API is slow", retryable=True)]
    assert invoke("call").stderr == "error: the API is slow\nhint: it may go well if you try again\n"


def test_what_hung_is_told_with_the_limit_and_its_post_mortem(server: Server) -> None:
    detail = {"hang": "native_wait", "hint": "the limit is this", "postmortem": "20261122-131502-cpu0-3f1c"}
    server.answer = lambda request: [failed("retryable", "it hung (native_wait)", retryable=True, detail=detail)]
    told = "hint: the limit is this; `gen-worker postmortem 20261122-131502-cpu0-3f1c` tells more\n"
    assert invoke("f").stderr == f"error: it hung (native_wait)\n{told}"


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("insufficient_vram: it declares 24 GB, the largest", "have it served where a device has more memory, or with"),
        ("missing_cuda_library: not installed here: `vllm`", "install it where the server runs, then start the server"),
        (
            "insufficient_gpus: it needs 2 GPUs in one group, and",
            "have it served with such a group, as `--devices 0+1`",
        ),
        ("cuda_unavailable: it needs a GPU", "have it served where a GPU is; `--devices cpu`"),
        ("compute_capability_unmet: it declares 9, the", "have it served where a newer GPU is\n"),
        ("setup failed; tried again in 30 s", "it may go well if you try again\n"),
        ("2 different payloads of it killed children; refused for 60 s more", "`gen-worker quarantine clear f`"),
        ("cuda:0 is retired", "it stays so until the server is started again\n"),
    ],
)
def test_what_is_unavailable_comes_with_what_helps(server: Server, reason: str, hint: str) -> None:
    server.answer = lambda request: [failed("unavailable", f"`f` is unavailable: {reason}", retryable=True)]
    assert invoke("f").stderr.startswith(f"error: `f` is unavailable: {reason}\nhint: {hint}")


def test_without_a_server_the_hint_says_how_to_start_one(folder: Path) -> None:
    done = invoke("echo", "a=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: no server at `./.gen-worker.sock`: no such file or directory\nhint: start one with `gen-worker serve`\n"
    )


@pytest.mark.parametrize("address", ["tcp://nowhere", "tcp://h:x", "http://h:1", "unix://", "tcp://h:1/path"])
def test_an_address_that_is_none_is_refused(folder: Path, address: str) -> None:
    done = invoke("echo", "--socket", address)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: `{address}` is not an address: ")
    assert done.stderr.endswith("\nhint: write `tcp://host:port`, `unix:///path` or a path\n")


def test_a_server_that_hangs_up_is_said(server: Server) -> None:
    server.answer = lambda request: [None]
    done = invoke("echo")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the server closed the connection before its answer\nhint: it ended, or ")


def test_what_is_no_answer_is_said(server: Server) -> None:
    server.answer = lambda request: [b"HTTP/1.1 400 Bad Request\r\n"]
    done = invoke("echo")
    assert done.returncode == 2
    assert "error: the server said what is no answer" in done.stderr


@pytest.mark.parametrize("number", ["1e999", "1" + "0" * 400, "-1e308"])
def test_a_progress_of_any_size_is_shown(server: Server, number: str) -> None:
    line = b'{"event": "progress", "value": {"progress": %b}}\n' % number.encode()
    server.answer = lambda request: [line, buffered(1)]
    for form in ("text", "json"):
        assert "Traceback" not in invoke("echo", "--stream", "--log-format", form).stderr


@pytest.mark.parametrize(
    "value", [b"[" * 100_000 + b"]" * 100_000, b'{"message": "\xff"}', b'{"message": "\\ud800"}'], ids=len
)
@pytest.mark.parametrize("event", ["log", "result"])
def test_odd_values_of_a_server_leave_no_traceback(server: Server, event: str, value: bytes, tmp_path: Path) -> None:
    line = b'{"event": "%b", "value": %b}\n' % (event.encode(), value)
    server.answer = lambda request: [line, {"ok": True}]
    for options in ([], ["--pretty"], ["-o", str(tmp_path / "file")]):
        command = [*GEN_WORKER, "invoke", "echo", "--stream", *options]
        assert b"Traceback" not in subprocess.run(command, capture_output=True, timeout=60).stderr


def test_a_sidecar_of_another_host_is_not_believed(folder: Path) -> None:
    Path(".gen-worker.serve.json").write_text(json.dumps({"listen": "tcp://0.0.0.0:8000", "functions": [{}]}))
    known = [bool(sidecar_of(TcpAddress(host, 8000))) for host in ("127.0.0.1", "::1", "localhost", "box", "10.0.0.1")]
    assert known == [True, True, True, False, False]


def test_after_the_timeout_the_request_is_given_up(server: Server) -> None:
    server.answer = lambda request: []
    done = invoke("echo", "--timeout", "0.1")
    assert done.returncode == 2
    assert re.fullmatch(r"error: no answer within 0.1 s; `invoke-[0-9a-f]{8}` is canceled\n", done.stderr)


def test_the_timeout_is_sent_as_the_jobs_deadline_and_its_passing_is_wrong_usage(server: Server) -> None:
    server.answer = lambda request: [failed("deadline", "deadline exceeded")]
    done = invoke("echo", "--timeout", "1.5")
    assert (done.returncode, done.stderr) == (2, "error: deadline exceeded\n")
    assert server.seen.get_nowait()["timeout_ms"] == 1500
    invoke("echo")
    assert "timeout_ms" not in server.seen.get_nowait()


def test_a_payload_that_makes_too_long_a_line_is_not_sent(server: Server, sidecar: Path) -> None:
    sidecar.write_text(json.dumps({"functions": [], "max_line_bytes": 1000} | json.loads(sidecar.read_text())))
    done = invoke("echo-it", "text=" + "x" * 1000)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the payload makes a line of 11")
    assert "the server takes 1000\nhint: big values travel over the control socket: " in done.stderr
    assert server.seen.empty()


def test_the_token_goes_to_tcp_only(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEN_WORKER_TOKEN", "sesame")
    invoke("echo", "a=1")
    assert "token" not in server.seen.get_nowait()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        remote = Server(listener)
        invoke("echo", "a=1", "--socket", f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        assert remote.seen.get_nowait()["token"] == "sesame"
        remote.close()


def test_ctrl_c_cancels_the_request_and_waits_for_its_end(server: Server) -> None:
    canceled = threading.Event()

    def answer(request: Any) -> Iterator[Any]:
        if "cancel" in request:
            canceled.set()
            yield {"ok": True, "canceled": True}
        else:
            canceled.wait(30)
            yield failed("canceled", "canceled")

    server.answer = answer  # type: ignore[assignment]
    command = [*GEN_WORKER, "invoke", "slow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        request = server.seen.get(timeout=30)
        process.send_signal(signal.SIGINT)
        assert server.seen.get(timeout=30) == {"cancel": {"request_id": request["request_id"]}}
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (130, "")
    assert stderr == "canceling; press Ctrl-C again to stop waiting\nerror: canceled\n"


def test_a_second_ctrl_c_stops_waiting(server: Server) -> None:
    server.answer = lambda request: []
    command = [*GEN_WORKER, "invoke", "slow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        server.seen.get(timeout=30)
        process.send_signal(signal.SIGINT)
        assert "cancel" in server.seen.get(timeout=30)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert re.search(r"^stopped waiting; `invoke-[0-9a-f]{8}` is still ending\n\Z", stderr, re.MULTILINE)


def test_a_second_ctrl_c_stops_waiting_although_the_server_takes_no_connection(folder: Path) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        listener.settimeout(30)
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        command = [*GEN_WORKER, "invoke", "slow", "--socket", address]
        process = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        stack.callback(process.kill)
        for _ in range(2):  # a first look whether a server is there, then the request
            connection = stack.enter_context(listener.accept()[0])
        assert connection.recv(1)
        waiting = stack.enter_context(socket.socket())  # fills the queue of those who want to connect
        waiting.connect(listener.getsockname())
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.readline() == "canceling; press Ctrl-C again to stop waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130
        assert "Traceback" not in process.stderr.read()


def test_a_control_socket_is_not_taken_for_a_server(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("control.sock")
        listener.listen()
        done = invoke("echo", "--socket", "control.sock")
    assert done.returncode == 2
    assert done.stderr.startswith("error: `control.sock` is a control socket, not one for requests\n")


def test_a_socket_with_a_long_path_can_be_reached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = folder / ("d" * 120)
    deep.mkdir()
    monkeypatch.chdir(deep)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("s.sock")
        listener.listen()
        server = Server(listener)
        monkeypatch.chdir(folder)
        assert invoke("echo", "a=1", "--socket", os.fspath(deep / "s.sock")).stdout == '{"a": 1}\n'
        server.close()
