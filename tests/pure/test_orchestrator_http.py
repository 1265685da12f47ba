"""What the control plane's HTTP API says, without a server."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from gen_worker.orchestrator import rendering
from gen_worker.orchestrator.http import PIECE_BYTES, Range, pieces, range_of, refused
from gen_worker.orchestrator.local_workers import names_of
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.views import JobEvent, JobRequest, JobView
from gen_worker.orchestrator.waiting import until_closed

URLS = {"a.png": "http://here/a.png"}
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def pack(value: object) -> bytes:
    return msgspec.msgpack.encode(value)


def job(code: int = 200, **fields: Any) -> JobView:
    request = JobRequest(function="f", request_id="r")
    return JobView(request=request, status="ok" if code == 200 else "fatal", code=code, **fields)


# --- payloads and outputs ---------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(), values))
def test_what_json_can_say_arrives_as_it_is(payload: dict[str, Any]) -> None:
    packed = rendering.payload_of(json.dumps(payload).encode())
    assert msgspec.msgpack.decode(packed) == payload
    assert json.loads(msgspec.json.encode(rendering.value_of(packed, {}))) == payload


@pytest.mark.parametrize("kind", ["application/msgpack", "application/x-msgpack; charset=x", "APPLICATION/vnd.msgpack"])
def test_msgpack_goes_on_unread(kind: str) -> None:
    assert rendering.payload_of(b"\xc1 anything", kind) == b"\xc1 anything"


@given(st.binary(max_size=200))
def test_no_body_is_anything_but_a_payload_or_refused(body: bytes) -> None:
    with suppress(Refusal):
        assert isinstance(msgspec.msgpack.decode(rendering.payload_of(body)), dict)


@given(st.binary(max_size=200))
def test_no_output_is_too_strange_to_be_shown(output: bytes) -> None:
    json.loads(msgspec.json.encode(rendering.value_of(output, URLS)))


@pytest.mark.parametrize(
    "output",
    [b"\xdd\x00\x04\x00\x00" + b"\x90" * (1 << 18), b"\xdd\x00\x10\x00\x00" + b"\x01" * (1 << 20)],
    ids=["lists", "numbers"],
)
def test_an_output_of_too_many_values_is_shown_unread(output: bytes) -> None:
    assert rendering.value_of(output, URLS) == {"base64": base64.b64encode(output).decode()}
    event = JobEvent(number=1, kind="chunk", attempt=1, content_type="application/x-batch-item+msgpack", body=output)
    assert rendering.item_of(event, URLS) == rendering.value_of(output, URLS)


def test_json_of_too_many_values_is_shown_as_text() -> None:
    body = b"[" + b"[]," * (1 << 18) + b"[]]"
    event = JobEvent(number=1, kind="chunk", attempt=1, content_type="application/json", body=body)
    assert rendering.item_of(event, URLS) == body.decode()


def test_long_bytes_are_one_value_whatever_is_in_them() -> None:
    output: dict[str, Any] = {"raw": b"\x90" * (4 << 20), "numbers": [0.5] * 200_000}
    shown = json.loads(msgspec.json.encode(rendering.value_of(pack(output), URLS)))
    assert base64.b64decode(shown["raw"]) == output["raw"]
    assert shown["numbers"] == output["numbers"]


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 5, -5, 200, 60_000, 2**31, 2**40, -100, -30_000, -(2**31), -(2**40), 0.5),
        *("a", "a" * 31, "a" * 200, "a" * 300, "a" * 70_000, b"\x90" * 9, b"\x90" * 300, b"\x90" * 70_000),
        *(msgspec.msgpack.Ext(5, b"\x90" * length) for length in (1, 2, 3, 4, 8, 16, 17, 300, 70_000)),
    ],
    ids=lambda value: pack(value)[:1].hex(),
)
def test_the_values_of_an_output_are_counted_whatever_they_are(value: object) -> None:
    count = 70_000 // len(pack(value)) + 2
    listed, mapped = pack([value] * count), pack([{"k": value}] * count)
    assert rendering.is_shown(listed, 1 + count)
    assert not rendering.is_shown(listed, count)
    assert rendering.is_shown(mapped, 1 + 3 * count)
    assert not rendering.is_shown(mapped, 3 * count)


def test_bytes_are_base64_and_files_have_urls() -> None:
    output = {"raw": b"\0", "images": [{"ref": "a.png", "size_bytes": 3}, {"ref": "b.png"}], "ref": 5}
    shown = json.loads(msgspec.json.encode(rendering.value_of(pack(output), URLS)))
    assert shown == {
        "raw": "AA==",
        "images": [{"ref": "a.png", "size_bytes": 3, "url": "http://here/a.png"}, {"ref": "b.png"}],
        "ref": 5,
    }


def test_a_file_that_is_in_the_answer_needs_no_url() -> None:
    asset = {"ref": "a.png", "inline_bytes": b"abc"}
    assert rendering.with_urls(asset, URLS) == asset


@pytest.mark.parametrize(
    ("kind", "body", "value"),
    [
        ("text/plain", b"h\xc3\xa4", "hä"),
        ("text/plain; charset=utf-8", b"\xff", "\ufffd"),
        ("application/json", b'{"ref":"a.png"}', {"ref": "a.png", "url": "http://here/a.png"}),
        ("application/json", b"{", "{"),
        ("application/x-batch-item+msgpack", pack({"chunk": b"\0"}), {"chunk": "AA=="}),
        ("image/png", b"abc", {"base64": base64.b64encode(b"abc").decode()}),
    ],
)
def test_an_item_is_shown_by_its_type(kind: str, body: bytes, value: object) -> None:
    event = JobEvent(number=1, kind="chunk", attempt=1, seq=1, content_type=kind, body=body)
    assert json.loads(msgspec.json.encode(rendering.item_of(event, URLS))) == value


def test_a_server_sent_event_is_one_line_of_data() -> None:
    sent = rendering.sse("log", 7, {"text": "two\nlines"})
    assert sent == b'event: log\nid: 7\ndata: {"text":"two\\nlines"}\n\n'


@pytest.mark.parametrize("code", [400, 424, 499, 500, 503, 504])
def test_every_bad_end_has_a_word_and_a_sentence(code: int) -> None:
    failure = rendering.failure(job(code))
    assert failure["code"] == rendering.CODES[code]
    assert failure["message"]
    assert rendering.whole(job(code))["error"] == failure
    assert "error" not in rendering.whole(job())


# --- bodies -----------------------------------------------------------------------------------------------------------


def body(pause_s: float, *parts: bytes) -> Request:
    coming = [{"type": "http.request", "body": part, "more_body": True} for part in parts]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause_s)
        return coming.pop(0) if coming else {"type": "http.request", "body": b"", "more_body": False}

    return Request({"type": "http", "method": "PUT", "headers": []}, receive)


def test_a_body_comes_in_pieces_that_are_the_same_together() -> None:
    async def go() -> list[bytes]:
        sent = [bytes([n]) * 10_000 for n in range(250)]
        return [piece async for piece in pieces(body(0.0, *sent, b""))]

    found = asyncio.run(go())
    assert [len(piece) // PIECE_BYTES for piece in found] == [1, 1, 0]
    assert b"".join(found) == b"".join(bytes([n]) * 10_000 for n in range(250))


def test_a_body_that_comes_a_byte_at_a_time_is_given_up() -> None:
    async def go() -> None:
        async for _ in pieces(body(0.01, *[b"x"] * 1000), quiet_s=0.1):
            raise AssertionError("a piece came")

    with pytest.raises(Refusal) as raised:
        asyncio.run(go())
    assert raised.value.status == 408


# --- ranges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("bytes=0-0", Range(0, 1)),
        ("bytes=2-4", Range(2, 5)),
        ("bytes=2-", Range(2, 10)),
        ("bytes=2-99", Range(2, 10)),
        ("bytes=-3", Range(7, 10)),
        ("bytes=-99", Range(0, 10)),
        ("Bytes = 1-2", Range(1, 3)),
        ("bytes=0-1,3-4", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("bytes=1", None),
        ("items=0-1", None),
        ("", None),
        (f"bytes={'9' * 40}-", None),
    ],
)
def test_one_range_is_taken_and_anything_else_means_the_whole(header: str, found: Range | None) -> None:
    assert range_of(header, 10) == found


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=99-100", "bytes=5-4", "bytes=-0"])
def test_a_range_outside_of_the_file_is_refused(header: str) -> None:
    with pytest.raises(Refusal) as raised:
        range_of(header, 10)
    assert raised.value.status == 416


@given(st.text(max_size=30), st.integers(0, 100))
def test_a_range_lies_within_the_file(text: str, size: int) -> None:
    try:
        found = range_of(f"bytes={text}", size)
    except Refusal:
        return
    assert found is None or 0 <= found.start < found.stop <= size


# --- waiting ----------------------------------------------------------------------------------------------------------


class Events:
    """A source of events that says whether it was closed."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[int | None] = asyncio.Queue()
        self.closed = False

    async def __call__(self) -> AsyncIterator[int]:
        try:
            while (event := await self.queue.get()) is not None:
                yield event
        finally:
            self.closed = True


