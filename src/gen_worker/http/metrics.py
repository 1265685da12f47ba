"""The metrics that follow from a status document: names with base units, labels that stay few.

Labels are the endpoint's functions, how jobs end, devices, causes of deaths and where models come from. No job, tenant,
payload or ref is a label: how many series there are does not depend on what callers send.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from gen_worker.wire.status import DeviceStatus, HistogramStatus, Status

OPENMETRICS = "application/openmetrics-text; version=1.0.0"  # the library's own reader of the header can be led astray
TAKES_JOBS = frozenset(("idle", "busy", "loading"))


class Family(msgspec.Struct, frozen=True):
    """One metric: what it is called, what it means, and where the document says it."""

    name: str
    kind: str  # "counter", "gauge" or "histogram"
    unit: str
    labels: tuple[str, ...]
    meaning: str
    samples: Callable[[Status], Iterable[tuple[tuple[str, ...], "float | HistogramStatus | None"]]]

    def metric(self, status: Status) -> Metric:
        """Return it with its samples; what is not known has none."""
        known = [(labels, value) for labels, value in self.samples(status) if value is not None]
        if self.kind == "histogram":
            histogram = HistogramMetricFamily(self.name, self.meaning, labels=self.labels, unit=self.unit)
            for labels, found in known:
                assert isinstance(found, HistogramStatus)
                histogram.add_metric(labels, _buckets(found), found.sum_s)
            return histogram
        kind = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        metric = kind(self.name, self.meaning, labels=self.labels, unit=self.unit)
        for labels, found in known:
            assert not isinstance(found, HistogramStatus)
            metric.add_metric(labels, found)
        return metric


def exposition(status: Status, accept: str = "") -> tuple[bytes, str]:
    """Return the metrics as text in the form that an `Accept` header asks for, and the content type of that."""
    encode, content_type = choose_encoder(OPENMETRICS if "application/openmetrics-text" in accept else "")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(status))
    return encode(registry), content_type


class _Collected(Collector):
    def __init__(self, status: Status) -> None:
        self._status = status

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        return (family.metric(self._status) for family in FAMILIES)


def _buckets(found: HistogramStatus) -> list[tuple[str, float]]:
    bounds = [*(repr(float(bound)) for bound in found.bounds), "+Inf"]
    return list(zip(bounds, accumulate(found.counts), strict=True))


def _each_device(
    value: Callable[[DeviceStatus], float | None],
) -> Callable[[Status], Iterable[tuple[tuple[str, ...], float | None]]]:
    return lambda status: [((device.name,), value(device)) for device in status.gpus]


def _of_all(value: Callable[[Status], float | None]) -> Callable[[Status], list[tuple[tuple[str, ...], float | None]]]:
    return lambda status: [((), value(status))]


def _resident(device: DeviceStatus) -> float:
    return sum(model.bytes or 0 for model in device.models)


FAMILIES = (
    Family(
        "genworker_jobs_total",
        "counter",
        "",
        ("function", "outcome"),
        "Jobs that have ended: `ok`, or the kind of error.",
        lambda status: [
            ((each.name, how), count) for each in status.functions for how, count in {"ok": 0, **each.ended}.items()
        ],
    ),
    Family(
        "genworker_job_duration_seconds",
        "histogram",
        "seconds",
        ("function",),
        "How long jobs ran.",
        lambda status: [((each.name,), each.run) for each in status.functions],
    ),
    Family(
        "genworker_queue_seconds",
        "histogram",
        "seconds",
        ("function",),
        "How long jobs waited before they ran.",
        lambda status: [((each.name,), each.wait) for each in status.functions],
    ),
    Family(
        "genworker_jobs_queued",
        "gauge",
        "",
        ("function",),
        "Jobs that wait.",
        lambda status: [((each.name,), each.queued) for each in status.functions],
    ),
    Family(
        "genworker_jobs_in_progress",
        "gauge",
        "",
        ("gpu",),
        "Jobs that the child of a device holds.",
        _each_device(lambda device: device.jobs),
    ),
    Family(
        "genworker_child_restarts_total",
        "counter",
        "",
        ("gpu", "reason"),
        "Deaths of children, by cause: each is followed by a restart.",
        lambda status: [((each.name, cause), count) for each in status.gpus for cause, count in each.deaths.items()],
    ),
    Family(
        "genworker_child_up",
        "gauge",
        "",
        ("gpu",),
        "Whether a device's child takes jobs: 1, or 0 where it starts, hangs, drains or is gone.",
        _each_device(lambda device: float(device.state in TAKES_JOBS and not device.drained)),
    ),
    Family(
        "genworker_child_heartbeat_age_seconds",
        "gauge",
        "seconds",
        ("gpu",),
        "How long ago a device's child gave its last sign of life.",
        _each_device(lambda device: device.heartbeat_age_s),
    ),
    Family(
        "genworker_gpu_memory_used_bytes",
        "gauge",
        "bytes",
        ("gpu",),
        "Memory in use on a GPU, by whomever.",
        _each_device(lambda device: device.vram_used),
    ),
    Family(
        "genworker_gpu_memory_total_bytes",
        "gauge",
        "bytes",
        ("gpu",),
        "Memory of a GPU.",
        _each_device(lambda device: device.vram_total),
    ),
    Family(
        "genworker_gpu_utilization_ratio",
        "gauge",
        "ratio",
        ("gpu",),
        "The share of the last second in which a GPU computed.",
        _each_device(lambda device: device.util),
    ),
    Family(
        "genworker_model_load_seconds",
        "histogram",
        "seconds",
        ("source",),
        "How long children took to load models: from the host's `ram` or its `disk`.",
        lambda status: [((source,), found) for source, found in status.loads.items()],
    ),
    Family(
        "genworker_model_resident_bytes",
        "gauge",
        "bytes",
        ("gpu",),
        "What the models take that a device's child holds.",
        _each_device(_resident),
    ),
    Family(
        "genworker_downloads_bytes_total",
        "counter",
        "",
        (),
        "Bytes of models that were downloaded.",
        _of_all(lambda status: status.downloaded_bytes),
    ),
    Family(
        "genworker_disk_cache_bytes",
        "gauge",
        "bytes",
        (),
        "What the models of the endpoint take of the disk.",
        _of_all(lambda status: sum(model.bytes or 0 for model in status.models if model.state != "COLD")),
    ),
    Family(
        "genworker_orchestrator_connected",
        "gauge",
        "",
        (),
        "Whether the orchestrator is connected; there only for a worker.",
        _of_all(lambda status: None if status.link is None else float(status.link.state == "connected")),
    ),
    Family(
        "genworker_ready",
        "gauge",
        "",
        (),
        "Whether jobs are taken.",
        _of_all(lambda status: float(status.ready)),
    ),
    Family(
        "genworker_loop_lag_seconds",
        "gauge",
        "seconds",
        (),
        "How late the supervisor's loop was of late, 99th percentile.",
        _of_all(lambda status: status.loop_lag_p99_s),
    ),
    Family(
        "genworker_build_info",
        "gauge",
        "",
        ("version",),
        "Always 1; the version is the label.",
        lambda status: [((status.version,), 1.0)],
    ),
)
"""Every metric."""
