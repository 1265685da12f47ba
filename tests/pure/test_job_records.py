"""What is kept of a job that ended, and how a person reads it."""

from pathlib import Path
from typing import Any

import pytest

from gen_worker.cli.jobs import listed
from gen_worker.job_records import JobRecord, encode_lines, folder_in, read, whole
from gen_worker.line_files import name_of
from gen_worker.tracing import Span
from gen_worker.wire.messages import ErrorDetail, Lane
from gen_worker.wire.survey import SurveyedFunction
from gen_worker_supervisor.core.bodies import InlinePayload
from gen_worker_supervisor.core.ladder import Ending, Reason
from gen_worker_supervisor.core.outcomes import failure
from gen_worker_supervisor.core.phases import JobState
from gen_worker_supervisor.core.state import Child, Device, Function, Job, Outcome
from gen_worker_supervisor.history.records import AT_A_WRITE, Lines, hide_in, record_of
from gen_worker_supervisor.supervisor import ANSWERED

NOW = 1_795_370_187.0


def record(
    outcome: Outcome | None = None, *, set_up: tuple[float, float] = (104.0, 3.0), lane: Lane = "device", **known: Any
) -> JobRecord:
    """The record of a job that ends at 110."""
    child = Child(Device("cuda:0", "cuda"), 1, 0.0)
    child.set_up["m"] = set_up
    function = Function(SurveyedFunction("paint", "paint", "m", "m", "sync", lane, False, None))
    payload = InlinePayload(b"0123456789")
    job = Job(1, ANSWERED, "r1", 1, True, function, payload, "json", False, False, 100.0, child=child, started=105.0)
    for name, value in known.items():
        setattr(job, name, value)
    return record_of(job, outcome or Outcome(JobState.OK, bytes(20), run_s=4.5), 110.0)


def test_a_record_says_what_a_job_waited_for_and_what_it_took() -> None:
    found = record()
    assert (found.ts, found.queue_s, found.load_s, found.run_s, found.device_s) == (110.0, 5.0, 3.0, 4.5, 5.0)
    assert (found.device, found.in_bytes, found.out_bytes, found.outcome) == ("cuda:0", 10, 20, "ok")


def test_only_the_part_of_a_load_that_a_job_waited_for_counts() -> None:
    assert record(submitted=102.0).load_s == 2.0
    assert record(submitted=104.5).load_s == 0.0  # it was over before
    assert record(set_up=(104.0, 0.0)).load_s == 0.0


def test_a_job_that_shares_its_device_holds_none() -> None:
    assert record(lane="loop").device_s == 0.0
    assert record(Outcome(JobState.OK, run_s=4.5, together=5)).device_s == 1.0


def test_a_job_that_was_over_before_anybody_looked_has_run_all_the_same() -> None:
    found = record(Outcome(JobState.OK, run_s=0.25), started=None, submitted=109.0)
    assert (found.queue_s, found.run_s, found.device_s) == (0.75, 0.25, 0.25)


def test_a_job_that_never_ran_has_waited_until_its_end() -> None:
    found = record(failure("canceled", "canceled"), started=None, child=None)
    assert (found.queue_s, found.run_s, found.device_s, found.device) == (10.0, 0.0, 0.0, None)


def test_a_job_that_was_killed_has_run_until_then_and_says_how_it_hung() -> None:
    ending = Ending(Reason.KILL, 106.0, hang="gil_held")
    detail = ErrorDetail(cause="SIGKILL", postmortem="20261122-131502-cuda0-3f1c")
    found = record(failure("killed", "killed", detail=detail), ending=ending, deaths=1)
    assert (found.run_s, found.cause, found.hang, found.deaths) == (5.0, "SIGKILL", "gil_held", 1)
    assert found.postmortem == "20261122-131502-cuda0-3f1c"


def test_what_callers_named_is_hidden_like_everything_else() -> None:
    plain, odd = record(), record(request_id="a-secret", tenant="of-a-secret")
    odd.cause = "the secret"
    hide_in([plain, odd], lambda text: text.replace("secret", "*"))
    assert (plain.request_id, plain.tenant, plain.cause) == ("r1", "", None)
    assert (odd.request_id, odd.tenant, odd.cause) == ("a-*", "of-a-*", "the *")


