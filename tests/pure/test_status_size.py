"""What the status document costs: it is made again and again, and sent to everybody who watches."""

import re
from pathlib import Path

import msgspec

from gen_worker.wire.status import (
    DeviceStatus,
    EventStatus,
    FunctionStatus,
    HistogramStatus,
    JobStatus,
    ModelStatus,
    Status,
)
from gen_worker_supervisor.status.report import EVENTS_SENT, _jobs, _left_out
from tests.pure.host import Host

ROOT = Path(__file__).parents[2]
GIB = 1 << 30


def test_a_document_of_eight_gpus_stays_within_sixteen_kilobytes() -> None:
    model = ModelStatus("black-forest-labs/FLUX.1-dev", 33_700_000_000, "VRAM", "studio:text_to_image")
    message = "child 4762 died: SIGABRT; `gen-worker postmortem 20261122-180103-cuda6-c0f7` tells more"
    counted = HistogramStatus([0.1 * bound for bound in range(1, 17)], [3] * 17, 1234.5)
    gpus = [
        DeviceStatus(
            index, f"GPU-{'0' * 36}", f"cuda:{index}", 40_000 + index, "busy", 40 * GIB, 80 * GIB, None, 0.93, 64.0,
            541.2, [model], "cover-01", 0.312, 1, rss=180_228_096, phase="busy", jobs=1, jobs_done=871,
            age_s=86_400.123, own_bytes=173_166_592,
            product="NVIDIA H100 80GB HBM3", vram_ours=39 * GIB, vram_other=GIB,
        )
        for index in range(8)
    ]  # fmt: skip
    jobs = [
        JobStatus(f"cover-{each:02}", "text-to-image", "running", "step 12/40", 0.3, 12.345, 588.2, "cuda:1", "serve")
        for each in range(12)
    ]
    events = [EventStatus(each, 1_790_000_000.123, "error", "cuda:6", message) for each in range(EVENTS_SENT)]
    functions = [FunctionStatus("text-to-image", "available", None, 3, 12.3, 30.0, {"ok": 900}, counted, counted)]
    document = Status(1_790_000_000.123, "gpu-host-3", "0.1.0", 4711, 86_400.1)
    document.gpus, document.jobs, document.events, document.functions = gpus, jobs, events, functions
    assert len(msgspec.json.encode(document)) < 16_000


def test_of_a_long_queue_as_much_is_told_as_is_asked_for_and_the_rest_is_counted() -> None:
    host = Host(max_queued=1000)
    host.started()
    for _ in range(500):
        host.submit()
    told = _jobs(host.fleet, host.now, str, 200)
    assert len(told) == 201
    assert [each.position for each in told[1:]] == list(range(1, 201))
    assert _left_out(host.fleet, 200) == 300
    assert _left_out(host.fleet, None) == 0


def test_nobody_asks_a_driver_for_processes_whose_numbers_are_those_of_another_host() -> None:
    sources = [file for folder in ("src", "supervisor", "child") for file in (ROOT / folder).rglob("*.py")]
    asked = re.compile(r"RunningProcesses|nvmlDeviceGetProcess|nvmlSystemGetProcessName")
    assert [file.name for file in sources if asked.search(file.read_text())] == []
