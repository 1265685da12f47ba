"""Files that jobs of an orchestrator save, when the store or a process lets them down."""

import base64
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gen_worker.testing import LoopbackStore, Stall, Status
from tests.scripted.entrypoint import Driven, driven
from tests.scripted.orchestrator import CANCELED, FATAL, INVALID, OK, RETRYABLE, Asked
from tests.served import alive, until
from tests.storing import noted_parts

pytestmark = [pytest.mark.process, pytest.mark.needs("grpc_tools")]
MOST_BYTES = 3_000_000


class Shared(NamedTuple):
    """A worker and its orchestrator's store."""

    driven: Driven
    store: LoopbackStore

    def save(self, ref: str, size: int, token: str = "", **more: Any) -> Asked:
        """Send a job that saves so many bytes."""
        fields: dict[str, Any] = {"capability_token": token or self.store.token, "tenant": "acme", **more}
        return self.driven.connection.run("save", {"text": ref, "times": size}, **fields)

    def until_under_way(self, ref: str, part: int = 1) -> None:
        """Wait until a part of a file is on its way."""
        self.driven.worker.until(lambda: bool(self.store.seen(f"part:{ref}:{part}")), f"`{ref}` on its way")

    def fetcher(self) -> int:
        """Return the pid of the worker's fetcher."""
        [pid] = [pid for pid in self.driven.worker.descendants() if b"gen_worker.fetch" in read(pid, "cmdline")]
        return pid


def read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return b""


@contextmanager
def started(folder: Path) -> Iterator[Shared]:
    """A worker whose fetcher runs."""
    variables = {"WORKER_MAX_UPLOAD_BYTES": str(MOST_BYTES)}
    with LoopbackStore(part_bytes=1 << 20) as store, driven(folder, variables, file_base_url=store.url) as made:
        with made.worker.explained():
            shared = Shared(made, store)
            assert shared.save("first.bin", 10).result().status == OK
        yield shared


