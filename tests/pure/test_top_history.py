"""What `gen-worker top` remembers of the documents before this one."""

from gen_worker.top.history import KEPT, History, spent_s
from gen_worker.wire.status import DeviceStatus, JobStatus, Status


def document(ts: float, *jobs: JobStatus, util: float = 0.5, done: int = 0, began: float = 0.0) -> Status:
    device = DeviceStatus(0, "GPU-0", "cuda:0", 1, "busy", vram_used=20, vram_total=80, util=util)
    return Status(
        ts=ts, host="h", version="1", pid=1, uptime_s=ts - began, gpus=[device], jobs=list(jobs), jobs_done=done
    )


def job(spent: float, left: float | None) -> JobStatus:
    return JobStatus("r1", "f", "running", elapsed_s=spent, deadline_s=left, queued_s=2.0)


def test_the_last_minute_of_each_device_is_kept() -> None:
    history = History()
    for second in range(100):
        history.note(document(second, util=second / 100))
    assert history.util("cuda:0") == [second / 100 for second in range(100 - KEPT, 100)]
    assert history.vram("cuda:0") == [0.25] * KEPT
    assert history.util("cuda:1") == []


def test_a_document_that_is_drawn_twice_counts_once() -> None:
    history = History()
    for _ in range(3):
        history.note(document(5.0))
    assert history.util("cuda:0") == [0.5]


def test_how_fast_jobs_are_done_is_told_after_two_documents() -> None:
    history = History()
    history.note(document(10.0, done=100))
    assert history.done_per_minute() is None
    history.note(document(40.0, done=148))
    assert history.done_per_minute() == 96.0


def test_another_supervisor_begins_a_history_of_its_own() -> None:
    history = History()
    history.note(document(100.0, done=500))
    history.note(document(130.0, done=3, began=120.0))
    assert history.util("cuda:0") == [0.5]
    assert history.done_per_minute() is None


def test_what_a_job_was_given_is_known_after_its_time_is_over() -> None:
    history = History()
    history.note(document(1.0, job(spent=299.0, left=1.0)))
    late = job(spent=362.0, left=0.0)
    history.note(document(64.0, late))
    assert history.limit_s(late) == 300.0
    history.note(document(65.0))
    history.note(document(66.0, late))
    assert history.limit_s(late) is None


def test_a_job_without_a_deadline_may_take_what_it_takes() -> None:
    assert History().limit_s(job(spent=5.0, left=None)) is None


def test_a_job_that_waits_has_spent_its_time_waiting() -> None:
    assert spent_s(JobStatus("r1", "f", "queued", queued_s=30.0)) == 30.0
    assert spent_s(job(spent=5.0, left=None)) == 5.0
