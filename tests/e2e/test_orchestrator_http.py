"""The HTTP API of `gen-worker orchestrator`, with a worker that speaks the wire by hand."""

import asyncio
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import pytest
from blake3 import blake3

from gen_worker.wire.scheduler import (
    EVENT_TYPE,
    CancelJob,
    Drain,
    FnUnavailable,
    Hello,
    HelloAck,
    JobAccepted,
    JobProgress,
    JobResult,
    JobStatus,
    ModelOp,
    ModelResidency,
    ResidencyTier,
    RunJob,
    SchedulerFrame,
    StateDelta,
    WorkerFrame,
    WorkerPhase,
)
from tests.served import GEN_WORKER, until

pytestmark = pytest.mark.process

FUNCTIONS = ("blob", "echo", "fatal", "hold", "invalid", "late", "picture", "retryable", "stream")
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.document["error"]["code"])


class Plane:
    """A `gen-worker orchestrator` that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.events = list(self._until_ready())
        listening = next(each for each in self.events if each["event"] == "listening")
        self.workers: str = listening["workers"]
        self.url: str = listening["http"]

    def _until_ready(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield json.loads(line)
            if json.loads(line)["event"] == "ready":
                return
        raise AssertionError(f"it ended with {self.process.wait()}")

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=20)

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request; what is not bytes goes as JSON."""
        path = path.removeprefix(self.url)
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = self.connection()
        try:
            connection.request(method, path, sent, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def run(self, function: str, payload: Any = None, query: str = "", **headers: str) -> Answer:
        return self.ask("POST", f"/v1/run/{function}{query}", payload or {}, headers)

    def submit(self, function: str, **fields: Any) -> Answer:
        return self.ask("POST", "/v1/jobs", {"function": function, **fields})


@contextmanager
def orchestrator(folder: Path, *arguments: str, by: Sequence[str] = (), **variables: str) -> Iterator[Plane]:
    """Run a control plane, started by another command where one is named, until the body ends."""
    ports = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            [*by, *GEN_WORKER, "orchestrator", "--json", "--state", str(folder / "state"), *ports, *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=folder,
            env={**os.environ, **variables},
        ) as process,
    ):
        try:
            yield Plane(process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert "Traceback" not in (folder / "log").read_text(), (folder / "log").read_text()


class Worker:
    """A worker that does what a job's function is called, on a thread of its own."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.heard: list[SchedulerFrame] = []
        self.ack: HelloAck | None = None
        self.deaf = False
        self._held: dict[str, asyncio.Event] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        until(lambda: self.ack)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)
        self._loop.close()

    def release(self) -> None:
        """Let every job end that is held."""
        for event in list(self._held.values()):
            self._loop.call_soon_threadsafe(event.set)

    async def _serve(self) -> None:
        from tests.orchestrated import FakeWorker, stream

        current = asyncio.current_task()
        assert current is not None
        self._task = current
        with suppress(asyncio.CancelledError):
            async with stream(self.plane.workers) as call:
                worker = FakeWorker(call, "w1")
                state = StateDelta(phase=WorkerPhase.READY, available_functions=FUNCTIONS, loading_functions=("later",))
                models = (ModelResidency(ref="acme/tiny", tier=ResidencyTier.DISK),)
                await worker.say(Hello(worker_id="w1", state=state, models=models))
                self.ack = await worker.hear_a(HelloAck)
                await worker.say(FnUnavailable(function_name="gated", reason="cuda_unavailable"))
                jobs = set()
                while True:
                    packet = await call.read()
                    frame = self._decoded(packet)
                    self.heard.append(frame)
                    if isinstance(frame, RunJob):
                        jobs.add(asyncio.ensure_future(self._run(worker.say, frame)))
                    elif isinstance(frame, CancelJob) and frame.request_id in self._held and not self.deaf:
                        self._held.pop(frame.request_id).set()

    @staticmethod
    def _decoded(packet: Any) -> SchedulerFrame:
        from gen_worker.pb.convert import decode_scheduler

        frame = decode_scheduler(packet)
        assert frame is not None
        return frame

    async def _run(self, say: Callable[..., Any], run: RunJob) -> None:
        key: dict[str, Any] = {"request_id": run.request_id, "attempt": run.attempt}
        await say(JobAccepted(**key))
        payload = msgspec.msgpack.decode(run.input_payload)

        async def end(status: JobStatus = JobStatus.OK, output: Any = None, **fields: Any) -> None:
            inline = None if output is None else msgspec.msgpack.encode(output)
            await say(JobResult(**key, status=status, inline=inline, **fields))

        match run.function_name:
            case "echo":
                await end(output=payload)
            case "hold":
                body = b'{"event":"progress","value":{"progress":0.5}}'
                await say(JobProgress(**key, seq=1, body=body, content_type=EVENT_TYPE))
                self._held[run.request_id] = asyncio.Event()
                await self._held[run.request_id].wait()
                if run.request_id in self._held:
                    await end(output={"held": True})
                else:
                    await end(JobStatus.CANCELED, safe_message="canceled")
            case "invalid" | "fatal" | "retryable":
                await end(JobStatus[run.function_name.upper()], safe_message=f"it was {run.function_name}")
            case "late":
                await end(JobStatus.FATAL, safe_message="deadline exceeded")
            case "stream":
                for frame in self._stream(key):
                    await say(frame)
                await end()
            case "picture":
                asset = await asyncio.to_thread(self._upload, run, "outputs/cat.png", PNG)
                await end(output={"image": {"ref": asset["ref"], "mime_type": "image/png"}})
            case "blob":
                output = msgspec.msgpack.encode({"text": "x" * 100_000})
                asset = await asyncio.to_thread(self._upload, run, f"results/{run.request_id}.msgpack", output)
                await end(blob_ref=asset["ref"])

    @staticmethod
    def _stream(key: dict[str, Any]) -> Iterator[WorkerFrame]:
        bodies = [
            (b"hello", "text/plain"),
            (b'{"n":1}', "application/json"),
            (msgspec.msgpack.encode({"index": 2, "chunk": b"\0"}), "application/x-batch-item+msgpack"),
        ]
        for seq, (body, kind) in enumerate(bodies, 1):
            yield JobProgress(**key, seq=seq, body=body, content_type=kind)

    def _upload(self, run: RunJob, ref: str, content: bytes) -> Any:
        ask, auth = self.plane.ask, {"Authorization": f"Bearer {run.capability_token}"}
        where = "/api/v1/media/_/uploads"
        asked = {"ref": ref, "blake3": blake3(content).hexdigest(), "size_bytes": len(content)}
        begun = ask("POST", where, asked, auth).document
        if begun.get("dedup"):
            return begun
        put = ask("PUT", begun["part_urls"][0], content)
        parts = {"parts": [{"part_number": 1, "etag": put.headers["etag"]}]}
        return ask("POST", f"{where}/{begun['upload_id']}/complete", parts, auth).document


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    folder = tmp_path_factory.mktemp("plane")
    (folder / "tiny").mkdir()
    (folder / "tiny" / "weights.safetensors").write_bytes(PNG)
    with orchestrator(folder, "--model", f"acme/tiny={folder / 'tiny'}") as running:
        yield running


@pytest.fixture(scope="module")
def worker(plane: Plane) -> Iterator[Worker]:
    connected = Worker(plane)
    yield connected
    connected.close()


@pytest.fixture(autouse=True)
def _awake(worker: Worker) -> None:
    """Have the worker there before a test's descriptors are counted."""


# --- outcomes ---------------------------------------------------------------------------------------------------------


def test_a_function_is_run_and_its_output_is_the_answer(plane: Plane) -> None:
    answer = plane.run("echo", {"text": "hi", "numbers": [1, 2.5, None]})
    assert (answer.status, answer.document) == (200, {"text": "hi", "numbers": [1, 2.5, None]})
    assert plane.ask("GET", f"/v1/jobs/{answer.headers['x-request-id']}").document["status"] == "ok"


@pytest.mark.parametrize(
    ("function", "status", "code"),
    [
        ("invalid", 400, "invalid"),
        ("gated", 424, "unavailable"),
        ("fatal", 500, "fatal"),
        ("retryable", 503, "retryable"),
        ("late", 504, "deadline"),
    ],
)
def test_an_outcome_is_the_status_of_the_answer(plane: Plane, function: str, status: int, code: str) -> None:
    answer = plane.run(function)
    assert (answer.status, answer.code) == (status, code)
    error = answer.document["error"]
    assert error["message"]
    assert error["attempt"] == (4 if function == "retryable" else 1)
    known = plane.ask("GET", f"/v1/jobs/{error['request_id']}")
    assert known.status == 200
    assert known.document["error"] == error


def test_a_function_that_no_worker_has_is_not_waited_for_but_a_job_may_wait(plane: Plane) -> None:
    answer = plane.run("ecko")
    assert (answer.status, answer.code) == (404, "no_function")
    assert answer.document["error"]["hint"] == "did you mean `echo`?"
    assert plane.run("Echo").status == 200
    assert plane.submit("ecko", request_id="waits").document["status"] == "queued"
    assert plane.ask("DELETE", "/v1/jobs/waits").status == 200


def test_a_job_that_is_canceled_ends_with_499(plane: Plane, worker: Worker) -> None:
    submitted = plane.submit("hold").document["request_id"]
    until(lambda: plane.ask("GET", f"/v1/jobs/{submitted}").document["status"] == "running")
    assert plane.ask("DELETE", f"/v1/jobs/{submitted}").status in (200, 202)  # it may have ended by then
    ended = plane.ask("GET", f"/v1/jobs/{submitted}?wait=10").document
    assert (ended["status"], ended["error"]["code"]) == ("canceled", "canceled")
    again = plane.ask("POST", "/v1/jobs", {"function": "hold", "request_id": submitted, "wait": 5})
    assert (again.status, again.code) == (499, "canceled")


def test_a_caller_that_hangs_up_cancels_a_job_that_it_did_not_name(plane: Plane) -> None:
    connection = plane.connection()
    connection.request("POST", "/v1/run/hold", b"{}")
    running = "/v1/jobs?status=running"
    jobs = until(lambda: plane.ask("GET", running).document["jobs"])
    connection.close()
    until(lambda: plane.ask("GET", f"/v1/jobs/{jobs[0]['request_id']}").document["status"] == "canceled")


def test_a_job_that_its_caller_has_named_goes_on_without_it(plane: Plane, worker: Worker) -> None:
    connection = plane.connection()
    connection.request("POST", "/v1/run/hold?request_id=named-1", b"{}")
    until(lambda: plane.ask("GET", "/v1/jobs/named-1").document.get("status") == "running")
    connection.close()
    waited = plane.run("hold", query="?request_id=named-1&wait=0.3")
    assert (waited.status, waited.document["status"]) == (202, "running")
    worker.release()
    assert plane.run("hold", query="?request_id=named-1").document == {"held": True}


def test_waiting_ends_when_the_time_is_over(plane: Plane, worker: Worker) -> None:
    begun = time.monotonic()
    answer = plane.ask("POST", "/v1/jobs", {"function": "hold", "wait": 0.2})
    assert (answer.status, answer.document["status"]) == (202, "running")
    assert time.monotonic() - begun < 5
    assert plane.ask("GET", f"{answer.headers['location']}?wait=0.1").document["status"] == "running"
    preferred = plane.ask("POST", "/v1/jobs", {"function": "echo"}, {"Prefer": "wait=10"})
    assert (preferred.status, preferred.document["output"]) == (200, {})
    worker.release()


def test_the_same_request_again_is_the_same_job_and_another_one_conflicts(plane: Plane) -> None:
    first = plane.submit("echo", request_id="once", payload={"n": 1}, wait=10)
    again = plane.submit("echo", request_id="once", payload={"n": 1}, wait=10)
    assert first.document == again.document
    other = plane.submit("echo", request_id="once", payload={"n": 2})
    assert (other.status, other.code) == (409, "conflict")


def test_one_more_than_may_wait_is_told_to_come_back(tmp_path: Path) -> None:
    with orchestrator(tmp_path, GEN_WORKER_MAX_QUEUED="2") as full:
        assert [full.submit("nobody").status for _ in range(3)] == [202, 202, 429]
        refused = full.submit("nobody")
        assert (refused.code, refused.headers["retry-after"]) == ("queue_full", "1")


def test_what_was_accepted_is_there_after_a_kill(tmp_path: Path) -> None:
    with orchestrator(tmp_path) as first:
        accepted = first.submit("echo", payload={"n": 1}).document["request_id"]
        first.process.kill()
        first.process.wait()
    with orchestrator(tmp_path) as second:
        assert second.ask("GET", f"/v1/jobs/{accepted}").document["status"] == "queued"
        doing = Worker(second)
        assert second.ask("GET", f"/v1/jobs/{accepted}?wait=10").document["output"] == {"n": 1}
        doing.close()


# --- streams ----------------------------------------------------------------------------------------------------------


def events_of(answer: Answer) -> list[tuple[str, int, Any]]:
    found = []
    for block in answer.body.decode().strip().split("\n\n"):
        lines = dict(line.partition(": ")[::2] for line in block.splitlines())
        found.append((lines["event"], int(lines["id"]), json.loads(lines["data"])))
    return found


def test_a_stream_comes_as_events_and_is_resumed_after_the_last_one_seen(plane: Plane) -> None:
    answer = plane.run("stream", Accept="text/event-stream")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer)
    chunks = [data["value"] for name, _, data in events if name == "chunk"]
    assert chunks == ["hello", {"n": 1}, {"index": 2, "chunk": "AA=="}]
    assert events[-1][0] == "result"
    assert events[-1][2]["status"] == "ok"
    assert events[0][0] == "accepted"
    where = f"/v1/jobs/{answer.headers['x-request-id']}/events"
    again = events_of(plane.ask("GET", where))
    numbered = [(name, number) for name, number, _ in events if name != "progress"]
    assert [(name, number) for name, number, _ in again] == numbered
    seen = next(number for name, number, _ in events if name == "chunk")
    resumed = events_of(plane.ask("GET", where, headers={"Last-Event-ID": str(seen)}))
    assert [(name, number) for name, number, _ in resumed] == [each for each in numbered if each[1] > seen]


