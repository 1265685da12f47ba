"""The mock orchestrator's command: what it sends a worker, what it prints of it, and how it exits."""

import asyncio
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import blake3
import msgspec
import pytest

from gen_worker.testing.file_api import FileApi
from gen_worker.wire.scheduler import (
    EVENT_TYPE,
    Hello,
    InFlightJob,
    JobAccepted,
    JobProgress,
    JobResult,
    JobStatus,
    ModelBinding,
    ModelOp,
    ModelOpKind,
    RunJob,
    StateDelta,
)
from tests.orchestrators import Linked, Noted, begin_grpc, eventually, linked

pytestmark = pytest.mark.process

COMMAND = [sys.executable, "-m", "gen_worker.testing.mock_orchestrator", "--listen", "127.0.0.1:0"]
TIMEOUT_S = 30.0


@pytest.fixture(scope="module", autouse=True)
def _grpc_has_begun() -> None:
    begin_grpc()


class Mock:
    """A running mock; `address` is where it listens."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        assert process.stderr is not None
        self.address = process.stderr.readline().split()[-1]

    def lines(self) -> list[str]:
        """What it printed, once it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.read().splitlines()

    def errors(self) -> list[str]:
        """What it complained of, once it has ended."""
        assert self.process.stderr is not None
        return self.process.stderr.read().splitlines()

    async def code(self) -> int:
        """Wait for its exit code."""
        return await asyncio.to_thread(self.process.wait, TIMEOUT_S)


