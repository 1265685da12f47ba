"""The messages of the earlier wire become bytes and come back as they were."""

import typing
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.pb import EARLIER_CONNECT
from gen_worker.pb import scheduler_pb2 as pb
from gen_worker.pb.convert_earlier import decode, encode
from gen_worker.wire import earlier

INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
WIDE = {"memory_bytes", "gpu_memory_bytes", "gpu_memory_used_bytes", "gpu_memory_free_bytes", "timeout_ms"}
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)


def values(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{name: field(name, hint) for name, hint in hints.items()})


def field(name: str, hint: Any) -> st.SearchStrategy[Any]:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return st.lists(field(name, arguments[0]), max_size=3).map(tuple)
    if typing.get_origin(hint) is Mapping:
        return st.dictionaries(TEXT, field(name, arguments[1]), max_size=3)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return values(hint)
    if hint is int:
        return INT64 if name in WIDE else INT32
    return TEXT if hint is str else st.from_type(hint)


KINDS = typing.get_args(earlier.Message)


@given(st.one_of(*map(values, KINDS)))
def test_every_message_comes_back_as_it_was(message: earlier.Message) -> None:
    assert decode(encode(message)) == message


def test_every_field_of_the_proto_is_one_of_its_value() -> None:
    for kind in (*KINDS, earlier.WorkerResources, earlier.FunctionSchema):
        assert kind.__struct_fields__ == tuple(getattr(pb, kind.__name__).DESCRIPTOR.fields_by_name)


def test_the_numbers_are_those_of_the_wire() -> None:
    numbers = {field.name: field.number for field in pb.WorkerSchedulerMessage.DESCRIPTOR.fields}
    assert list(numbers.values()) == [1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 14, 15, 16, 17]
    service = pb.DESCRIPTOR.services_by_name["SchedulerWorkerService"]
    assert f"/{service.full_name}/{service.methods[0].name}" == EARLIER_CONNECT


def test_what_is_no_envelope_is_told_and_one_with_nothing_known_is_nothing() -> None:
    assert decode(b"") is None
    assert decode(b"\xaa\x06\x03abc") is None
    with pytest.raises(DecodeError):
        decode(b"\xff\xff\xff")


def test_neither_tokens_nor_payloads_are_told() -> None:
    request = earlier.TaskExecutionRequest(run_id="r", input_payload=b"hidden-1", file_token="hidden-2")
    opened = earlier.RealtimeOpenCommand(session_id="s", file_token="hidden-3")
    assert "hidden" not in f"{request!r} {opened!r}"
