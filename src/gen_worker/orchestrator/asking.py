"""What callers of the HTTP API ask for, checked."""

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from starlette.requests import Request

from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.views import JobRequest
from gen_worker.tracing import known
from gen_worker.wire.scheduler import ModelBinding, OutputMode

MOST_WAIT_S = 3600.0
MOST_PRIORITY = 1 << 31
_REQUEST_ID = re.compile(r"(?!\.{1,2}$)[\w.:-]{1,200}", re.ASCII)  # a client takes `.` and `..` out of a path


class Submission(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /v1/jobs`."""

    function: str
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    request_id: str = ""
    tenant: str = ""
    invoker_id: str = ""
    timeout_ms: int = 0
    output: Literal["url", "inline"] = "url"
    models: dict[str, str] = {}
    priority: int = 0
    wait: float = 0.0


def request_of(asked: Submission, payload: bytes, headers: Mapping[str, str] = {}) -> JobRequest:
    """Return what is asked for, for the control plane; raise `Refusal` for what cannot be meant."""
    if asked.request_id and not _REQUEST_ID.fullmatch(asked.request_id):
        text = "`request_id` has 1 to 200 letters, digits, `.`, `:`, `_` and `-`, and is not `.` or `..`"
        raise Refusal(400, "bad_request", text)
    wrong = {
        "`function` is a name of at most 200 characters": not 0 < len(asked.function) <= 200,
        "`timeout_ms` is a number of milliseconds, 0 or more": asked.timeout_ms < 0,
        f"`priority` is a number from {-MOST_PRIORITY} to {MOST_PRIORITY}": abs(asked.priority) > MOST_PRIORITY,
    }
    for text in (text for text, is_wrong in wrong.items() if is_wrong):
        raise Refusal(400, "bad_request", text)
    if any(len(text) > 200 or not text.isprintable() for text in (asked.tenant, asked.invoker_id)):
        raise Refusal(400, "bad_request", "`tenant` and `invoker_id` have at most 200 characters")
    return JobRequest(
        function=asked.function,
        payload=payload,
        request_id=asked.request_id,
        tenant=asked.tenant,
        invoker_id=asked.invoker_id,
        timeout_ms=asked.timeout_ms,
        output_mode=OutputMode.INLINE if asked.output == "inline" else OutputMode.URL,
        models=tuple(ModelBinding(slot=slot, ref=ref) for slot, ref in asked.models.items()),
        priority=asked.priority,
        traceparent=known(headers.get("traceparent", "")),
    )


def from_query(request: Request) -> Submission:
    """Return what the path and the query of `POST /v1/run/<function>` say."""
    given: dict[str, Any] = dict(request.query_params)
    if "x-request-id" in request.headers:
        given.setdefault("request_id", request.headers["x-request-id"])
    given |= {"function": request.path_params["function"]}
    given.pop("payload", None)
    try:
        asked = msgspec.convert(given, Submission, strict=False)
    except msgspec.ValidationError as error:
        raise Refusal(400, "bad_request", *_wrong(error)) from None
    seconds_of(asked.wait, "wait")
    return asked


def _wrong(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return what is wrong with a query, and what it may say."""
    text, _, place = str(error).partition(" - at `$.")
    name = place.rstrip("`")
    if not name:
        known = ", ".join(f"`{each}`" for each in Submission.__struct_fields__ if each not in ("function", "payload"))
        return f"the query is not understood: {text[:1].lower()}{text[1:]}", f"it may say {known}"
    values = {"output": "`url` or `inline`", "wait": "a number of seconds", "timeout_ms": "a number of milliseconds"}
    return f"`{name}` is wrong: {text[:1].lower()}{text[1:]}", values.get(name, "")


def seconds_of(value: object, name: str) -> float:
    """Return a number of seconds to wait; raise `Refusal` for what is none."""
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MOST_WAIT_S:
        raise Refusal(400, "bad_request", f"`{name}` is a number of seconds from 0 to {MOST_WAIT_S:.0f}")
    return seconds


def preferred_wait(request: Request) -> float:
    """Return the seconds of `Prefer: wait=N`; 0 without it."""
    found = re.search(r"(?:^|[,;\s])wait=(\d{1,4})\b", request.headers.get("prefer", ""))
    return min(float(found[1]), MOST_WAIT_S) if found else 0.0