def test_events_come_with_signs_of_life_between_them_and_the_source_is_closed() -> None:
    async def scene() -> None:
        source, closed = Events(), asyncio.Event()
        events = until_closed(source(), closed, alive_s=0.01)
        assert await anext(events) is None
        source.queue.put_nowait(1)
        while (event := await anext(events)) is None:
            pass
        assert event == 1
        source.queue.put_nowait(None)
        assert [each async for each in events if each is not None] == []
        assert source.closed

    asyncio.run(scene())


def test_events_end_when_the_server_does() -> None:
    async def scene() -> None:
        source, closed = Events(), asyncio.Event()
        events = until_closed(source(), closed, alive_s=60.0)
        waiting = asyncio.ensure_future(anext(events, "the end"))
        await asyncio.sleep(0)
        closed.set()
        while (event := await waiting) is None:
            waiting = asyncio.ensure_future(anext(events, "the end"))
        assert event == "the end"
        assert source.closed

    asyncio.run(scene())


# --- names ------------------------------------------------------------------------------------------------------------


def test_workers_of_this_host_are_called_as_their_projects() -> None:
    projects = [Path("/a/tiny-diffusion"), Path("/b/two words"), Path("/b/tiny-diffusion"), Path("/")]
    assert names_of(projects) == ["tiny-diffusion-1", "two-words", "tiny-diffusion-2", "worker"]


@pytest.mark.promise(34)
@pytest.mark.parametrize("status", [429, 503])
def test_who_may_ask_again_is_told_when_in_whole_seconds(status: int) -> None:
    answer = refused(Refusal(status, "queue_full", "too many", retry_after_s=3.2))
    assert answer.headers["retry-after"] == "4"
    assert "retry-after" not in refused(Refusal(400, "bad_request", "no")).headers
