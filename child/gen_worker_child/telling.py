"""What a job tells while it runs, in a form that a frame takes."""

import json
from collections.abc import Mapping

EVENT_CHARS = 8192
EVENT_PAYLOAD_CHARS = 16384
TYPE_CHARS = 100


def shortened(event: dict[str, object], name: str) -> dict[str, str]:
    """Return one text of an event, cut so that it fits a frame; nothing when it is not there."""
    return {name: str(event[name])[:EVENT_CHARS]} if name in event else {}


def of_type(event: dict[str, object]) -> dict[str, object]:
    """Return the type and the payload of an event that an earlier function told; nothing of any other."""
    if "type" not in event:
        return {}
    payload = json.loads(json.dumps(event["payload"], default=str))
    fits = len(json.dumps(payload)) <= EVENT_PAYLOAD_CHARS
    return {"type": str(event["type"])[:TYPE_CHARS], "payload": payload if fits else {"truncated": True}}


def described(kind: str, payload: Mapping[str, object]) -> dict[str, object]:
    """Return an event that is neither progress nor a log line as one of the log: what it is, and its facts."""
    name = kind.removeprefix("request.")
    level = "debug" if name == "upload_progress" else "info"
    return {"message": f"{name} {json.dumps(payload, default=str)}", "level": level, "type": kind, "payload": payload}


def encoded(value: Mapping[str, object]) -> bytes:
    """Return an event's value as JSON."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