def test_progress_is_seen_while_a_job_runs(plane: Plane, worker: Worker) -> None:
    held = plane.submit("hold").document["request_id"]
    connection = plane.connection()
    connection.request("GET", f"/v1/jobs/{held}/events")
    response = connection.getresponse()
    while response.readline().strip() != b"event: progress":
        pass
    response.readline()
    assert json.loads(response.readline().partition(b":")[2])["value"] == {"progress": 0.5}
    assert plane.ask("GET", f"/v1/jobs/{held}").document["progress"] == {"progress": 0.5}
    worker.release()
    assert b"event: result" in response.read()
    connection.close()


def test_the_items_of_a_stream_are_a_list_where_nobody_asks_for_events(plane: Plane) -> None:
    assert plane.run("stream").document == ["hello", {"n": 1}, {"index": 2, "chunk": "AA=="}]


def test_an_output_that_is_too_long_for_a_message_comes_from_the_store(plane: Plane) -> None:
    assert plane.run("blob").document == {"text": "x" * 100_000}


def test_a_payload_may_be_msgpack_that_nobody_reads_on_the_way(plane: Plane) -> None:
    sent = msgspec.msgpack.encode({"n": 1, "raw": b"\0\1"})
    answer = plane.ask("POST", "/v1/run/echo", sent, {"Content-Type": "application/msgpack"})
    assert answer.document == {"n": 1, "raw": "AAE="}


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_saved_file_comes_with_a_url_that_needs_nothing_else(plane: Plane) -> None:
    image = plane.run("picture").document["image"]
    got = plane.ask("GET", image["url"])
    assert (got.status, got.body, got.headers["content-type"]) == (200, PNG, "image/png")
    part = plane.ask("GET", image["url"], headers={"Range": "bytes=1-3"})
    assert (part.status, part.body, part.headers["content-range"]) == (206, b"PNG", f"bytes 1-3/{len(PNG)}")
    assert plane.ask("GET", image["url"], headers={"Range": "bytes=-2"}).body == PNG[-2:]
    assert plane.ask("GET", image["url"], headers={"Range": f"bytes={len(PNG)}-"}).status == 416
    other = {"Range": "bytes=1-3", "If-Range": '"another"'}
    assert plane.ask("GET", image["url"], headers=other).body == PNG
    head = plane.ask("HEAD", image["url"])
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(PNG)), b"")


