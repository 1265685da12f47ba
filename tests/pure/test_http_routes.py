"""What probes are told, whatever the supervisor does."""

import asyncio
import json
import time
from typing import Any, NamedTuple

import msgspec
import pytest
from starlette.types import Message

from gen_worker.http.app import app_of, shortened, unready
from gen_worker.http.connections import most_connections
from gen_worker.http.view import STALE_S, Document, View
from gen_worker.rundir import SupervisorUnreachable
from gen_worker.wire.status import DeviceStatus, JobStatus, Status

DEVICE = DeviceStatus(0, "GPU-1", "cuda:0", 7, "idle")
HUNG = DeviceStatus(0, "GPU-1", "cuda:0", 7, "hung")
READY = Status(ts=0.0, host="h", version="0.1.0", pid=1, uptime_s=1.0, gpus=[DEVICE], ready=True)
UNREADY = msgspec.structs.replace(READY, gpus=[HUNG], ready=False)
QUEUE = [
    JobStatus("running", "paint", "running"),
    *(JobStatus(f"p{position}", "paint", "queued", position=position) for position in (1, 2, 3)),
    *(JobStatus(f"e{position}", "echo", "queued", position=position) for position in (1, 2)),
]


class Told:
    """A supervisor that has told this, or nothing."""

    def __init__(self, status: Status | None) -> None:
        self.latest = None if status is None else Document(msgspec.json.encode(status), time.monotonic())

    async def fresh(self, jobs: int) -> Document:
        if self.latest is None or jobs not in (0, 200):
            raise SupervisorUnreachable("the supervisor does not answer within 3 s")
        return self.latest


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(status: Status | None, target: str, method: str = "GET") -> Answer:
    """Return the answer of the routes over what a supervisor has told."""
    path, _, query = target.partition("?")
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [],
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
    }
    asyncio.run(app_of(Told(status))(scope, receive, send))
    headers = {name.decode(): text.decode() for name, text in sent[0]["headers"]}
    return Answer(sent[0]["status"], headers, b"".join(each["body"] for each in sent[1:]))


def test_a_supervisor_that_tells_how_it_is_is_healthy_whatever_its_gpus_do() -> None:
    assert [ask(status, "/health").status for status in (READY, UNREADY)] == [200, 200]


@pytest.mark.parametrize("path", ["/health", "/ready", "/status", "/metrics"])
def test_a_silent_supervisor_fails_every_probe(path: str) -> None:
    answer = ask(None, path)
    assert (answer.status, answer.json()["error"]["code"]) == (503, "unavailable")


def test_the_probe_of_cog_is_always_answered_with_200() -> None:
    told = [ask(status, "/health-check") for status in (READY, UNREADY, None)]
    assert [each.status for each in told] == [200, 200, 200]
    assert [each.json()["status"] for each in told] == ["READY", "STARTING", "UNHEALTHY"]


def test_who_takes_no_jobs_is_not_ready_and_says_why() -> None:
    assert (ask(READY, "/ready").status, ask(READY, "/ready").json()) == (200, {"ready": True})
    answer = ask(UNREADY, "/ready")
    assert (answer.status, answer.json()) == (503, {"ready": False, "reason": "no child takes jobs: cuda:0: hung"})


def test_a_drain_is_a_reason_not_to_be_ready() -> None:
    draining = msgspec.structs.replace(UNREADY, draining=True)
    assert unready(draining) == "it drains: it takes no more jobs"
    drained = msgspec.structs.replace(UNREADY, gpus=[msgspec.structs.replace(DEVICE, drained=True)])
    assert unready(drained) == "no child takes jobs: cuda:0 is drained"


def test_the_status_document_is_given_as_the_supervisor_wrote_it() -> None:
    answer = ask(READY, "/status")
    assert (answer.status, answer.body) == (200, msgspec.json.encode(READY))
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"


def test_fewer_waiting_jobs_are_listed_where_fewer_are_asked_for() -> None:
    full = msgspec.structs.replace(READY, jobs=QUEUE, jobs_left_out=5)
    found = shortened(full, 1)
    assert ([job.id for job in found.jobs], found.jobs_left_out) == (["running", "p1", "e1"], 8)
    assert [job.id for job in shortened(full, 0).jobs] == ["running"]
    assert len(ask(full, "/status?jobs=2").json()["jobs"]) == 5
    assert ask(full, "/status?jobs=9999").body == msgspec.json.encode(full)


@pytest.mark.parametrize("jobs", ["-1", "many", "1e9", "9" * 40, "٣"])
def test_a_number_of_jobs_that_is_none_is_refused(jobs: str) -> None:
    assert ask(READY, f"/status?jobs={jobs}").status == 400


def test_a_reader_of_metrics_gets_text() -> None:
    answer = ask(READY, "/metrics")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b"genworker_ready 1.0\n" in answer.body


@pytest.mark.parametrize("path", ["/health", "/ready", "/status", "/metrics", "/health-check"])
def test_everything_is_only_read(path: str) -> None:
    assert ask(READY, path, "HEAD").status == 200
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = ask(READY, path, method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
        assert answer.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/", "/health/", "/nothing", "/status/../health", "/%2e%2e/etc/passwd"])
def test_nothing_else_is_there(path: str) -> None:
    assert (ask(READY, path).status, ask(READY, path).json()["error"]["code"]) == (404, "not_found")


def test_a_document_that_is_old_does_not_count() -> None:
    view = View("nowhere")
    view._latest = Document(b"{}", time.monotonic() - STALE_S - 0.1)
    assert view.latest is None
    view._latest = Document(b"{}", time.monotonic())
    assert view.latest is not None


@pytest.mark.parametrize(("descriptors", "connections"), [(1 << 20, 256), (512, 256), (480, 224), (64, 8)])
def test_no_more_connections_are_held_than_there_are_descriptors_for(descriptors: int, connections: int) -> None:
    assert most_connections(256, descriptors) == connections
