"""What a person is told to write instead, where a function did not take a payload or could not work with it."""

from typing import Any, Literal

import msgspec
import pytest

from gen_worker.api.types import Asset, ImageAsset
from gen_worker.cli.advice import advice, advised
from gen_worker.cli.failure import CANCELED, USAGE, USER_CODE, Failure


class Layer(msgspec.Struct):
    mask: Asset
    name: str = ""


class Order(msgspec.Struct):
    prompt: str
    steps: int
    image: ImageAsset | None = None
    images: list[Asset] = []
    layers: list[Layer] = []
    by_name: dict[str, Asset] = {}
    front: Layer | None = None
    sizes: list[int] = []
    style: dict[str, int] = {}
    raw: bytes = b""
    mode: Literal["fast", "slow"] = "fast"


class Source(msgspec.Struct):
    ref: str


SCHEMA = msgspec.json.schema(Order)
GOOD: dict[str, Any] = {"prompt": "a", "steps": 1}


def refusal(payload: dict[str, Any], type: Any = Order) -> str:
    with pytest.raises(msgspec.ValidationError) as raised:
        msgspec.json.decode(msgspec.json.encode(payload), type=type)
    return f"`order` does not take this payload: {raised.value}"


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        ({"steps": 1}, "write `prompt=…`"),
        ({"prompt": "a"}, "write `steps=…`"),
        (GOOD | {"front": {}}, "write `front.mask@PATH`, a file"),
        (GOOD | {"image": {}}, "write `image.ref=…`"),
        (GOOD | {"image": "cat.png"}, "write `image@cat.png`"),
        (GOOD | {"image": "https://a.b/cat.png?X-Signature=1"}, "write `image.ref=https://a.b/cat.png?…`"),
        (GOOD | {"image": ""}, "write `image@PATH`"),
        (GOOD | {"images": ["cat.png"]}, "write `images@cat.png`"),
        (GOOD | {"images": ["https://a.b/c"]}, 'write `images:=[{"ref": "https://a.b/c"}]`'),
        (GOOD | {"front": {"mask": "cat.png"}}, "write `front.mask@cat.png`"),
        (GOOD | {"raw": "?"}, "`raw@PATH` is the content of a file"),
        (GOOD | {"mode": "best"}, "it is one of `fast`, `slow`"),
        (GOOD | {"steps": "many"}, ""),
        (GOOD | {"image": 5}, ""),
        (GOOD | {"images": [{}]}, ""),
        (GOOD | {"layers": [{"mask": "cat.png"}]}, ""),
        (GOOD | {"layers": [{}]}, ""),
        (GOOD | {"by_name": {"a": "cat.png"}}, ""),
        (GOOD | {"style": {"a": "b"}}, ""),
    ],
)
def test_what_is_wrong_in_a_payload_is_told_as_the_words_that_mend_it(payload: dict[str, Any], told: str) -> None:
    assert advice(refusal(payload), payload, SCHEMA) == told


def test_a_missing_list_is_written_as_json_and_an_object_by_its_first_member() -> None:
    several = msgspec.defstruct(
        "Several",
        [
            ("sizes", list[int]),
            ("style", dict[str, int]),
            ("images", list[Asset]),
            ("source", Source),
            ("layer", Layer),
        ],
    )
    schema = msgspec.json.schema(several)
    given: dict[str, Any] = {}
    for field, value, told in (
        ("sizes", [], "write `sizes:=[…]`"),
        ("style", {}, "write `style:={…}`"),
        ("images", [], "write `images@PATH`, a file"),
        ("source", {"ref": "a/b"}, "write `source.ref=…`"),
        ("layer", {"mask": {"ref": "a"}}, "write `layer.mask@PATH`, a file"),
    ):
        assert advice(refusal(given, several), given, schema) == told
        given = given | {field: value}


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        ({"image": {"ref": "cat.png"}}, "`cat.png` is only a name there; `image@cat.png` passes the file"),
        ({"images": [{"ref": "cat.png"}]}, "`cat.png` is only a name there; `images@cat.png` passes the file"),
        ({"front": {"mask": {"ref": "cat.png"}}}, "`cat.png` is only a name there; `front.mask@cat.png` passes the"),
        ({"layers": [{"mask": {"ref": "cat.png"}}]}, "`cat.png` is only a name there; a `local_path` beside its `ref`"),
        ({"image": {"ref": "https://a.b/cat.png"}}, ""),
        ({"image": {"ref": "cat.png", "local_path": "/gone/cat.png"}}, ""),
        ({"image": None}, ""),
        ({"image": 5, "images": 5, "front": [], "unknown": {"ref": "cat.png"}}, ""),
    ],
)
@pytest.mark.parametrize("message", ["`cat.png` has no file on this machine", "TypeError: not NoneType"])
def test_a_file_that_is_only_named_is_told_to_be_passed(payload: dict[str, Any], told: str, message: str) -> None:
    found = advice(message, payload, SCHEMA, lambda path: path == "cat.png")
    assert found.startswith(told)
    assert bool(found) == bool(told)


def test_a_name_of_nothing_is_told_how_files_are_passed() -> None:
    payload = {"image": {"ref": "cat"}}
    told = "`image@PATH` passes a file of this machine, `image.ref=https://…` one from elsewhere"
    assert advice("`cat` has no file on this machine", payload, SCHEMA, lambda _: False) == told
    assert advice("`dog` has no file on this machine", payload, SCHEMA, lambda _: True) == ""
    assert advice("RuntimeError: boom", payload, SCHEMA, lambda _: False) == ""
    assert advice("anything - at `$.image`", payload, None) == ""


def test_only_a_failure_that_a_payload_may_be_the_reason_of_is_advised(tmp_path: Any) -> None:
    cat = tmp_path / "cat.png"
    cat.touch()

    def hint(failure: Failure) -> str:
        with pytest.raises(Failure) as raised, advised({"image": {"ref": str(cat)}}, SCHEMA):
            raise failure
        return raised.value.hint

    assert f"image@{cat}" in hint(Failure(f"FileNotFoundError: '{cat}'", code=USER_CODE))
    assert hint(Failure("RuntimeError: boom", code=USER_CODE)) == ""
    assert f"image@{cat}" in hint(Failure(f"`{cat}` has no file on this machine", "its line", code=USAGE))
    assert hint(Failure("the child died", "look at its log", code=USER_CODE)) == "look at its log"
    assert hint(Failure("canceled", code=CANCELED)) == ""


def test_a_payload_of_any_depth_is_looked_through() -> None:
    tree = nested(5000)
    assert advice("NoneType", {"anything": tree, "image": {"ref": "cat"}}, SCHEMA, lambda _: True).startswith("`cat`")
    assert advice("NoneType", {"layers": tree}, SCHEMA, lambda _: True) == ""


@pytest.mark.parametrize(
    "schema", [{}, {"$ref": "#"}, {"properties": 5}, {"anyOf": [{"$ref": "#"}]}, {"$ref": "#/a/b"}]
)
@pytest.mark.parametrize(
    "message", ["Object missing required field `a`", "no - at `$.a.b[0].c`", "NoneType", "it - at `$[...].x`"]
)
def test_a_schema_from_anywhere_gives_no_more_than_a_wrong_hint(schema: dict[str, Any], message: str) -> None:
    assert isinstance(advice(message, {"a": {"b": [1, {"ref": "x"}]}}, schema, lambda _: True), str)


def nested(depth: int) -> Any:
    value: Any = {"ref": "deep"}
    for _ in range(depth):
        value = [{"mask": value}]
    return value