@contextmanager
def mocking(*arguments: str) -> Iterator[Mock]:
    """Run a mock until the body ends."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    with process:
        try:
            yield Mock(process)
        finally:
            process.kill()


def answering(worker: Linked, *frames: Callable[[RunJob], Any]) -> Callable[[Any], None]:
    """Answer a request with these, after what came before it."""

    def received(frame: Any) -> None:
        if isinstance(frame, RunJob):
            for each in frames:
                worker.link.send(each(frame))

    return received


def ok(run: RunJob, value: object = None, **fields: Any) -> JobResult:
    """A good end."""
    inline = None if value is None else msgspec.msgpack.encode(value)
    return JobResult(request_id=run.request_id, attempt=run.attempt, status=JobStatus.OK, inline=inline, **fields)


def progress(run: RunJob, seq: int, body: bytes, content_type: str) -> JobProgress:
    """Something on the way."""
    return JobProgress(request_id=run.request_id, attempt=run.attempt, seq=seq, body=body, content_type=content_type)


def test_a_request_goes_out_as_asked_and_its_output_is_printed() -> None:
    asked = ["--run", "echo", "--payload-json", '{"text": "hi"}', "--timeout-ms", "9000", "--tenant-id", "acme"]
    asked += ["--user-id", "u1", "--file-base-url", "http://files", "--file-token", "TOKEN"]
    asked += ["--required-model", "a/b", "--required-model", "pipe=c/d"]

    async def check() -> None:
        with mocking(*asked) as mock:
            async with linked(f"grpc://{mock.address}") as worker:
                worker.session.on_received = answering(worker, lambda run: ok(run, {"text": "hi", "raw": b"\x00"}))
                assert await mock.code() == 0
                ack, op, run = worker.session.heard[:3]
            assert ack.file_base_url == "http://files"  # type: ignore[attr-defined]
            assert op == ModelOp(op=ModelOpKind.DOWNLOAD, ref="a/b")
            assert isinstance(run, RunJob)
            assert msgspec.msgpack.decode(run.input_payload) == {"text": "hi"}
            assert (run.function_name, run.attempt, run.timeout_ms) == ("echo", 1, 9000)
            assert (run.tenant, run.invoker_id, run.capability_token) == ("acme", "u1", "TOKEN")
            assert run.models == (ModelBinding(slot="pipe", ref="c/d"),)
            lines = mock.lines()
            assert [line.split(" ")[0] for line in lines] == ["[connected]", "[sent]", "[sent]", "[output]"]
            assert "worker_id=w1" in lines[0]
            assert lines[-1] == '[output] {"text":"hi","raw":"AA=="}'
            assert "TOKEN" not in "".join(lines + mock.errors())

    asyncio.run(check())


def test_what_a_request_says_on_its_way_is_printed() -> None:
    async def check() -> None:
        with mocking("--run", "paint", "--print-events", "--print-registrations") as mock:
            async with linked(f"grpc://{mock.address}") as worker:
                worker.session.on_received = answering(
                    worker,
                    lambda run: JobAccepted(request_id=run.request_id, attempt=1),
                    lambda run: progress(run, 1, b'{"event":"progress","value":{"progress":0.5}}', EVENT_TYPE),
                    lambda run: progress(run, 2, b'{"event":"log","value":{"message":"m"}}', EVENT_TYPE),
                    lambda run: progress(run, 3, "grüße".encode(), "text/plain"),
                    lambda run: progress(run, 4, b'{"n":1}', "application/json"),
                    ok,
                )
                worker.session.on_acknowledged = lambda: worker.link.send(StateDelta(available_functions=("paint",)))
                assert await mock.code() == 0
            lines = mock.lines()
            assert json.loads(lines[0].removeprefix("[connected] "))["worker_id"] == "w1"
            assert lines[-5:] == [
                '[event] request.progress: {"progress":0.5}',
                '[event] request.log: {"message":"m"}',
                '[event] output.delta: "grüße"',
                '[event] output.delta: {"n":1}',
                "[output] null",
            ]
            assert any(line.startswith("[event] job_accepted: {") for line in lines)
            assert any(line.startswith("[event] state_delta: {") and '"paint"' in line for line in lines)

    asyncio.run(check())


def test_a_request_that_fails_is_exit_code_1() -> None:
    async def check() -> None:
        with mocking("--run", "f") as mock:
            async with linked(f"grpc://{mock.address}") as worker:
                worker.session.on_received = answering(
                    worker,
                    lambda run: JobResult(
                        request_id=run.request_id, attempt=1, status=JobStatus.INVALID, safe_message="no"
                    ),
                )
                assert await mock.code() == 1
            assert mock.errors() == ["[error] INVALID: no"]

    asyncio.run(check())


def test_without_a_worker_the_exit_code_is_2() -> None:
    with mocking("--run", "f", "--wait-s", "0.2") as mock:
        assert mock.process.wait(TIMEOUT_S) == 2
        assert mock.errors() == ["[error] no worker within 0.2 s"]


def test_without_a_result_the_exit_code_is_3() -> None:
    async def check() -> None:
        with mocking("--run", "f", "--wait-s", "1") as mock:
            async with linked(f"grpc://{mock.address}"):
                assert await mock.code() == 3
            assert mock.errors() == ["[error] no result within 5 s"]

    asyncio.run(check())


@pytest.mark.parametrize("text", ["{", "[1]", "1"])
def test_a_payload_that_is_no_object_is_told(text: str) -> None:
    done = subprocess.run(
        [*COMMAND, "--run", "f", "--payload-json", text], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("[error] --payload-json is no JSON object")
    assert "Traceback" not in done.stderr


def test_a_deadline_that_no_message_can_say_is_a_usage_error() -> None:
    for text in ("-1", str(1 << 63), "soon"):
        command = [*COMMAND, "--run", "f", "--timeout-ms", text]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert done.returncode == 2
        assert "--timeout-ms: " in done.stderr


def test_a_worker_that_comes_back_without_the_request_gets_it_as_another_attempt() -> None:
    class Returning(Noted):
        holds: tuple[InFlightJob, ...] = ()

        def hello(self) -> Hello:
            return Hello(worker_id="w1", in_flight=self.holds)

    async def check() -> None:
        session = Returning()
        with mocking("--run", "f") as mock:
            async with linked(f"grpc://{mock.address}", session=session):
                await eventually(lambda: session.runs() == [1])
            async with linked(f"grpc://{mock.address}", session=session):
                await eventually(lambda: session.runs() == [1, 2])
            (run,) = (each for each in session.heard if isinstance(each, RunJob) and each.attempt == 2)
            session.holds = (InFlightJob(request_id=run.request_id, attempt=2),)
            async with linked(f"grpc://{mock.address}", session=session) as worker:
                await eventually(lambda: worker.link.status().connected)
                worker.link.send(ok(run, 1))
                assert await mock.code() == 0
            assert session.runs() == [1, 2]

    asyncio.run(check())


def test_without_a_request_messages_are_printed_for_ever() -> None:
    async def check() -> None:
        with mocking() as mock:
            async with linked(f"grpc://{mock.address}") as worker:
                await eventually(lambda: worker.link.status().connected)
                worker.link.send(StateDelta(free_vram_bytes=7))
                await eventually(lambda: worker.session.left_frames)
            assert mock.process.stdout is not None
            printed = [await asyncio.to_thread(mock.process.stdout.readline) for _ in range(2)]
            assert printed[0].startswith("[connected] worker_id=w1")
            assert '"free_vram_bytes":7' in printed[1]
            assert mock.process.poll() is None

    asyncio.run(check())


# --- its files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FileApi]:
    with FileApi(tmp_path / "files", ("127.0.0.1", 0), token="TOKEN", tell=print) as served:
        yield served


def ask(
    api: FileApi, method: str, path: str, body: bytes | None = None, token: str = "TOKEN"
) -> tuple[int, bytes, Any]:
    """Return status, body and headers of an answer."""
    url = path if path.startswith("http") else f"{api.url}{path}"
    request = urllib.request.Request(url, body, {"Authorization": f"Bearer {token}"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def test_a_file_is_written_looked_at_and_read(api: FileApi) -> None:
    status, body, _ = ask(api, "PUT", "/api/v1/file/runs/a%20b.txt", b"hello")
    assert status == 200
    said = json.loads(body)
    assert (said["ref"], said["size_bytes"], said["mime_type"]) == ("runs/a b.txt", 5, "text/plain")
    assert ask(api, "GET", "/api/v1/file/runs/a%20b.txt")[:2] == (200, b"hello")
    status, body, headers = ask(api, "HEAD", "/api/v1/file/runs/a%20b.txt")
    assert (status, body, headers["Content-Length"]) == (200, b"", "5")
    assert ask(api, "POST", "/api/v1/file/runs/a%20b.txt", b"again")[0] == 409
    assert ask(api, "PUT", "/api/v1/file/runs/a%20b.txt", b"again")[0] == 200
    assert ask(api, "GET", "/api/v1/file/none")[0] == 404


@pytest.mark.parametrize("ref", ["../x", "%2e%2e/x", "a/%2e%2e/%2e%2e/x", "%2Fetc/passwd", "a%00b", "a%5Cb", ""])
def test_a_file_outside_of_the_folder_is_refused(api: FileApi, ref: str) -> None:
    assert ask(api, "PUT", f"/api/v1/file/{ref}", b"x")[0] in (400, 404)
    assert list(api.folder.iterdir()) == []


def test_who_does_not_have_the_token_gets_nothing(api: FileApi) -> None:
    for method in ("GET", "PUT", "POST", "HEAD"):
        assert ask(api, method, "/api/v1/file/a", b"x" if method in ("PUT", "POST") else None, "other")[0] == 401


def test_an_upload_in_parts_becomes_a_file(api: FileApi) -> None:
    content = b"picture" * 1000
    digest = blake3.blake3(content).hexdigest()
    begin = {"ref": "runs/r/p.png", "blake3": digest, "size_bytes": len(content), "request_id": "r"}
    _, body, _ = ask(api, "POST", "/api/v1/media/acme/uploads", json.dumps(begin).encode())
    upload = json.loads(body)
    assert upload["total_parts"] == len(upload["part_urls"]) == 1
    status, _, headers = ask(api, "PUT", upload["part_urls"][0], content, token="none")
    assert status == 200
    parts = json.dumps({"parts": [{"part_number": 1, "etag": headers["ETag"]}]}).encode()
    complete = f"/api/v1/media/acme/uploads/{upload['upload_id']}/complete"
    status, body, _ = ask(api, "POST", complete, parts)
    assert (status, json.loads(body)["ref"], json.loads(body)["blake3"]) == (200, "runs/r/p.png", digest)
    assert ask(api, "GET", "/api/v1/file/runs/r/p.png")[1] == content
    assert ask(api, "POST", complete, parts)[0] == 404


def test_an_upload_that_is_not_what_was_announced_is_refused(api: FileApi) -> None:
    begin = {"ref": "p", "blake3": "00" * 32, "size_bytes": 3, "request_id": "r"}
    upload = json.loads(ask(api, "POST", "/api/v1/media/acme/uploads", json.dumps(begin).encode())[1])
    etag = ask(api, "PUT", upload["part_urls"][0], b"abc")[2]["ETag"]
    complete = f"/api/v1/media/acme/uploads/{upload['upload_id']}/complete"
    for parts, status in (
        ([], 400),
        ([{"part_number": 1, "etag": "no"}], 400),
        ([{"part_number": 1, "etag": etag}], 422),
    ):
        assert ask(api, "POST", complete, json.dumps({"parts": parts}).encode())[0] == status
    assert ask(api, "DELETE", f"/api/v1/media/acme/uploads/{upload['upload_id']}")[0] == 200
    assert ask(api, "PUT", upload["part_urls"][0], b"abc")[0] == 404
    assert list(api.folder.iterdir()) == []