def test_records_are_left_out_by_their_number_however_few_come_at_once() -> None:
    lines = Lines(100)
    for _ in range(99):
        lines.add(1, b"a line\n")
        assert lines.has_room()
    lines.add(64, b"a line\n" * 64)
    assert not lines.has_room()
    assert lines.take() == b"a line\n" * AT_A_WRITE
    assert not lines.has_room()
    while lines:
        lines.take()
    assert lines.has_room()


def test_durations_are_whole_microseconds_and_never_less_than_nothing() -> None:
    found = record(Outcome(JobState.OK, run_s=0.1234567), started=99.0, submitted=100.0)
    assert (found.run_s, found.queue_s, found.load_s) == (0.123457, 0.0, 0.0)


def test_what_was_written_is_read_again_and_what_is_damaged_costs_nothing_else(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    folder.mkdir(mode=0o700)
    file = folder / name_of("20261122-131502", "0" * 32, 1)
    file.write_bytes(
        encode_lines([record()]) + b'nonsense\n{"ts":1}\n' + encode_lines([record(request_id="r2")]) + b'{"ts":'
    )
    assert [each.request_id for each in read(folder)] == ["r1", "r2"]


def test_a_list_has_no_column_that_says_nothing_and_ends_with_what_it_comes_to() -> None:
    plain = JobRecord(NOW, "r1", "paint", "ok", device="cuda:0", queue_s=0.5, run_s=4.0, device_s=4.0)
    assert listed([plain], NOW).splitlines() == [
        "WHEN      JOB  FUNCTION  DEVICE  OUTCOME  QUEUE  RUN   HELD",
        "17:56:27  r1   paint     cuda:0  ok       0.5s   4.0s  4.0s",
        "1 job: 1 ok, 0 not; 4.0s of devices; median queue 0.5s, run 4.0s",
    ]
    odd = JobRecord(
        NOW, "r2", "paint", "child_died", tenant="acme", cause="SIGSEGV", deaths=2, peak_vram=3 << 30, hang="spin"
    )
    heads, _, row, total = listed([plain, odd], NOW, 200).splitlines()
    assert heads.split()[3:] == ["TENANT", "DEVICE", "OUTCOME", "QUEUE", "RUN", "HELD", "PEAK", "TRY", "CAUSE"]
    assert row.split()[1:6] == ["r2", "paint", "acme", "-", "child_died"]
    assert row.endswith("3072 MiB  2    SIGSEGV, spin")
    assert total.startswith("2 jobs: 1 ok, 1 not; ")


@pytest.mark.parametrize(
    ("outcome", "deaths", "postmortem", "tries"),
    [
        ("ok", 1, None, "2"),
        ("child_died", 1, "p", "1"),
        ("child_died", 2, "p", "2"),
        ("child_died", 0, "p", "1"),  # of another's doing
        ("killed", 1, "p", "2"),  # by an operator, in its second child
        ("retryable", 1, "p", "1"),  # a stream that its child's death cut off
        ("retryable", 1, None, "2"),  # its code asked for that
    ],
)
def test_a_death_that_ended_a_job_was_not_followed_by_another_try(
    outcome: str, deaths: int, postmortem: str | None, tries: str
) -> None:
    died = JobRecord(NOW - 5, "r1", "paint", outcome, deaths=deaths, postmortem=postmortem)
    again = JobRecord(NOW - 5, "r2", "paint", "ok", attempt=3)
    heads, one, other, _ = listed([died, again], NOW, 200).splitlines()
    at = heads.index("TRY")
    assert (one[at], other[at]) == (tries, "3")


def test_a_record_names_the_trace_that_its_job_was_in() -> None:
    assert record(span=Span("4b" * 16, "5c" * 8, "", True)).trace == "4b" * 16


def test_a_record_for_programs_has_every_field_and_null_for_what_is_not_known() -> None:
    bare = whole(JobRecord(NOW, "r1", "paint", "ok"))
    assert list(bare) == list(JobRecord.__struct_fields__)
    unknown = {"device", "tenant", "link", "cause", "hang", "peak_vram", "peak_rss", "trace", "postmortem"}
    assert {name for name, value in bare.items() if value is None} == unknown
    assert (bare["attempt"], bare["deaths"], bare["priority"], bare["device_s"]) == (1, 0, 0, 0.0)
    told = JobRecord(NOW, "r1", "paint", "ok", tenant="acme", link="serve", peak_vram=1, peak_rss=2, trace="t")
    assert (whole(told)["tenant"], whole(told)["peak_vram"], whole(told)["peak_rss"]) == ("acme", 1, 2)