def test_a_picture_is_the_answer_where_a_picture_is_asked_for(plane: Plane) -> None:
    answer = plane.run("picture", Accept="image/*")
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "image/png", PNG)
    other = plane.run("picture", Accept="video/mp4")
    assert (other.status, other.code) == (406, "not_acceptable")


@pytest.mark.parametrize(
    "tamper",
    [
        lambda url: url.replace("cat.png", "dog.png"),
        lambda url: url.replace("signature=", "signature=A"),
        lambda url: url.partition("?")[0],
        lambda url: url.replace("expires=", "expires=9"),
        lambda url: url.replace("/v1/outputs/", "/v1/outputs/../outputs/"),
    ],
)
def test_a_url_that_was_changed_is_refused(plane: Plane, tamper: Callable[[str], str]) -> None:
    url = plane.run("picture").document["image"]["url"]
    assert plane.ask("GET", tamper(url)).status in (403, 404)
    assert plane.ask("PUT", url, b"mine").status in (403, 404, 405)


def test_a_callers_file_is_named_by_the_url_that_it_gets(plane: Plane) -> None:
    stored = plane.ask("PUT", "/v1/files/in/cat.png", PNG)
    assert (stored.status, stored.document["mime_type"]) == (201, "image/png")
    assert plane.ask("GET", stored.document["url"]).body == PNG
    assert plane.ask("GET", "/v1/files/in/cat.png").status == 403


