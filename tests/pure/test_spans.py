"""When spans are sent, to whom the exporter's environment shows what, and what is told of a job."""

import pytest

from gen_worker.tracing import Span
from gen_worker_supervisor.core.state import Job
from gen_worker_supervisor.history.records import record_of
from gen_worker_supervisor.history.spans import exporter_environment, is_wanted, job_span
from tests.pure.host import Host, function

SPAN = Span("4b" * 16, "0f" * 8, "", True)
URL = "http://collector:4318"


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_spans_are_sent_where_the_standard_variables_name_a_collector(name: str) -> None:
    assert is_wanted({name: URL})
    assert not is_wanted({name: " "})
    assert not is_wanted({})
    assert not is_wanted({name: URL, "OTEL_SDK_DISABLED": "True"})
    assert not is_wanted({name: URL, "OTEL_TRACES_EXPORTER": "none"})
    assert is_wanted({name: URL, "OTEL_TRACES_EXPORTER": "otlp"})
    assert is_wanted({name: URL, "OTEL_TRACES_EXPORTER": ""})
    assert is_wanted({name: URL, "OTEL_TRACES_EXPORTER": "console, otlp"})
    assert not is_wanted({name: URL, "OTEL_TRACES_EXPORTER": "console"})


def test_the_exporter_sees_its_own_settings_and_no_key_of_anybody() -> None:
    environment = {"OTEL_BSP_SCHEDULE_DELAY": "50", "PATH": "/bin", "https_proxy": "http://p"}
    secrets = {"WORKER_JWT": "x", "HF_TOKEN": "y", "OTEL_EXPORTER_OTLP_HEADERS": "key=1"}
    assert exporter_environment({**environment, **secrets}) == environment


def told(host: Host, job: Job, span: Span = SPAN) -> list[float]:
    """Return when a job was submitted, started and ended, and how long it was waited for its instance."""
    job.span = span
    made = job_span(job, host.answer(job), host.now, 0)
    assert made is not None
    return [ns / 1e9 for ns in (made.submitted_ns, made.started_ns, made.ended_ns, made.load_ns)]


def test_what_a_job_waited_for_its_instance_is_told_apart_and_not_for_the_next_job() -> None:
    host = Host(function(instance="m"))
    first = host.submit()
    host.passes(2.0)
    host.loaded(host.child(), 2.0)
    host.starts(first)
    host.passes(3.0)
    host.done(first, run_s=3.0)
    assert told(host, first) == [1000.0, 1002.0, 1005.0, 2.0]
    second = host.started()
    host.passes(1.0)
    host.done(second, run_s=1.0)
    assert told(host, second) == [1005.0, 1005.0, 1006.0, 0.0]


def test_what_a_job_waited_for_the_set_up_of_another_instance_is_no_load_of_its_own() -> None:
    host = Host(function(instance="m"), function("other", instance="n"))
    first = host.submit()
    host.loaded(host.child(), 2.0)
    host.starts(first)
    host.done(first)
    other = host.submit("other")
    second = host.submit()
    host.passes(3.0)
    host.loaded(host.child(), 3.0)
    for job in (other, second):
        host.starts(job)
        host.done(job)
    assert told(host, other)[3] == 3.0
    assert told(host, second)[3] == record_of(second, host.answer(second), host.now).load_s == 0.0


def test_a_job_that_never_ran_has_no_start() -> None:
    host = Host(up=False)
    job = host.submit()
    host.passes(1.0)
    host.ends(job)
    assert told(host, job) == [1000.0, 0.0, 1001.0, 0.0]


def test_a_job_that_was_over_before_it_was_seen_to_start_has_the_start_that_its_child_measured() -> None:
    host = Host()
    job = host.submit()
    host.passes(1.0)
    host.done(job, run_s=0.25)
    assert told(host, job) == [1000.0, 1000.75, 1001.0, 0.0]


def test_nothing_is_told_of_a_job_whose_caller_records_nothing_or_has_no_trace() -> None:
    host = Host()
    job = host.started()
    host.done(job)
    assert job_span(job, host.answer(job), host.now, 0) is None
    job.span = SPAN._replace(sampled=False)
    assert job_span(job, host.answer(job), host.now, 0) is None
