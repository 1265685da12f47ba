"""Streams of several types of items: their schema, and when JSON could not tell them apart."""

import enum
import itertools
from typing import Any, Literal, Union

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_worker import BatchItemDelta, IncrementalTokenDelta
from gen_worker.discovery.schemas import schema_of
from gen_worker.discovery.unions import always_sent, confused, told_apart_by_tag


class Kind(enum.StrEnum):
    A = "a"
    B = "b"


NUMBERS = itertools.count()


def struct(*fields: Any, **options: Any) -> Any:
    return msgspec.defstruct(options.pop("name", f"Item{next(NUMBERS)}"), list(fields), **options)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (struct(("a", int)), struct(("b", int))),
        (struct(("a", int, 0)), struct(("b", int, 0))),
        (struct(("a", int)), struct(("a", int), ("b", int))),
        (struct(("a", int)), struct(("a", str))),
        (struct(("a", int | None)), struct(("a", list[int]))),
        (struct(("a", Literal["x"])), struct(("a", Literal["y", "z"]))),
        (struct(("a", Kind)), struct(("a", Literal["c"]))),
        (struct(("a", int), tag=True, name="One"), struct(("a", int), tag=True, name="Two")),
        (struct(("a", int), tag=True), struct(("a", int))),
        (struct(("a", int), tag=1), struct(("a", int), tag=2)),
        (struct(("a", int), array_like=True), struct(("a", int))),
        (struct(("a", int), array_like=True, tag="x"), struct(("a", int), array_like=True, tag="y")),
        (struct(("a", int), rename="upper"), struct(("a", int))),
        (IncrementalTokenDelta, BatchItemDelta),
    ],
)
def test_items_that_json_tells_apart_may_stream_together(one: Any, other: Any) -> None:
    assert confused((one, other)) is None
    assert len(schema_of(Union[one, other])["oneOf"]) == 2  # noqa: UP007 - of values


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (struct(("a", int)), struct(("a", int))),
        (struct(("a", int)), struct(("a", float))),
        (struct(("a", Any)), struct(("a", str))),
        (struct(("a", bytes)), struct(("a", str))),
        (struct(("a", Kind)), struct(("a", str))),
        (struct(("a", Literal["x", "y"])), struct(("a", Literal["y"]))),
        (struct(("a", int, 0), omit_defaults=True), struct(("a", int, 0), ("b", int, 0), omit_defaults=True)),
        (struct(("a", int | msgspec.UnsetType, msgspec.UNSET)), struct()),
        (struct(("a", int), array_like=True), struct(("b", str), array_like=True)),
        (struct(), struct()),
    ],
)
def test_items_that_json_cannot_tell_apart_are_named(one: Any, other: Any) -> None:
    third = struct(("other", str))
    assert confused((one, third)) is None or third.__struct_config__.array_like
    assert confused((one, other)) == (one, other)


def test_a_union_with_tags_says_which_field_tells_them_apart() -> None:
    cat = struct(("lives", int), tag=True, name="Cat")
    dog = struct(("name", str), tag=True, name="Dog")
    schema = schema_of(cat | dog)
    assert schema["oneOf"] == [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]
    assert schema["discriminator"] == {
        "propertyName": "type",
        "mapping": {"Cat": "#/$defs/Cat", "Dog": "#/$defs/Dog"},
    }
    assert told_apart_by_tag((cat, dog))
    assert always_sent(cat) == ["type", "lives"]


def test_a_union_without_tags_says_what_each_item_has() -> None:
    cat = struct(("lives", int, 9), name="Cat")
    dog = struct(("name", str), ("age", int, 0), omit_defaults=True, name="Dog")
    assert schema_of(cat | dog)["oneOf"] == [
        {"$ref": "#/$defs/Cat", "required": ["lives"], "unevaluatedProperties": False},
        {"$ref": "#/$defs/Dog", "required": ["name"], "unevaluatedProperties": False},
    ]


TYPES = st.sampled_from([int, str, bool, Literal["x"], Literal["x", "y"], Literal["y"], list[int], None])
FIELDS = st.tuples(st.sampled_from("abc"), TYPES, st.booleans()).map(
    lambda drawn: (drawn[0], drawn[1] | None, None) if drawn[2] and drawn[1] else drawn[:2]
)
STRUCTS = st.builds(
    lambda fields, omits: struct(*fields, omit_defaults=omits, kw_only=True),
    st.lists(FIELDS, max_size=3, unique_by=lambda field: field[0]),
    st.booleans(),
)
VALUES: dict[Any, list[Any]] = {int: [1], str: ["x", "q"], bool: [True], list[int]: [[1]], None: [None]}


@settings(deadline=None)  # the machine may be busy
@given(STRUCTS, STRUCTS, st.data())
def test_no_value_of_one_item_could_be_the_other_once_they_are_not_confused(
    one: Any, other: Any, data: st.DataObject
) -> None:
    value = one(**{
        field.name: data.draw(st.sampled_from(values_of(field.type)), label=field.name)
        for field in msgspec.structs.fields(one)
        if field.required or data.draw(st.booleans())
    })  # fmt: skip
    if confused((one, other)) is None:
        assert not could_be(msgspec.to_builtins(value), other)


def values_of(type_: Any) -> list[Any]:
    """Some values of a type."""
    if type_ in (None, type(None)):
        return [None]
    if type_ in VALUES:
        return VALUES[type_]
    if getattr(type_, "__origin__", None) is Literal:
        return list(type_.__args__)
    return [value for member in type_.__args__ for value in values_of(member)]


def could_be(sent: dict[str, Any], type_: Any) -> bool:
    """Whether some value of a type is sent like this."""
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(type_)}
    if not set(always_sent(type_)) <= set(sent) <= set(fields):
        return False
    try:
        msgspec.convert(sent, type_)
    except msgspec.ValidationError:
        return False
    return True


def test_two_types_of_one_name_are_an_error_and_not_a_mystery() -> None:
    with pytest.raises(TypeError, match="two types have the name of"):
        schema_of(struct(("one", struct(name="Same")), ("other", struct(("a", int), name="Same"))))
