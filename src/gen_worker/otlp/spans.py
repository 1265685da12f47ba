"""Make the spans of a job that ended: itself, and what it waited for."""

from collections.abc import Iterator

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from gen_worker.tracing import new_id
from gen_worker.wire.spans import JobSpan

SCOPE = InstrumentationScope("gen-worker")


def spans_of(job: JobSpan, resource: Resource) -> Iterator[ReadableSpan]:
    """Yield the span of a job, and below it `queue`, `load` and `run`, as far as it came."""
    context = _context(job.trace_id, job.span_id)
    begun_ns = job.started_ns or job.ended_ns
    failed = job.outcome != "ok"
    yield ReadableSpan(
        name=job.function,
        context=context,
        parent=_context(job.trace_id, job.parent_id, is_remote=True) if job.parent_id else None,
        resource=resource,
        attributes={
            "gen_worker.function": job.function,
            "gen_worker.device": job.device,
            "gen_worker.outcome": job.outcome,
            "gen_worker.attempt": job.attempt,
            "gen_worker.queue_s": (begun_ns - job.submitted_ns) / 1e9,
        },
        kind=SpanKind.SERVER,
        status=Status(StatusCode.ERROR, job.outcome) if failed else Status(StatusCode.OK),
        start_time=job.submitted_ns,
        end_time=job.ended_ns,
        instrumentation_scope=SCOPE,
    )
    parts = [("queue", job.submitted_ns, begun_ns - job.load_ns)]
    if job.load_ns:
        parts.append(("load", begun_ns - job.load_ns, begun_ns))
    if job.started_ns:
        parts.append(("run", job.started_ns, job.ended_ns))
    for name, start_ns, end_ns in parts:
        yield ReadableSpan(
            name=name,
            context=_context(job.trace_id, new_id(8)),
            parent=context,
            resource=resource,
            start_time=start_ns,
            end_time=end_ns,
            instrumentation_scope=SCOPE,
        )


def _context(trace_id: str, span_id: str, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote, TraceFlags(TraceFlags.SAMPLED))
