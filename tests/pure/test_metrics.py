"""The metrics that follow from a status document."""

import re
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from gen_worker.http.metrics import FAMILIES, OPENMETRICS, exposition
from gen_worker.wire.status import (
    DeviceStatus,
    FunctionStatus,
    HistogramStatus,
    HostModelStatus,
    JobStatus,
    LinkStatus,
    ModelStatus,
    Status,
)

BASE_UNITS = ("_seconds", "_bytes", "_ratio")
RUN = HistogramStatus([0.1, 1.0], [3, 2, 1], 9.5)
BARE = Status(ts=0.0, host="h", version="0.1.0", pid=1, uptime_s=1.0)
FULL = msgspec.structs.replace(
    BARE,
    gpus=[
        DeviceStatus(
            0,
            "GPU-1",
            "cuda:0",
            7,
            "busy",
            vram_used=10,
            vram_total=80,
            util=0.5,
            jobs=2,
            heartbeat_age_s=0.25,
            models=[ModelStatus("acme/sdxl", 5), ModelStatus("acme/vae", 2), ModelStatus("acme/x")],
            deaths={"SIGSEGV": 2, "hang": 1},
        ),
        DeviceStatus(1, "GPU-2", "cuda:1", None, "hung"),
    ],
    functions=[
        FunctionStatus("paint", "available", queued=4, ended={"ok": 6, "killed": 1}, run=RUN, wait=RUN),
        FunctionStatus('odd"name\\', "available"),
    ],
    models=[HostModelStatus("acme/sdxl", "DISK", 100), HostModelStatus("acme/later", "COLD", 50)],
    link=LinkStatus("connected"),
    loads={"disk": RUN},
    downloaded_bytes=1234,
    ready=True,
    loop_lag_p99_s=0.002,
)


def families(status: Status) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(exposition(status)[0].decode())}


def value(status: Status, name: str, **labels: str) -> float:
    samples = [sample for family in families(status).values() for sample in family.samples]
    (found,) = [each.value for each in samples if each.name == name and each.labels == labels]
    return float(found)


def test_prometheus_reads_what_the_document_says() -> None:
    assert value(FULL, "genworker_jobs_total", function="paint", outcome="ok") == 6
    assert value(FULL, "genworker_jobs_queued", function="paint") == 4
    assert value(FULL, "genworker_jobs_in_progress", gpu="cuda:0") == 2
    assert value(FULL, "genworker_child_restarts_total", gpu="cuda:0", reason="SIGSEGV") == 2
    assert value(FULL, "genworker_child_heartbeat_age_seconds", gpu="cuda:0") == 0.25
    assert value(FULL, "genworker_gpu_memory_used_bytes", gpu="cuda:0") == 10
    assert value(FULL, "genworker_gpu_memory_total_bytes", gpu="cuda:0") == 80
    assert value(FULL, "genworker_gpu_utilization_ratio", gpu="cuda:0") == 0.5
    assert value(FULL, "genworker_model_resident_bytes", gpu="cuda:0") == 7
    assert value(FULL, "genworker_downloads_bytes_total") == 1234
    assert value(FULL, "genworker_disk_cache_bytes") == 100
    assert value(FULL, "genworker_orchestrator_connected") == 1
    assert value(FULL, "genworker_ready") == 1
    assert value(FULL, "genworker_build_info", version="0.1.0") == 1


def test_a_child_that_hangs_is_not_up() -> None:
    assert [value(FULL, "genworker_child_up", gpu=name) for name in ("cuda:0", "cuda:1")] == [1, 0]


def test_the_buckets_of_a_histogram_count_what_is_below_them_too() -> None:
    name = "genworker_job_duration_seconds"
    assert [value(FULL, f"{name}_bucket", function="paint", le=le) for le in ("0.1", "1.0", "+Inf")] == [3, 5, 6]
    assert (value(FULL, f"{name}_count", function="paint"), value(FULL, f"{name}_sum", function="paint")) == (6, 9.5)
    assert value(FULL, "genworker_model_load_seconds_count", source="disk") == 6


def test_what_nobody_knows_has_no_sample() -> None:
    told = exposition(BARE)[0].decode()
    assert "genworker_orchestrator_connected 0" not in told
    assert 'genworker_gpu_memory_used_bytes{gpu="cuda:1"}' not in exposition(FULL)[0].decode()
    assert not re.search(r" (nan|inf|None)$", told, re.MULTILINE | re.IGNORECASE)