@pytest.mark.parametrize(
    "name", ["..%2f..%2fetc%2fpasswd", "a/../../b", "%00", "a%5cb", "x" * 300, "", "%2e%2e/b", "a%0ab"]
)
def test_a_name_that_leads_elsewhere_is_refused(plane: Plane, name: str) -> None:
    assert plane.ask("PUT", f"/v1/files/{name}", b"x").status in (400, 404)


def test_models_are_had_by_signed_urls_only(plane: Plane, worker: Worker) -> None:
    assert plane.ask("POST", "/v1/models", {"op": "load", "ref": "acme/tiny", "worker_id": "w1"}).status == 202
    order = until(lambda: next((each for each in worker.heard if isinstance(each, ModelOp)), None))
    assert order is not None
    assert order.snapshot is not None
    (file,) = order.snapshot.files
    assert plane.ask("GET", file.url).body == PNG
    assert plane.ask("GET", file.url.partition("?")[0]).status == 403
    listed = plane.ask("GET", "/v1/models").document["models"]
    assert [(each["ref"], each["digest"]) for each in listed] == [("acme/tiny", order.snapshot.digest)]


def test_a_job_stores_files_with_its_token_while_its_attempt_counts(plane: Plane, worker: Worker) -> None:
    held = plane.submit("hold").document["request_id"]
    run = until(lambda: next((each for each in worker.heard if getattr(each, "request_id", "") == held), None))
    assert isinstance(run, RunJob)
    asked = {"ref": "a", "blake3": blake3(b"abc").hexdigest(), "size_bytes": 3}
    where, token = "/api/v1/media/_/uploads", run.capability_token

    def create(shown: str, **changed: Any) -> Answer:
        return plane.ask("POST", where, asked | changed, {"Authorization": f"Bearer {shown}"})

    assert create(token[:-2]).status == 401
    assert create(token, ref="../x").status == 400
    assert create(token, size_bytes=0).status == 400
    assert create(token, size_bytes=1 << 50).status == 413
    begun = create(token)
    assert begun.status == 200
    wrong = plane.ask("PUT", begun.document["part_urls"][0], b"abd")
    parts = {"parts": [{"part_number": 1, "etag": wrong.headers["etag"]}]}
    shown = {"Authorization": f"Bearer {token}"}
    assert plane.ask("POST", f"{where}/{begun.document['upload_id']}/complete", parts, shown).status == 422
    worker.release()
    plane.ask("GET", f"/v1/jobs/{held}?wait=10")
    late = create(token)
    assert (late.status, late.code) == (409, "stale_attempt")


