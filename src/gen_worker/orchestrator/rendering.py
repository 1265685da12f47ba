"""What the HTTP API says: payloads from JSON, jobs, events and workers to JSON. Pure.

A payload is turned into msgpack once, an output from msgpack once. Bytes are base64 in JSON; a file that the job has
stored gets a `url`. What comes is counted before it becomes objects, from callers and from workers alike.
"""

import base64
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec

from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.views import JobEvent, JobView, WorkerView

MSGPACK_TYPES = ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack")
MOST_CONTAINERS = 250_000  # of 64 bytes each, once they are objects
MOST_VALUES = 4_000_000
MOST_SHOWN = 1_000_000  # values of an output
SMALL_BYTES = 64 << 10  # what is shorter has too few values to be counted
_DEEPEST = 64  # where a file is still looked for
_DAMAGED = (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError, OverflowError, TypeError, MemoryError)

CODES = {
    200: "ok",
    400: "invalid",
    424: "unavailable",
    499: "canceled",
    500: "fatal",
    503: "retryable",
    504: "deadline",
}
"""What an ended job's HTTP status is called."""

# How msgpack is walked: the bytes that each header takes with what it says itself, how long the length of a string, of
# bytes or of an extension is that adds to them, and which headers begin a list or a map.
_LENGTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_SIZED = {0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}
_SIZED |= {0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18, 0xDC: 3, 0xDD: 5, 0xDE: 3, 0xDF: 5}
_SIZED |= {0xC7: 3, 0xC8: 4, 0xC9: 6} | {0xA0 + length: 1 + length for length in range(32)}
_STEPS = [_SIZED.get(head, 1 + _LENGTHS.get(head, 0)) for head in range(256)]
_CONTAINERS = frozenset((*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF))

Urls = Mapping[str, str]
"""Where the files of a job are had, by their refs."""


# --- payloads ---------------------------------------------------------------------------------------------------------


def payload_of(body: bytes, content_type: str = "application/json") -> bytes:
    """Return a payload as the msgpack map that workers take; raise `Refusal` for what cannot become one.

    msgpack goes on as it is, whatever it holds: the worker's child decodes it, and nobody before.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in MSGPACK_TYPES:
        return body
    if kind.startswith("multipart/"):
        raise Refusal(415, "unsupported", f"a payload is JSON or msgpack, not `{kind}`", "send it with `-d '{…}'`")
    return packed(decoded(body or b"{}"))


def decoded(body: bytes, kind: Any = Any) -> Any:
    """Return a JSON document as a value of a type; raise `Refusal` for what is none, or would fill the memory."""
    if _is_crowded(body, MOST_VALUES):
        raise Refusal(413, "too_large", "the document has too many values", "send long data as files or base64")
    try:
        return msgspec.json.decode(body, type=kind)
    except _DAMAGED as error:
        what = "JSON" if kind is Any else "what is asked for here"
        raise Refusal(400, "bad_request", f"that is not {what}: {_told(error)}") from None


def _is_crowded(document: bytes, most: int) -> bool:
    """Whether JSON has so many values that they would fill the memory."""
    return document.count(b"[") + document.count(b"{") > MOST_CONTAINERS or document.count(b",") > most


def packed(payload: object) -> bytes:
    """Return a payload's msgpack; raise `Refusal` for what is no object, or holds what msgpack does not."""
    if not isinstance(payload, dict):
        raise Refusal(400, "invalid", 'a payload is an object, as `{"text": "hi"}`')
    try:
        return msgspec.msgpack.encode(payload)
    except _DAMAGED as error:
        raise Refusal(400, "invalid", f"the payload cannot be sent: {_told(error)}") from None


def _told(error: BaseException) -> str:
    return "it is too deep" if isinstance(error, RecursionError) else str(error)[:200]


# --- outputs ----------------------------------------------------------------------------------------------------------


def is_shown(output: bytes, most: int = MOST_SHOWN) -> bool:
    """Whether the values of a msgpack are few enough to be shown one by one; takes a second for the longest.

    Headers follow one another without regard to what is in what, so counting needs neither objects nor depth.
    """
    at, values, containers, end = 0, 0, 0, len(output)
    while at < end and end > SMALL_BYTES:
        head = output[at]
        if head in _LENGTHS:
            at += int.from_bytes(output[at + 1 : at + 1 + _LENGTHS[head]])
        at += _STEPS[head]
        values += 1
        containers += head in _CONTAINERS
        if values > most or containers > MOST_CONTAINERS:
            return False
    return True


def value_of(output: bytes, urls: Urls) -> Any:
    """Return what a job gave, ready for JSON; what cannot be read, or has too many values, comes as base64."""
    if not is_shown(output):
        return _base64(output)
    try:
        value = with_urls(msgspec.msgpack.decode(output), urls)
        return msgspec.Raw(msgspec.json.encode(value))
    except _DAMAGED:
        return _base64(output)


