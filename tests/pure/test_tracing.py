"""What counts as a `traceparent`, and what a job makes of one."""

import pytest

from gen_worker.tracing import begun, continued, known

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{CALLER}-01"


def test_a_job_has_a_span_of_its_own_in_its_callers_trace() -> None:
    span = continued(VALID)
    assert span is not None
    assert (span.trace_id, span.parent_id, span.sampled) == (TRACE, CALLER, True)
    assert span.span_id != CALLER
    assert span.traceparent == f"00-{TRACE}-{span.span_id}-01"


def test_two_jobs_of_one_caller_have_two_spans() -> None:
    assert continued(VALID) != continued(VALID)


def test_a_trace_that_nobody_records_is_not_recorded_here_either() -> None:
    span = continued(f"00-{TRACE}-{CALLER}-00")
    assert span is not None
    assert not span.sampled
    assert span.traceparent.endswith("-00")


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "nonsense",
        VALID.upper(),
        VALID + "-",
        VALID + "\n",
        VALID + "-more",
        f"ff-{TRACE}-{CALLER}-01",
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{CALLER}-01",
        f"00-{TRACE}-{CALLER}-1",
        f"00-{TRACE}-{CALLER}-0g",
        f"01-{TRACE}-{CALLER}-01.more",
        "\u0660" * 55,
    ],
)
def test_what_breaks_the_rules_counts_as_none(traceparent: str) -> None:
    assert continued(traceparent) is None
    assert known(traceparent) == ""


def test_what_a_later_version_adds_is_not_passed_on() -> None:
    assert known(f"cc-{TRACE}-{CALLER}-01-what-the-future-holds") == VALID
    assert known(VALID) == VALID


def test_flags_that_nobody_knows_yet_are_not_passed_on() -> None:
    assert known(f"00-{TRACE}-{CALLER}-ff") == VALID


def test_a_trace_begins_with_a_job_that_has_no_caller() -> None:
    span = begun()
    assert span.parent_id == ""
    below = continued(span.traceparent)
    assert below is not None
    assert (below.trace_id, below.parent_id) == (span.trace_id, span.span_id)


@pytest.mark.needs("starlette")
@pytest.mark.parametrize(("header", "passed"), [(VALID, VALID), ("nonsense", ""), (VALID + "-more", "")])
def test_the_control_plane_takes_a_callers_trace_from_the_header_of_its_request(header: str, passed: str) -> None:
    from gen_worker.orchestrator.asking import Submission, request_of

    assert request_of(Submission(function="f"), b"\x80", {"traceparent": header}).traceparent == passed
    assert request_of(Submission(function="f"), b"\x80").traceparent == ""
