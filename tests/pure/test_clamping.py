"""Numbers of a payload are brought into the ranges of their Clamps, and the schema says which ranges those are."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, NewType, Optional, TypedDict

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_worker.api.clamping import clamping_of
from gen_worker.api.payload_constraints import Clamp
from gen_worker.discovery.schemas import schema_of

Steps = NewType("Steps", Annotated[int, Clamp(1, 50)])


class Style(msgspec.Struct, frozen=True):
    strength: Annotated[float, Clamp(0, 1)] = 0.5


class Point(NamedTuple):
    x: Annotated[float, Clamp(-1, 1)]
    y: float = 9


class Table(TypedDict, total=False):
    weight: Annotated[float, Clamp(0, 2)]


@dataclasses.dataclass
class Noise:
    seed: Annotated[int, Clamp(0, 2**32 - 1)] = 0


class Oil(msgspec.Struct, tag=True):
    thickness: Annotated[int, Clamp(1, 3)]


class Water(msgspec.Struct, tag=True):
    thickness: Annotated[int, Clamp(4, 6)]


class Tree(msgspec.Struct):
    size: Annotated[int, Clamp(0, 9)] = 0
    children: list["Tree"] = []


class Payload(msgspec.Struct, rename="camel"):
    steps: Steps = Steps(20)
    cfg_scale: Annotated[float, Clamp(0.5, 20)] = 7
    strength: Annotated[float, Clamp(1, 8, cast="int")] = 2
    shortened: Annotated[float, Clamp(1.5, 8.5, cast="int", round="truncate")] = 2
    exact: Annotated[int, Clamp(0, 5, cast="float")] = 0
    maybe: Optional[Annotated[int, Clamp(2, 4)]] = None  # noqa: UP045 - as authors write it
    either: Annotated[int | float | str | None, Clamp(2, 4)] = None
    style: Style = Style()
    styles: list[Style] = []
    by_name: dict[str, Style] = {}
    pair: tuple[Annotated[int, Clamp(0, 1)], Annotated[float, Clamp(0, 1)]] = (0, 0.0)
    each: Annotated[list[float], Clamp(0, 1)] = []
    unique: frozenset[Annotated[int, Clamp(0, 3)]] = frozenset()
    nested: dict[str, list[tuple[Annotated[int, Clamp(0, 7)], ...]]] = {}
    paint: Oil | Water | None = None
    tree: Tree = msgspec.field(default_factory=Tree)
    point: Point = Point(0, 0)
    table: Table = msgspec.field(default_factory=Table)
    noise: Noise = msgspec.field(default_factory=Noise)
    sized: Annotated[int, msgspec.Meta(multiple_of=8, gt=0), Clamp(64, 2048)] = 512
    free: float = 0
    flag: bool = False


class Plain(msgspec.Struct):
    steps: int
    children: list["Plain"]


class Odd(msgspec.Struct):
    """What the other fields are not: half-open."""

    above: Annotated[float, msgspec.Meta(gt=0.25, lt=9), Clamp(0, 10, cast="int")] = 1
    below: Annotated[int, msgspec.Meta(gt=2), Clamp(0.5, 9.5)] = 3


def brought(type_: type, **fields: Any) -> Any:
    """Return a payload as the handler gets it."""
    clamping = clamping_of(type_)
    assert clamping is not None
    return clamping(msgspec.convert(fields, type_))


@pytest.mark.parametrize(
    ("field", "sent", "got"),
    [
        ("steps", 0, 1),
        ("steps", 10**30, 50),
        ("steps", 7, 7),
        ("cfgScale", 0.1, 0.5),
        ("cfgScale", float("inf"), 20.0),
        ("cfgScale", float("nan"), 20.0),
        ("cfgScale", float("-inf"), 0.5),
        ("strength", 2.5, 3),
        ("strength", 2.4999, 2),
        ("strength", 1e300, 8),
        ("shortened", 7.99, 7),
        ("shortened", 0.0, 2),
        ("shortened", 99.0, 8),
        ("exact", 3, 3.0),
        ("maybe", None, None),
        ("maybe", 9, 4),
        ("either", 9, 4),
        ("either", 0.5, 2.0),
        ("either", "nine", "nine"),
        ("each", [3.0, -1.0, 0.5], [1.0, 0.0, 0.5]),
        ("pair", (7, 7.0), (1, 1.0)),
        ("unique", [9, 8], frozenset({3})),
        ("nested", {"a": [[9, 3], []]}, {"a": [(7, 3), ()]}),
        ("free", 1e9, 1e9),
        ("flag", True, True),
    ],
)
def test_a_number_is_brought_into_its_range(field: str, sent: object, got: object) -> None:
    payload = brought(Payload, **{field: sent})
    value = getattr(payload, "cfg_scale" if field == "cfgScale" else field)
    assert (value, type(value)) == (got, type(got))


def test_numbers_are_found_wherever_they_stand() -> None:
    payload = brought(
        Payload,
        style={"strength": 3},
        styles=[{"strength": -3}],
        byName={"a": {"strength": 3}},
        paint={"type": "Water", "thickness": 0},
        tree={"size": -5, "children": [{"size": 99, "children": [{"size": 5}]}]},
        point=[5, 5],
        table={"weight": 9},
        noise={"seed": -1},
    )
    assert (payload.style, payload.styles, payload.by_name) == (Style(1), [Style(0)], {"a": Style(1)})
    assert payload.paint == Water(4)
    assert payload.tree == Tree(0, [Tree(9, [Tree(5)])])
    assert (payload.point, payload.table, payload.noise) == (Point(1, 5), {"weight": 2}, Noise(0))


def test_a_payload_in_range_stays_the_same_object() -> None:
    clamping = clamping_of(Payload)
    assert clamping is not None
    payload = clamping(Payload())
    assert clamping(payload) is payload


def test_a_default_that_others_share_is_not_changed() -> None:
    shared = Style(7)

    class Shares(msgspec.Struct):
        style: Style = shared

    assert brought(Shares).style == Style(1)
    assert shared == Style(7)


def test_a_type_without_a_clamp_has_no_plan() -> None:
    assert clamping_of(Plain) is None


def test_a_boolean_is_no_number() -> None:
    class Flags(msgspec.Struct):
        either: Annotated[bool | int, Clamp(2, 4)]

    assert brought(Flags, either=True).either is True
    assert brought(Flags, either=1).either == 2


def test_the_constraints_of_msgspec_still_refuse() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"multiple of 8|`int` that's a multiple"):
        brought(Payload, sized=65)
    assert brought(Payload, sized=8).sized == 64


# --- marks that make no sense -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        (Annotated[str, Clamp(0, 1)], "marks something that is no number"),
        (Annotated[list[str], Clamp(0, 1)], "marks something that is no number"),
        (Annotated[Style, Clamp(0, 1)], "marks something that is no number"),
        (list[Annotated[bool, Clamp(0, 1)]], "marks something that is no number"),
        (Annotated[int, Clamp(0.2, 0.8)], "leaves no whole number"),
        (Annotated[float, Clamp(0.2, 0.8, cast="int")], "leaves no whole number"),
        (Annotated[float, Clamp(0, 1), msgspec.Meta(ge=2)], "leaves no number"),
        (Annotated[float, Clamp(0, 1), msgspec.Meta(gt=1)], "leaves no number"),
        (Annotated[int, Clamp(3, 4), msgspec.Meta(lt=3)], "leaves no whole number"),
        (Annotated[int, Clamp(3, 64), msgspec.Meta(multiple_of=8)], "multiples of 8"),
    ],
)
def test_a_clamp_that_cannot_work_is_told_with_its_field(annotation: Any, told: str) -> None:
    inner = msgspec.defstruct("Inner", [("size", annotation)])
    outer = msgspec.defstruct("Outer", [("inners", list[inner])])  # type: ignore[valid-type]
    with pytest.raises(ValueError, match=rf"^the field `Inner\.size`: .*{told}"):
        clamping_of(outer)


# --- the schema -------------------------------------------------------------------------------------------------------


def defined(type_: type, name: str) -> dict[str, Any]:
    properties: dict[str, Any] = schema_of(type_)["$defs"][name]["properties"]
    return properties


def test_the_schema_tells_the_ranges() -> None:
    payload = defined(Payload, "Payload")
    assert payload["steps"] == {"type": "integer", "minimum": 1, "maximum": 50, "default": 20}
    assert payload["cfgScale"] == {"type": "number", "minimum": 0.5, "maximum": 20, "default": 7}
    assert payload["shortened"] == {"type": "number", "minimum": 2, "maximum": 8, "default": 2}
    assert payload["maybe"]["anyOf"][0] == {"type": "integer", "minimum": 2, "maximum": 4}
    assert payload["each"]["items"] == {"type": "number", "minimum": 0, "maximum": 1}
    assert payload["pair"]["prefixItems"][1] == {"type": "number", "minimum": 0, "maximum": 1}
    assert payload["sized"] == {
        "type": "integer", "minimum": 64, "maximum": 2048, "multipleOf": 8, "default": 512,
    }  # fmt: skip
    assert payload["free"] == {"type": "number", "default": 0}
    assert defined(Payload, "Style")["strength"]["maximum"] == 1
    assert defined(Payload, "Noise")["seed"]["maximum"] == 2**32 - 1
    assert defined(Payload, "Water")["thickness"] == {"type": "integer", "minimum": 4, "maximum": 6}


def test_the_schema_shows_a_default_as_the_handler_gets_it() -> None:
    class Eager(msgspec.Struct):
        steps: Annotated[int, Clamp(1, 50)] = 100

    assert defined(Eager, "Eager")["steps"]["default"] == brought(Eager).steps == 50


def test_a_field_of_an_array_has_its_range_too() -> None:
    class Pair(msgspec.Struct, array_like=True, tag=True):
        name: str
        steps: Annotated[int, Clamp(1, 5)]

    assert schema_of(Pair)["$defs"]["Pair"]["prefixItems"][2] == {"type": "integer", "minimum": 1, "maximum": 5}


NUMBERS = st.integers(-(2**64), 2**64) | st.floats() | st.integers(-3, 60)


def values_for(type_: type) -> st.SearchStrategy[dict[str, Any]]:
    """Payloads of any numbers."""
    whole, any_number = st.integers(-(10**9), 10**9), st.floats() | st.integers(-100, 100)
    style = st.fixed_dictionaries({}, optional={"strength": any_number})
    tree = st.deferred(
        lambda: st.fixed_dictionaries({}, optional={"size": whole, "children": st.lists(tree, max_size=2)})
    )
    fields: dict[str, st.SearchStrategy[Any]] = {
        "steps": whole, "cfgScale": any_number, "strength": any_number, "shortened": any_number, "exact": whole,
        "maybe": st.none() | whole, "either": st.none() | any_number | st.text(max_size=2), "style": style,
        "styles": st.lists(style, max_size=3), "byName": st.dictionaries(st.text(max_size=2), style, max_size=2),
        "pair": st.tuples(whole, any_number), "each": st.lists(any_number, max_size=4),
        "unique": st.lists(whole, max_size=3), "tree": tree, "point": st.tuples(any_number, any_number),
        "table": st.fixed_dictionaries({}, optional={"weight": any_number}),
        "noise": st.fixed_dictionaries({}, optional={"seed": whole}), "sized": st.integers(1, 999).map(lambda n: n * 8),
        "paint": st.none() | st.fixed_dictionaries({"type": st.sampled_from(["Oil", "Water"]), "thickness": whole}),
        "nested": st.dictionaries(st.text(max_size=1), st.lists(st.lists(whole, max_size=3), max_size=2), max_size=2),
    }  # fmt: skip
    odd = {"above": st.floats(0.25, 9, exclude_min=True, exclude_max=True), "below": st.integers(3, 99)}
    return st.fixed_dictionaries({}, optional=fields if type_ is Payload else odd)


@pytest.mark.parametrize("type_", [Payload, Odd])
def test_every_payload_satisfies_the_published_schema_once_it_is_brought_into_range(type_: Any) -> None:
    schema, clamping = schema_of(type_), clamping_of(type_)
    assert clamping is not None

    @settings(deadline=None)  # the machine may be busy
    @given(values_for(type_))
    def check(fields: dict[str, Any]) -> None:
        value = clamping(msgspec.convert(fields, type_))
        assert fits(msgspec.to_builtins(value), schema, schema["$defs"]), value
        assert clamping(value) == value or value != value  # it stays where it is

    check()


# --- as much of JSON schema as ours use -------------------------------------------------------------------------------

_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list | tuple),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


def fits(value: Any, schema: Any, definitions: dict[str, Any]) -> bool:
    """Whether a value satisfies a schema."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema and not fits(value, definitions[schema["$ref"].removeprefix("#/$defs/")], definitions):
        return False
    if "anyOf" in schema and not any(fits(value, each, definitions) for each in schema["anyOf"]):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "type" in schema and not _TYPES[schema["type"]](value):
        return False
    return fits_number(value, schema) and fits_parts(value, schema, definitions)


def fits_number(value: Any, schema: dict[str, Any]) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    checks: dict[str, Callable[[float], bool]] = {
        "minimum": lambda bound: value >= bound,
        "maximum": lambda bound: value <= bound,
        "exclusiveMinimum": lambda bound: value > bound,
        "exclusiveMaximum": lambda bound: value < bound,
        "multipleOf": lambda step: math.fmod(value, step) == 0,
    }
    return all(check(schema[name]) for name, check in checks.items() if name in schema)


def fits_parts(value: Any, schema: dict[str, Any], definitions: dict[str, Any]) -> bool:
    if isinstance(value, dict):
        known = schema.get("properties", {})
        other = schema.get("additionalProperties", True)
        return all(fits(each, known.get(key, other), definitions) for key, each in value.items())
    if isinstance(value, list | tuple | frozenset):
        first = schema.get("prefixItems", [])
        return all(
            fits(each, first[number] if number < len(first) else schema.get("items", True), definitions)
            for number, each in enumerate(value)
        )
    return True


def test_schemas_are_documents() -> None:
    assert json.loads(msgspec.json.encode(schema_of(Payload)))["$ref"] == "#/$defs/Payload"