@pytest.fixture(scope="module")
def running(grpc_awake: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """One worker for the module."""
    with started(tmp_path_factory.mktemp("storing")) as shared:
        yield shared


@pytest.fixture
def shared(running: Shared) -> Iterator[Shared]:
    """The worker of the module, with a store in which nothing goes wrong and nothing is."""
    running.store.files.clear()
    running.store.requests.clear()
    with running.driven.worker.explained():
        yield running
    running.store.heal()


@pytest.fixture
def own(grpc_awake: None, tmp_path: Path) -> Iterator[Shared]:
    """A worker that loses a process in the test."""
    with started(tmp_path) as shared, shared.driven.worker.explained():
        yield shared


def test_what_a_store_is_asked_for_a_job_is_in_the_trace_of_its_caller_and_the_bucket_is_told_of_none(
    shared: Shared,
) -> None:
    caller = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    shared.save("traced.bin", 1000, traceparent=caller).output()
    told = {each.headers.get("traceparent", "") for each in shared.store.requests if each.origin == "store"}
    [of_the_job] = told
    assert of_the_job.startswith(caller[:36])
    assert of_the_job != caller
    assert not [each for each in shared.store.requests if each.origin == "bucket" and "traceparent" in each.headers]


@pytest.mark.parametrize("traceparent", ["", "00-nonsense", "00-" + "0" * 32 + "-00f067aa0ba902b7-01"])
def test_a_job_without_a_trace_tells_the_store_of_none(shared: Shared, traceparent: str) -> None:
    shared.save("untraced.bin", 1000, traceparent=traceparent).output()
    assert not [each for each in shared.store.requests if "traceparent" in each.headers]


def test_a_job_whose_child_waits_for_the_store_is_canceled_at_once_and_its_child_lives(shared: Shared) -> None:
    shared.store.fail("part:*", Stall(10, 60.0))
    job = shared.save("slow.bin", 1000)
    shared.until_under_way("slow.bin")
    home = shared.driven.worker.home(job.request_id)
    job.cancel()
    assert job.result(5.0).status == CANCELED
    shared.driven.worker.until(lambda: shared.store.uploads == [], "the store's being told")
    assert alive(home)
    shared.store.heal()
    assert shared.save("next.bin", 1000).output()["ref"] == "next.bin"


def test_the_upload_of_a_child_that_dies_is_given_up(own: Shared) -> None:
    own.store.fail("part:*", Stall(10, 60.0))
    job = own.save("orphan.bin", 1000)
    own.until_under_way("orphan.bin")
    os.kill(own.driven.worker.home(job.request_id), signal.SIGKILL)
    assert job.result().status == RETRYABLE
    own.driven.worker.until(lambda: own.store.uploads == [], "the store's being told")
    assert "orphan.bin" not in own.store.files


def test_a_job_does_not_notice_the_death_of_the_fetcher_and_no_part_is_sent_twice(own: Shared) -> None:
    own.store.fail("part:*:3", Stall(10, 60.0))
    job = own.save("resumed.bin", MOST_BYTES)
    parts = ["part:resumed.bin:1", "part:resumed.bin:2"]
    own.until_under_way("resumed.bin", part=3)
    own.driven.worker.until(lambda: noted_parts(own.driven.worker.pid) == 2, "two parts stored")
    os.kill(own.fetcher(), signal.SIGKILL)
    own.store.heal()
    assert job.output()["size_bytes"] == MOST_BYTES
    assert own.store.files["resumed.bin"].content == b"x" * MOST_BYTES
    assert [len(own.store.seen(part)) for part in parts] == [1, 1]


def test_a_store_that_is_in_trouble_makes_the_job_one_to_try_again(shared: Shared) -> None:
    shared.store.fail("create:*", Status(503))
    result = shared.save("a.bin", 10).result()
    assert result.status == RETRYABLE
    assert "answers 503 (provider=store, phase=upload, status=503)" in result.safe_message


def test_a_store_that_refuses_for_good_fails_the_job(shared: Shared) -> None:
    shared.store.fail("part:*", Status(403))
    result = shared.save("a.bin", 10).result()
    assert result.status == FATAL
    assert "answers 403" in result.safe_message


def test_a_file_over_the_operators_limit_is_invalid_and_the_limit_is_named(shared: Shared) -> None:
    result = shared.save("big.bin", MOST_BYTES + 1).result()
    assert result.status == INVALID
    text = f"`big.bin` has {MOST_BYTES + 1} bytes, the limit is {MOST_BYTES}: `WORKER_MAX_UPLOAD_BYTES`"
    assert result.safe_message == text
    assert shared.store.requests == []


def test_a_file_over_what_the_jobs_token_allows_is_invalid_and_the_claim_is_named(shared: Shared) -> None:
    claims = base64.urlsafe_b64encode(json.dumps({"max_bytes_per_file": 99}).encode()).rstrip(b"=").decode()
    token = f"head.{claims}.signature"
    shared.store.tokens.add(token)
    result = shared.save("big.bin", 100, token).result()
    assert result.status == INVALID
    assert "`max_bytes_per_file` of the job's token" in result.safe_message
    assert shared.save("small.bin", 99, token).output()["size_bytes"] == 99
    shared.store.tokens.discard(token)


def test_a_file_without_bytes_is_refused_and_that_is_said(shared: Shared) -> None:
    result = shared.save("empty.bin", 0).result()
    assert result.status == FATAL
    assert "has no bytes" in result.safe_message


@pytest.mark.parametrize("tenant", ["acme", ""])
def test_an_asset_is_its_tenants_or_nobodys(shared: Shared, tenant: str) -> None:
    fields: dict[str, Any] = {"capability_token": shared.store.token, "tenant": tenant}
    asset = shared.driven.connection.run("save", {"text": "a.bin", "times": 10}, **fields).output()
    assert asset.get("owner", "") == tenant


@pytest.mark.promise(37)
@pytest.mark.parametrize("ref", ["../up.bin", "http://elsewhere/x.bin", "a\\b.bin"])
def test_no_ref_leads_elsewhere(shared: Shared, ref: str) -> None:
    assert shared.save(ref, 10).result().status == INVALID
    assert shared.store.requests == []


def test_files_of_many_jobs_at_once_are_all_stored(shared: Shared) -> None:
    shared.store.dedup = False
    jobs = {f"many/{at}.bin": shared.save(f"many/{at}.bin", 100_000 + at) for at in range(16)}
    assert all(job.output()["ref"] == ref for ref, job in jobs.items())
    assert {ref: len(file.content) for ref, file in shared.store.files.items()} == {
        ref: 100_000 + at for at, ref in enumerate(jobs)
    }


@pytest.mark.promise(39)
def test_the_jobs_token_is_in_no_child_and_no_log(shared: Shared) -> None:
    token = shared.store.token.encode()
    shared.store.fail("part:*", Status(500))
    job = shared.save("secret.bin", 10)
    shared.until_under_way("secret.bin")
    pids = [shared.driven.worker.pid, *shared.driven.worker.descendants()]
    assert len(pids) >= 4
    for pid in pids:
        assert token not in read(pid, "cmdline") + read(pid, "environ")
    shared.store.heal()
    assert job.result().status == OK
    assert token.decode() not in shared.driven.worker.log()
    assert shared.store.leaks == []


def test_a_worker_keeps_no_descriptor_of_what_it_stored(shared: Shared) -> None:
    def open_files() -> list[str]:
        links = Path(f"/proc/{shared.driven.worker.pid}/fd").iterdir()
        return [name for name in map(_target, links) if "gen-worker-upload" in name or "gen-worker-save" in name]

    assert shared.save("last.bin", 100_000).result().status == OK
    until(lambda: open_files() == [], what="closed files")


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""


def job_token(store: LoopbackStore, good_s: float) -> str:
    """Return a token that a store takes until a while from now, as it says itself."""
    claims = base64.urlsafe_b64encode(json.dumps({"exp": time.time() + good_s, "id": os.urandom(4).hex()}).encode())
    made = f"e30.{claims.decode().rstrip('=')}.c2ln"
    store.tokens = store.tokens | {made}
    return made


def test_a_job_that_outlives_its_token_stores_its_files_with_a_fresh_one(shared: Shared) -> None:
    store, renewed = shared.store, [job_token(shared.store, 3600)]
    store.tokens -= set(renewed)
    store.renews = renewed.pop
    try:
        store.fail("part:late.bin:1", Stall(10, 1.7))
        first = job_token(store, 0.5)
        shared.save("late.bin", 1000, first).output()
    finally:
        store.renews = None
    [asked] = [each for each in store.requests if each.path == "/v1/worker/capability/renew"]
    assert asked.status == 200
    assert asked.token not in (first, store.token), "it is the worker's own that is shown"
    [completed] = store.seen("complete:late.bin")
    assert completed.token != first
    assert first not in store.tokens


def test_a_fetcher_that_takes_over_shows_the_fresh_token(own: Shared) -> None:
    store, renewed = own.store, [job_token(own.store, 3600)]
    store.tokens -= set(renewed)
    store.renews = renewed.pop
    store.fail("part:late.bin:1", Stall(10, 30.0), times=1)
    job = own.save("late.bin", 1000, job_token(store, 0.5))
    own.driven.worker.until(lambda: not renewed, "a fresh token")
    assert own.save("other.bin", 10).result().status == OK, "what the fetcher said before this was heard"
    first = own.fetcher()
    os.kill(first, signal.SIGKILL)
    assert job.result().status == OK
    assert own.fetcher() != first


def test_where_no_token_is_renewed_the_job_goes_on_with_what_it_has_and_that_is_said_once(own: Shared) -> None:
    own.store.fail("part:*", Stall(10, 1.7))
    jobs = [own.save(f"{name}.bin", 1000, job_token(own.store, 0.5)) for name in ("one", "two")]
    for job in jobs:
        job.output()
    assert own.driven.worker.log().count("renews no tokens of jobs") == 1