# --- workers ----------------------------------------------------------------------------------------------------------


def test_workers_and_what_they_offer_are_shown(plane: Plane) -> None:
    (shown,) = plane.ask("GET", "/v1/workers").document["workers"]
    assert (shown["worker_id"], shown["connected"], shown["models"][0]["tier"]) == ("w1", True, "disk")
    functions = {each["name"]: each for each in plane.ask("GET", "/v1/functions").document["functions"]}
    assert functions["echo"]["available"] == ["w1"]
    assert functions["echo"]["input_schema"] is None
    assert functions["later"]["loading"] == ["w1"]
    assert "cuda_unavailable" in functions["gated"]["unavailable"]["w1"]


def test_a_worker_is_drained_by_its_name(tmp_path: Path) -> None:
    with orchestrator(tmp_path) as own:
        doing = Worker(own)
        assert own.ask("POST", "/v1/workers/w1/drain", {"deadline_ms": 1000}).status == 202
        until(lambda: [each for each in doing.heard if isinstance(each, Drain)])
        assert own.ask("POST", "/v1/workers/nobody/drain").status == 404
        doing.close()


def test_jobs_are_listed_page_by_page(plane: Plane) -> None:
    for at in range(3):
        plane.submit("echo", request_id=f"page-{at}", wait=10)
    first = plane.ask("GET", "/v1/jobs?limit=2&status=ok").document
    assert [each["request_id"] for each in first["jobs"]] == ["page-2", "page-1"]
    assert "output" not in first["jobs"][0]
    second = plane.ask("GET", f"/v1/jobs?limit=2&status=ok&after={first['next']}").document
    assert second["jobs"][0]["request_id"] == "page-0"


