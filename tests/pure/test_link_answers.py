"""What an orchestrator reads of a job's end is true, short, and gives no secret away."""

import time

import pytest

from gen_worker.wire.messages import FRAME_LIMIT, ErrorDetail, ErrorKind
from gen_worker.wire.scheduler import JobStatus
from gen_worker_supervisor.core.outcomes import failure
from gen_worker_supervisor.core.phases import ENDED, JobState
from gen_worker_supervisor.core.state import Outcome
from gen_worker_supervisor.link.answers import STATUS, TEXT_CHARS, metrics, safe_message
from gen_worker_supervisor.logs.log import Look
from gen_worker_supervisor.logs.redaction import redacted
from tests.pure.host import Host


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("401 for Bearer eyJhbGciOi.x.y, sorry", "401 for Bearer [secret], sorry"),
        (
            "GET https://s3/a?X-Amz-Credential=AKIA%2F1&X-Amz-Signature=beef failed",
            "GET https://s3/a?[secret] failed",
        ),
        ("X-Amz-Credential=AKIA&X-Amz-Signature=beef", "X-Amz-Credential=[secret]&X-Amz-Signature=[secret]"),
        ("'https://cdn/x:1?Expires=1&Signature=abc~': 403", "'https://cdn/x:1?[secret]': 403"),
        ("sv=1&sig=abc%2B, token=hf_abc", "sv=1&sig=[secret], token=[secret]"),
        ("Authorization: Basic dXNlcjpw", "Authorization: Basic [secret]"),
        ("{'authorization': 'hf_abc'}", "{'authorization': '[secret]'}"),
        ("no login at https://bob:pa@ss@hub:8/x?a", "no login at https://[secret]@hub:8/x?[secret]"),
        ("redis://:pass@host/0", "redis://[secret]@host/0"),
        ('token: "abc", api_key=abc', 'token: "[secret]", api_key=[secret]'),
        ("{'download_token': 'x.y', 'size': 3}", "{'download_token': '[secret]', 'size': 3}"),
        ("got eyJhbGciOi.eyJzdWIi.c2ln here", "got [secret] here"),
        (f"login('hf_{'aB3' * 11}') failed", "login('[secret]') failed"),
        (f"key sk-{'x1-' * 8} or AKIA{'0A' * 8}", "key [secret] or [secret]"),
        ("hf_transfer is in use, sk-learn too", "hf_transfer is in use, sk-learn too"),
        ("passwd: x", "passwd: [secret]"),
        ("nothing to hide: size=3, max_tokens=5", "nothing to hide: size=3, max_tokens=5"),
        ("why? see https://h/x, KeyError: 'key'", "why? see https://h/x, KeyError: 'key'"),
    ],
)
def test_secrets_are_taken_out_and_the_rest_stays(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "piece", ["eyJ-", "://", "x-amz-", "token", "a@", "bearer ", "eyJ.", "authorization ", "hf_", "sk-"]
)
def test_no_text_takes_long(piece: str) -> None:
    began = time.monotonic()
    redacted(piece * (FRAME_LIMIT // len(piece)))
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("kind", "message", "told"),
    [
        ("draining", "the worker is shutting down", "worker draining"),
        ("unavailable", "no GPU", "function unavailable: no GPU"),
        ("user_exception", "KeyError: 'x'", "KeyError: 'x'"),
        ("out_of_memory", "out of memory", "out of memory"),
        ("invalid", "  too blue  ", "too blue"),
    ],
)
def test_a_failure_is_told_in_the_words_of_the_wire(kind: ErrorKind, message: str, told: str) -> None:
    assert safe_message(failure(kind, message), str) == told


def test_a_long_text_is_cut() -> None:
    assert len(safe_message(failure("user_exception", "x" * 5000), str)) == TEXT_CHARS


def test_secrets_are_taken_out_before_the_text_is_cut() -> None:
    secret = "sekret" * 6
    hide = Look(secrets=[secret]).hide_cut
    for before in range(TEXT_CHARS - len(secret) - 2, TEXT_CHARS + 2):
        told = safe_message(failure("invalid", "x" * before + secret), hide)
        assert "sekret" not in told
        already_cut = safe_message(failure("invalid", ("x" * before + secret)[:TEXT_CHARS]), hide)
        assert "sekret" not in already_cut


def test_a_job_that_ended_well_has_no_text() -> None:
    assert safe_message(Outcome(JobState.OK), str) == ""


def test_every_end_of_a_job_has_a_status() -> None:
    assert set(STATUS) == ENDED
    assert STATUS[JobState.RETRYABLE] is JobStatus.RETRYABLE


def test_a_job_that_never_ran_has_no_metrics() -> None:
    host = Host()
    job = host.submit()
    assert metrics(job, failure("draining", "x", retryable=True), host.now, 0) is None


def test_metrics_are_what_was_measured() -> None:
    host = Host()
    job = host.submit()
    outcome = Outcome(JobState.OK, run_s=1.5, peak_rss=100, peak_vram=200)
    took = metrics(job, outcome, host.now + 4.0, 3)
    assert took is not None
    assert (took.runtime_ms, took.queue_ms, took.concurrency_at_start) == (1500, 2500, 3)
    assert (took.peak_rss_bytes, took.peak_vram_bytes) == (100, 200)


def test_a_job_that_died_is_measured_from_its_start() -> None:
    host = Host()
    job = host.started()
    host.now += 2.0
    took = metrics(job, failure("child_died", "SIGSEGV", retryable=True), host.now, 0)
    assert took is not None
    assert (took.runtime_ms, took.queue_ms) == (2000, 0)


def test_who_is_refused_because_too_many_wait_is_told_when_to_ask_again() -> None:
    outcome = failure("busy", "3 jobs wait already", retryable=True, detail=ErrorDetail(retry_after_s=2.5))
    assert safe_message(outcome, str) == "3 jobs wait already; try again in 2.5 s"


def test_a_dead_childs_post_mortem_is_named_to_whoever_reads_the_workers_files() -> None:
    detail = ErrorDetail(cause="SIGSEGV", postmortem="20261122-131502-cuda0-3f1c")
    outcome = failure("child_died", "its child died while it ran: SIGSEGV", retryable=True, detail=detail)
    told = safe_message(outcome, Look().hide)
    assert told == "its child died while it ran: SIGSEGV; post-mortem 20261122-131502-cuda0-3f1c"
    late = failure("deadline", "deadline exceeded", detail=detail)
    assert safe_message(late, Look().hide) == "deadline exceeded", "as orchestrators know it"