def test_a_function_that_has_run_nothing_yet_counts_from_0() -> None:
    assert value(FULL, "genworker_jobs_total", function='odd"name\\', outcome="ok") == 0


@pytest.mark.parametrize("status", [BARE, FULL], ids=["bare", "full"])
def test_whoever_asks_for_open_metrics_gets_them_and_its_reader_is_content(status: Status) -> None:
    body, content_type = exposition(status, OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    read = list(openmetrics(body.decode()))  # type: ignore[no-untyped-call]
    named = {each.name.removesuffix("_total") if each.kind == "counter" else each.name for each in FAMILIES}
    assert {family.name for family in read} == named


@pytest.mark.parametrize(
    "accept",
    ["text/plain; version=a.b.c", "*/*;q=x", "application/openmetrics-text; version=nine;escaping=;;=", "\xff"],
)
def test_whatever_is_asked_for_metrics_are_the_answer(accept: str) -> None:
    assert b"genworker_ready 1.0\n" in exposition(FULL, accept)[0]


def test_every_metric_has_a_meaning_and_a_kind_and_is_told_once() -> None:
    told = exposition(FULL)[0].decode()
    for family in FAMILIES:
        assert told.count(f"# TYPE {family.name} {family.kind}\n") == 1
        assert told.count(f"# HELP {family.name} {family.meaning}\n") == 1
        assert family.meaning.endswith(".")


def test_names_have_our_prefix_base_units_and_total_where_they_count() -> None:
    for family in FAMILIES:
        assert re.fullmatch(r"genworker_[a-z][a-z_]*", family.name), family.name
        assert not re.search(r"_(milli|micro|mega|giga|kilo|percent|ms|mb|minutes)", family.name)
        assert family.name.endswith("_total") == (family.kind == "counter")
        assert not family.unit or f"_{family.unit}" in BASE_UNITS
        assert family.kind != "histogram" or family.name.endswith("_seconds")
        assert not {"le", "quantile", "job", "instance", "tenant", "ref"} & set(family.labels)
        assert not any(label in family.name.split("_") for label in family.labels if label != "gpu")


def test_names_that_dashboards_know_are_there() -> None:
    assert {
        "genworker_jobs_total",
        "genworker_job_duration_seconds",
        "genworker_queue_seconds",
        "genworker_jobs_in_progress",
        "genworker_child_restarts_total",
        "genworker_child_heartbeat_age_seconds",
        "genworker_gpu_memory_used_bytes",
        "genworker_gpu_memory_total_bytes",
        "genworker_gpu_utilization_ratio",
        "genworker_model_load_seconds",
        "genworker_model_resident_bytes",
        "genworker_downloads_bytes_total",
        "genworker_disk_cache_bytes",
        "genworker_orchestrator_connected",
        "genworker_build_info",
    } <= {family.name for family in FAMILIES}


def test_what_docs_and_files_for_containers_ask_for_is_told() -> None:
    root = Path(__file__).parents[2]
    texts = [file.read_text() for folder in ("docs", "docker") for file in (root / folder).rglob("*.*ml")]
    texts += [file.read_text() for file in (root / "docs").rglob("*.md")]
    asked = {name for text in texts for name in re.findall(r"genworker_[a-z_]+", text)}
    parts = {"histogram": ("", "_bucket", "_count", "_sum"), "counter": ("",), "gauge": ("",)}
    told = {family.name + part for family in FAMILIES for part in parts[family.kind]}
    assert asked
    assert asked <= told


def test_ten_thousand_jobs_of_a_thousand_tenants_add_no_series() -> None:
    jobs = [
        JobStatus(f"request-{number}", "paint", "queued", tenant=f"tenant-{number % 1000}", stage="free text")
        for number in range(10_000)
    ]
    crowded = exposition(msgspec.structs.replace(FULL, jobs=jobs))[0]
    assert crowded == exposition(FULL)[0]


def test_bounds_grow() -> None:
    from gen_worker_supervisor.history.tally import BOUNDS

    assert all(lower < upper for lower, upper in pairwise(BOUNDS))
