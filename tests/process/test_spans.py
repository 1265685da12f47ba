"""Spans of jobs, at a collector: what they say, whom they cost nothing, and what becomes of them in trouble."""

import os
import signal
from pathlib import Path

import pytest

from tests.collecting import Collector, attributes, collecting
from tests.served import Serve, Server, until

pytestmark = [pytest.mark.process, pytest.mark.needs("opentelemetry.sdk")]

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CANARY = "canary-of-a-secret-header"


def variables(collector: Collector, **more: str) -> dict[str, str]:
    """Return what has spans sent there soon."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-api-key={CANARY}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        **more,
    }


def exporter(server: Server) -> int:
    """Return the pid of the process that sends spans."""
    named = [pid for pid in server.processes() if b"gen_worker.otlp" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    [pid] = named
    return pid


def test_a_job_is_a_span_of_its_callers_trace_with_its_queue_and_run_below_it(serve: Serve) -> None:
    with collecting() as collector:
        server = serve(variables=variables(collector))
        server.client.call("echo", {"text": "secret words"}, tenant="acme", traceparent=f"00-{TRACE}-{CALLER}-01")
        until(lambda: collector.named("run"), what="the spans")
        [job] = collector.named("echo")
        assert (job.trace_id.hex(), job.parent_span_id.hex()) == (TRACE, CALLER)
        told = attributes(job)
        assert told.pop("gen_worker.queue_s") >= 0
        assert told == {
            "gen_worker.function": "echo",
            "gen_worker.device": "cpu:0",
            "gen_worker.outcome": "ok",
            "gen_worker.attempt": 1,
        }
        below = collector.below(job)
        assert set(below) >= {"queue", "run"}
        assert job.start_time_unix_nano == below["queue"].start_time_unix_nano
        assert below["queue"].end_time_unix_nano <= below["run"].start_time_unix_nano
        assert below["run"].end_time_unix_nano == job.end_time_unix_nano
        assert collector.resources[0]["service.name"] == "gen-worker"
        assert collector.headers[0]["x-api-key"] == CANARY
        assert "secret words" not in str(collector.spans)
        assert "acme" not in str(collector.spans)
        assert CANARY not in server.log()
        mine = [*server.pids().values(), exporter(server)]
        assert not [pid for pid in mine if CANARY.encode() in Path(f"/proc/{pid}/environ").read_bytes()]


def test_a_job_without_a_caller_begins_a_trace_and_a_failed_one_says_so(serve: Serve) -> None:
    with collecting() as collector:
        server = serve(variables=variables(collector, OTEL_SERVICE_NAME="mine"))
        assert not server.ask("die", text="exit")["ok"]
        until(lambda: collector.named("die"), what="the span")
        [job] = collector.named("die")
        assert job.parent_span_id == b""
        assert attributes(job)["gen_worker.outcome"] == "child_died"
        assert job.status.code == job.status.STATUS_CODE_ERROR
        assert collector.resources[0]["service.name"] == "mine"


def test_what_a_caller_does_not_record_is_not_sent(serve: Serve) -> None:
    with collecting() as collector:
        server = serve(variables=variables(collector))
        server.client.call("echo", traceparent=f"00-{TRACE}-{CALLER}-00")
        server.client.call("echo", traceparent=f"00-{TRACE}-{CALLER}-01")
        server.close()
        assert len(collector.named("echo")) == 1, "what is left is sent at the end"


def test_a_collector_that_does_not_answer_and_an_exporter_that_is_killed_hold_up_nothing(serve: Serve) -> None:
    with collecting() as collector:
        server = serve(variables=variables(collector))
        pid = exporter(server)
        os.kill(pid, signal.SIGSTOP)
        for _ in range(1000):
            server.client.call("echo")
        lag_s = server.status().loop_lag_max_s
        assert lag_s is not None
        assert lag_s < 0.5
        os.kill(pid, signal.SIGKILL)
        until(lambda: [each for each in server.processes() if each != pid and each == next_exporter(server, pid)])
        until(lambda: server.client.call("echo") and collector.named("echo"), what="spans by the next one")
        assert len([event for event in server.events() if event.startswith("otlp: spans are not sent")]) <= 1


def test_a_collector_that_takes_nothing_is_told_of_once_and_so_is_the_end_of_that(serve: Serve) -> None:
    with collecting() as collector:
        collector.status = 401
        server = serve(variables=variables(collector))
        for tries in (1, 2, 3):
            server.client.call("echo")
            until(lambda least=tries: collector.tries >= least, what="a try")  # type: ignore[misc]
        until(lambda: "spans do not reach the collector" in server.log())
        collector.status = 200
        until(lambda: server.client.call("echo") and "spans reach the collector again" in server.log())
        told = [line for line in server.log().splitlines() if line.startswith("[otlp]")]
        assert len(told) == 2, told
        assert "401" in told[0]


def test_settings_of_the_exporter_that_do_not_fit_are_told_once_and_cost_no_key(serve: Serve) -> None:
    with collecting() as collector:
        mistaken = {"OTEL_BSP_MAX_QUEUE_SIZE": "1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
        server = serve(variables=variables(collector, OTEL_EXPORTER_OTLP_HEADERS=CANARY, **mistaken))
        until(lambda: "[otlp] no spans are sent: the `OTEL_*` variables do not fit: " in server.log())
        pid = exporter(server)
        server.client.call("echo")
        assert exporter(server) == pid, "nothing is tried again"
        log = server.log()
        assert "[otlp] spans are sent as `http/protobuf`, whatever `OTEL_EXPORTER_OTLP_PROTOCOL` says: grpc" in log
        assert "Header values in environment variables must be URL encoded" in log
        assert CANARY not in log


def next_exporter(server: Server, before: int) -> int:
    """Return the pid of the exporter that took another's place, 0 while there is none."""
    for pid in server.processes():
        if pid != before and b"gen_worker.otlp" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    return 0


def test_without_a_collector_there_is_no_exporter(serve: Serve) -> None:
    server = serve(variables={"OTEL_SERVICE_NAME": "mine"})
    assert next_exporter(server, 0) == 0