def _base64(content: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(content).decode()}


def with_urls(value: Any, urls: Urls, depth: int = 0) -> Any:
    """Return the value with a `url` beside every `ref` of a file that is stored."""
    if depth > _DEEPEST:
        return value
    if isinstance(value, list):
        return [with_urls(each, urls, depth + 1) for each in value]
    if not isinstance(value, dict):
        return value
    found = {name: with_urls(each, urls, depth + 1) for name, each in value.items()}
    ref = value.get("ref")
    if isinstance(ref, str) and ref in urls and value.get("inline_bytes") is None:
        found["url"] = urls[ref]
    return found


def item_of(event: JobEvent, urls: Urls) -> Any:
    """Return the value of one chunk of a stream: of text its text."""
    kind = event.content_type.partition(";")[0]
    if kind == "text/plain":
        return event.body.decode("utf-8", "replace")
    if kind.endswith(("+msgpack", "/msgpack")):
        return value_of(event.body, urls)
    if kind == "application/json":
        return with_urls(_json_or_text(event.body), urls)
    return _base64(event.body)


# --- jobs -------------------------------------------------------------------------------------------------------------


def brief(job: JobView) -> dict[str, Any]:
    """Return what a list says of a job."""
    document: dict[str, Any] = {
        "request_id": job.request_id,
        "function": job.request.function,
        "status": job.status,
        "attempt": job.attempt,
        "created": job.created,
    }
    more = {
        "worker_id": job.worker_id,
        "tenant": job.request.tenant,
        "priority": job.request.priority,
        "started": job.started,
        "finished": job.finished,
        "canceling": job.canceling,
        "waiting_for": job.waiting_for,
    }
    document |= {name: value for name, value in more.items() if value}
    if job.ended and job.code != 200:
        document["error"] = failure(job)
    return document


def failure(job: JobView) -> dict[str, Any]:
    """Return why a job did not end well."""
    code = CODES.get(job.code, job.status)
    message = job.safe_message or f"the job ended `{job.status}`"
    return {"code": code, "message": message, "request_id": job.request_id, "attempt": job.attempt}


def whole(job: JobView, output: Any = msgspec.UNSET, output_url: str = "") -> dict[str, Any]:
    """Return everything about a job. `output` is what its function returned, `output_url` where that is too long."""
    document = brief(job)
    if job.progress is not None and not job.ended:
        document["progress"] = _json_or_text(job.progress)
    if job.metrics is not None:
        document["metrics"] = msgspec.to_builtins(job.metrics)
    if output is not msgspec.UNSET:
        document["output"] = output
    if output_url:
        document["output_url"] = output_url
    return document


def event_document(event: JobEvent, urls: Urls) -> dict[str, Any]:
    """Return what is told of an event that is not the last one."""
    document: dict[str, Any] = {"attempt": event.attempt}
    if event.kind == "chunk":
        kind = event.content_type
        return document | {"seq": event.seq, "content_type": kind, "value": item_of(event, urls)}
    if event.kind in ("progress", "log"):
        return document | {"value": _json_or_text(event.body)}
    return document


def sse(name: str, number: int, document: object) -> bytes:
    """Return one server-sent event; `number` is what a reader that comes back names as the last it has seen."""
    return b"event: %s\nid: %d\ndata: %s\n\n" % (name.encode(), number, msgspec.json.encode(document))


def _json_or_text(body: bytes) -> Any:
    if not _is_crowded(body, MOST_SHOWN):
        with suppress(*_DAMAGED):
            return msgspec.json.decode(body)
    return body.decode("utf-8", "replace")


# --- workers ----------------------------------------------------------------------------------------------------------


def worker(view: WorkerView) -> dict[str, Any]:
    """Return everything about a worker."""
    document: dict[str, Any] = msgspec.to_builtins(view)
    document["models"] = [
        {"ref": each.ref, "tier": each.tier.name.lower(), "vram_bytes": each.vram_bytes} for each in view.models
    ]
    return document


def functions(workers: list[WorkerView]) -> list[dict[str, Any]]:
    """Return what can be called, and on which workers."""
    found: dict[str, dict[str, Any]] = {}

    def entry(name: str) -> dict[str, Any]:
        return found.setdefault(name, {"name": name, "available": [], "loading": [], "unavailable": {}})

    for view in workers:
        for name in view.available_functions:
            entry(name)["available"].append(view.worker_id)
        for name in view.loading_functions:
            entry(name)["loading"].append(view.worker_id)
        for name, why in view.unavailable_functions.items():
            entry(name)["unavailable"][view.worker_id] = why
    return [found[name] for name in sorted(found)]