def test_a_burst_of_connections_takes_no_descriptor_that_is_not_there_and_fills_no_log(tmp_path: Path) -> None:
    with orchestrator(tmp_path, by=["prlimit", "--nofile=640:640"]) as plane, ExitStack() as stack:
        told = (tmp_path / "log").read_text()
        plane.process.send_signal(signal.SIGSTOP)
        for _ in range(800):
            each = stack.enter_context(socket.socket())
            each.setblocking(False)
            with suppress(BlockingIOError):
                each.connect((urlsplit(plane.url).hostname, urlsplit(plane.url).port))
        plane.process.send_signal(signal.SIGCONT)
        assert plane.ask("GET", "/health").status == 200
        assert (tmp_path / "log").read_text() == told


# --- who may ask ------------------------------------------------------------------------------------------------------


def test_with_a_token_set_nobody_asks_without_it(tmp_path: Path) -> None:
    with orchestrator(tmp_path, GEN_WORKER_ORCHESTRATOR_TOKEN="open-sesame") as guarded:
        for shown in ({}, {"Authorization": "Bearer open"}, {"Authorization": "Basic open-sesame"}):
            refused = guarded.ask("GET", "/v1/jobs", headers=shown)
            assert (refused.status, refused.code) == (401, "unauthorized")
        assert guarded.ask("GET", "/v1/jobs", headers={"Authorization": "Bearer open-sesame"}).status == 200
        assert guarded.ask("PUT", "/v1/files/a", b"x").status == 401
        asked = {"ref": "a", "blake3": blake3(b"abc").hexdigest(), "size_bytes": 3}
        assert guarded.ask("POST", "/api/v1/media/_/uploads", asked).status == 401
        assert guarded.ask("GET", "/health").status == guarded.ask("GET", "/ready").status == 200
        assert "open-sesame" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Host": "evil.example", "Origin": "null"}],
)
def test_a_page_of_another_site_cannot_use_a_browser_here(plane: Plane, headers: dict[str, str]) -> None:
    assert plane.ask("POST", "/v1/run/echo", b"{}", headers).status == 403


