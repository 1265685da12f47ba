"""The page for host programs names every field of a line, and every status of the wire as it is given."""

import re
from pathlib import Path
from typing import get_args

from gen_worker.wire.messages import ErrorKind
from gen_worker.wire.scheduler import EVENT_TYPE, INLINE_ASSET_BYTES, INLINE_RESULT_BYTES, JobStatus
from gen_worker_supervisor.clients.ndjson import Request
from gen_worker_supervisor.core.outcomes import failure
from gen_worker_supervisor.link.answers import STATUS
from gen_worker_supervisor.link.jobs import MESSAGE_LIMIT

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "host-integration.md").read_text()


def section(title: str) -> str:
    """Return what stands below a heading."""
    return re.split(r"^#{2,3} ", PAGE.partition(f"# {title}\n")[2], flags=re.MULTILINE)[0]


def test_every_field_of_a_line_is_documented_and_no_other() -> None:
    first = re.findall(r"^\| `(\w+)` \|", section("Lines to the server"), re.MULTILINE)
    assert set(first) == set(Request.__struct_fields__) - {"cancel"}
    assert '{"cancel": {"request_id": "r1"}}' in section("Lines to the server")


def test_each_kind_of_error_has_the_status_that_is_told() -> None:
    rows = re.findall(r"^\| (.*`.*) \| `(\w+)` \|$", section("Over an orchestrator's wire"), re.MULTILINE)
    told: dict[str, set[str]] = {kind: set() for kind in get_args(ErrorKind)}
    for kinds, status in rows:
        for kind in re.findall(r"`(\w+)`", kinds):
            told[kind].add(status)
    rest = {kind for kind, statuses in told.items() if not statuses}
    assert rest == set(), "a kind that is not named"
    for kind in get_args(ErrorKind):
        given = {STATUS[failure(kind, "", retryable=again).state].name for again in (True, False)}
        if kind in ("model_resolution", "child_died"):
            assert (told[kind], given) == ({"RETRYABLE"}, {"RETRYABLE", "FATAL"})  # `FATAL` is of the rest
        elif kind in ("deadline", "user_exception", "quarantined", "internal"):
            assert told[kind] == {"FATAL"} <= given
        else:
            assert told[kind] == given, kind


def test_what_the_wire_carries_is_told_with_its_limits() -> None:
    wire = section("Over an orchestrator's wire")
    assert EVENT_TYPE in wire
    assert (INLINE_RESULT_BYTES, INLINE_ASSET_BYTES, MESSAGE_LIMIT) == (64 << 10, 4 << 20, 48 << 20)
    for amount in ("64 KiB", "4 MiB", "48 MiB"):
        assert amount in wire
    assert {status.name for status in JobStatus} - {"UNSPECIFIED", "OK"} <= set(re.findall(r"`([A-Z]+)`", wire))
