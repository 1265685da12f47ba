"""Encoding in pieces: the same bytes as the plain encoder, and no copy of a big buffer."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.wire.values import BIG_BUFFER, copy_into, keeps_views, pieces, total_length

BIG = bytes(range(256)) * (BIG_BUFFER // 256)


class Picture(msgspec.Struct, frozen=True, tag="picture", rename="camel", omit_defaults=True):
    pixel_data: bytes | bytearray | memoryview
    caption: str = ""
    thumbnails: list[bytes] = []

    def __post_init__(self) -> None:
        if isinstance(self.pixel_data, msgspec.Raw):
            raise TypeError("a picture is made of bytes")


KINDS = {
    "none": b"",
    "small": b"small",
    "big": BIG,
    "odd": BIG + b"!",
    "array": bytearray(BIG),
    "view": memoryview(BIG)[5:],
}
buffers = st.sampled_from(sorted(KINDS)).map(KINDS.__getitem__)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | buffers,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(), inner, max_size=5)
        | st.tuples(inner, inner)
        | st.builds(Picture, buffers, st.text(), st.lists(buffers, max_size=3))
    ),
    max_leaves=20,
)


@given(values)
def test_the_pieces_joined_are_what_the_plain_encoder_makes(value: Any) -> None:
    parts = pieces(value)
    plain = msgspec.msgpack.encode(value)
    assert b"".join(parts) == plain
    assert total_length(parts) == len(plain)
    room = memoryview(bytearray(len(plain) + 7))
    assert copy_into(room, parts) == len(plain)
    assert room[: len(plain)] == plain


@pytest.mark.parametrize(
    "value", [BIG, {"a": {"b": [1, (BIG, 2)]}}, Picture(BIG), [Picture(b"", thumbnails=[b"", BIG])]]
)
def test_a_big_buffer_is_not_copied(value: Any) -> None:
    assert any(isinstance(part, memoryview) and part.obj is BIG for part in pieces(value))


def test_a_value_is_not_changed_by_encoding_it() -> None:
    inner = {"data": BIG}
    picture = Picture(BIG)
    value = [inner, picture]
    pieces(value)
    assert value[0] is inner
    assert inner == {"data": BIG}
    assert picture.pixel_data is BIG


def test_a_buffer_of_numbers_counts_in_bytes() -> None:
    numbers = memoryview(bytearray(BIG_BUFFER)).cast("d")
    assert b"".join(pieces(numbers)) == msgspec.msgpack.encode(bytes(BIG_BUFFER))


def test_a_long_list_is_encoded_without_a_search() -> None:
    assert len(pieces([1.5] * 100_000 + [BIG])) == 1


def test_what_cannot_be_encoded_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        pieces({"data": BIG, "what": object()})


class Holder(msgspec.Struct):
    inner: "dict[str, list[Holder | None]]"
    body: memoryview | None = None


class Free(msgspec.Struct):
    inner: "list[Free]"
    body: bytes = b""
    anything: Any = None


@pytest.mark.parametrize("type", [memoryview, msgspec.Raw, Holder, list[Holder], dict[str, memoryview | int]])
def test_types_that_keep_pointing_into_the_buffer_are_known(type: Any) -> None:
    assert keeps_views(type)


@pytest.mark.parametrize("type", [bytes, bytearray, str, Free, Any, dict[str, Free], int | None])
def test_types_that_copy_what_they_take_are_known(type: Any) -> None:
    assert not keeps_views(type)