def test_its_secrets_are_hidden_from_processes_of_the_same_user(tmp_path: Path) -> None:
    common = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []
    secrets = {"GEN_WORKER_ORCHESTRATOR_TOKEN": "open-sesame", "HF_TOKEN": "hf_secret_of_mine"}
    with orchestrator(tmp_path, by=common, **secrets) as guarded:
        place = f"/proc/{guarded.process.pid}"
        for each in ("environ", "mem", "fd/1"):
            asked = subprocess.run([*common, "head", "-c1", f"{place}/{each}"], capture_output=True, text=True)
            assert "Permission denied" in asked.stderr, (each, asked)
        with suppress(PermissionError):
            environ = Path(place, "environ").read_bytes()
            assert not [value for value in secrets.values() if value.encode() in environ]


def test_its_state_is_for_its_owner_only(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o755)
    with orchestrator(tmp_path) as running:
        running.ask("PUT", "/v1/files/a", b"x")
        running.submit("echo")
        left = [each for each in (tmp_path / "state").rglob("*") if each.lstat().st_mode & 0o077]
    assert left == []


# --- what is no request -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/run/echo", b"not json", 400),
        ("/v1/run/echo", b"[]", 400),
        ("/v1/run/echo", b'{"n": 1e999999}', 400),
        ("/v1/run/echo", b'{"n": 99999999999999999999999}', 400),
        ("/v1/run/echo", b'{"s": "\xff"}', 400),
        ("/v1/run/echo", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
        ("/v1/run/echo", b'{"a":[' + b"[]," * 300_000 + b"1]}", 413),
        ("/v1/run/echo", b'{"a":"' + b"x" * (17 << 20) + b'"}', 413),
        ("/v1/run/echo?wait=-1", b"{}", 400),
        ("/v1/run/echo?wait=nan", b"{}", 400),
        ("/v1/run/echo?timeout_ms=x", b"{}", 400),
        ("/v1/run/echo?request_id=a/b", b"{}", 400),
        ("/v1/run/echo?request_id=..", b"{}", 400),
        ("/v1/run/echo?colour=red", b"{}", 400),
        ("/v1/jobs", b"{}", 400),
        ("/v1/jobs", b'{"function": 1}', 400),
        ("/v1/jobs", b'{"function": "echo", "request_id": "."}', 400),
        ("/v1/jobs", b'{"function": "echo", "payload": 1}', 400),
        ("/v1/jobs", b'{"function": "echo", "timeout": 1}', 400),
        ("/v1/jobs", b'{"function": "echo", "timeout_ms": -1}', 400),
        ("/v1/workers/w1/drain", b'{"deadline_ms": 9223372036854775808}', 400),
        ("/v1/workers/w1/drain", b'{"deadline_ms": -1}', 400),
        ("/v1/models", b'{"op": "explode", "ref": "a", "worker_id": "w"}', 400),
        ("/v1/models", b'{"op": "load", "ref": "a", "worker_id": "w"}', 404),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_request_is_refused_with_its_reason(plane: Plane, path: str, body: bytes, status: int) -> None:
    answer = plane.ask("POST", path, body)
    assert answer.status == status
    assert answer.document["error"]["message"]


def test_a_body_that_says_it_is_too_long_is_refused_before_it_comes(plane: Plane) -> None:
    connection = plane.connection()
    connection.putrequest("POST", "/v1/run/echo")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


PIECES = [b"GET ", b"POST ", b"/v1/run/echo", b"/v1/jobs", b" HTTP/1.1\r\n", b"Content-Length: ", b"99", b"-1", b"\r\n"]
PIECES += [
    b"Host: x\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"\r\n\r\n",
    b"\0",
    b"\xff" * 9,
    b"{",
    b"}",
    b"zz\r\n",
    b"%",
]


def test_ten_thousand_malformed_requests_leave_it_as_it_was(plane: Plane) -> None:
    host, _, port = urlsplit(plane.url).netloc.partition(":")

    def throw(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(25):
            with socket.create_connection((host, int(port)), 10) as connection:
                connection.settimeout(0.002)
                thrown = b"".join(b"".join(chance.choices(PIECES, k=8)) for _ in range(10))
                with suppress(OSError):
                    connection.sendall(thrown)
                with suppress(OSError):
                    connection.recv(4096)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(throw, range(40)))
    assert plane.run("echo", {"n": 1}).document == {"n": 1}


def test_the_api_says_what_there_is_and_what_a_path_is_for(plane: Plane) -> None:
    shown = plane.ask("GET", "/").document["requests"]
    assert {"POST /v1/run/{function}", "GET /v1/functions", "PUT /v1/files/{name}", "GET /ready"} <= {*shown}
    nothing = plane.ask("GET", "/v1/runs")
    assert (nothing.status, nothing.document["error"]["hint"]) == (404, "`GET /` says what there is")
    wrong = plane.ask("GET", "/v1/run/echo")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    assert wrong.document["error"]["message"] == "`GET` is not for this path, `POST` is"
    assert plane.ask("PUT", "/v1/jobs").headers["allow"] == "GET, POST"


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/files"), ("PUT", "/v1/files"), ("POST", "/v1/files/"), ("PUT", "/v1/files/")]
)
def test_a_file_without_a_name_is_refused_with_how_it_is_sent(plane: Plane, method: str, path: str) -> None:
    answer = plane.ask(method, path, b"content")
    assert (answer.status, answer.code) == (400, "bad_name")
    assert answer.document["error"]["message"] == "a file has a name"
    assert "PUT /v1/files/NAME" in answer.document["error"]["hint"]


def test_a_job_whose_end_was_asked_for_says_so_until_it_ends(tmp_path: Path) -> None:
    from tests.orchestrated import PATIENCE_S

    with orchestrator(tmp_path) as plane:
        worker = Worker(plane)
        try:
            worker.deaf = True
            submitted = plane.submit("hold").document["request_id"]
            until(lambda: plane.ask("GET", f"/v1/jobs/{submitted}").document.get("progress"), PATIENCE_S)
            assert "canceling" not in plane.ask("GET", f"/v1/jobs/{submitted}").document
            assert plane.ask("DELETE", f"/v1/jobs/{submitted}").document["canceling"] is True
            assert plane.ask("GET", f"/v1/jobs/{submitted}").document["canceling"] is True
            worker.release()
            until(lambda: plane.ask("GET", f"/v1/jobs/{submitted}").document["status"] == "ok", PATIENCE_S)
            assert "canceling" not in plane.ask("GET", f"/v1/jobs/{submitted}").document
        finally:
            worker.close()


@pytest.mark.parametrize(
    ("query", "message", "hint"),
    [
        ("timeout_ms=-1", "`timeout_ms` is a number of milliseconds, 0 or more", None),
        ("priority=99999999999", "`priority` is a number from -2147483648 to 2147483648", None),
        ("wait=x", "`wait` is wrong: expected `float`, got `str`", "a number of seconds"),
        ("output=foo", "`output` is wrong: invalid enum value 'foo'", "`url` or `inline`"),
    ],
)
def test_a_query_is_refused_with_the_one_thing_that_is_wrong(
    plane: Plane, worker: Worker, query: str, message: str, hint: str | None
) -> None:
    answer = plane.run("echo", query=f"?{query}")
    assert (answer.status, answer.code) == (400, "bad_request")
    assert answer.document["error"]["message"] == message
    assert answer.document["error"].get("hint") == hint


def test_a_query_with_an_unknown_name_is_told_which_there_are(plane: Plane, worker: Worker) -> None:
    error = plane.run("echo", query="?waits=1").document["error"]
    assert error["message"] == "the query is not understood: object contains unknown field `waits`"
    assert "`wait`" in error["hint"]


def test_a_callers_file_can_be_removed(plane: Plane) -> None:
    url = plane.ask("PUT", "/v1/files/notes/first.txt", b"content").document["url"]
    assert plane.ask("GET", url).body == b"content"
    assert plane.ask("DELETE", "/v1/files/notes/first.txt").status == 204
    assert plane.ask("GET", url).status == 404
    again = plane.ask("DELETE", "/v1/files/notes/first.txt")
    assert (again.status, again.document["error"]["message"]) == (404, "there is no file `notes/first.txt`")
