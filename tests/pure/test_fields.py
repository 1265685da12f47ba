"""The payload grammar: what each word after a command puts into the payload."""

import base64
import enum
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.api.types import Asset, ImageAsset, Tensors
from gen_worker.cli.failure import Failure
from gen_worker.cli.fields import payload_from
from gen_worker.cli.payload import LocalFiles


class Style(msgspec.Struct):
    name: str = "oil"
    weight: float = 1.0
    layers: dict[str, int] = {}


class Size(enum.Enum):
    SMALL = "small"
    BIG = "big"


class Paint(msgspec.Struct, tag="paint"):
    seed: int
    prompt: str
    steps: int = 20
    scale: float | None = None
    hd: bool = False
    sizes: list[int] = []
    style: Style | None = None
    options: dict[str, Any] = {}
    mask: bytes = b""
    mode: Literal["fast", "7"] = "fast"
    size: Size = Size.SMALL
    either: int | str | None = None
    anything: Any = None
    url: str = ""


SCHEMA = msgspec.json.schema(Paint)
FILES = {"cat.png": b"\x89PNG\xff", "prompt.txt": "ein Bär\n".encode(), "steps": b" 12 \n", "sizes.json": b"[1, 2]"}


class MadeUpFiles:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def read(self, path: str) -> bytes:
        self.seen.append(path)
        if path not in FILES:
            raise Failure(f"no file `{path}`")
        return FILES[path]

    def asset(self, path: str) -> dict[str, Any]:
        return {"ref": path, "size_bytes": len(self.read(path))}


def fields(*words: str, over: dict[str, Any] | None = None, schema: dict[str, Any] | None = SCHEMA) -> dict[str, Any]:
    return payload_from(words, over=over or {}, schema=schema, files=MadeUpFiles())


@pytest.mark.parametrize(
    ("word", "payload"),
    [
        ("prompt=a cat", {"prompt": "a cat"}),
        ("prompt=", {"prompt": ""}),
        ("prompt=5", {"prompt": "5"}),
        ("prompt=a@b", {"prompt": "a@b"}),
        ("prompt=x:=y", {"prompt": "x:=y"}),
        ("prompt=a\nb", {"prompt": "a\nb"}),
        ("steps=7", {"steps": 7}),
        ("steps=-7", {"steps": -7}),
        ("scale=7", {"scale": 7.0}),
        ("scale=1e-3", {"scale": 0.001}),
        ("scale=", {"scale": None}),
        ("scale=null", {"scale": None}),
        ("either=5", {"either": 5}),
        ("either=five", {"either": "five"}),
        ("hd=YES", {"hd": True}),
        ("hd=0", {"hd": False}),
        ("mode=7", {"mode": "7"}),
        ("size=big", {"size": "big"}),
        ("anything=null", {"anything": None}),
        ("anything=1.5", {"anything": 1.5}),
        ("anything=nan", {"anything": "nan"}),
        ("anything=1_0", {"anything": "1_0"}),
        ("sizes:=[1, 2]", {"sizes": [1, 2]}),
        ("sizes@sizes.json", {"sizes": [1, 2]}),
        ("style.weight=2", {"style": {"weight": 2.0}}),
        ("style.name=5", {"style": {"name": "5"}}),
        ("style.layers.sky=5", {"style": {"layers": {"sky": 5}}}),
        ("options.a.b=true", {"options": {"a": {"b": True}}}),
        ('style:={"name":"ink"}', {"style": {"name": "ink"}}),
        ("prompt@prompt.txt", {"prompt": "ein Bär\n"}),
        ("steps@steps", {"steps": 12}),
        ("mask@cat.png", {"mask": base64.b64encode(FILES["cat.png"]).decode()}),
        ("mask@prompt.txt", {"mask": base64.b64encode(FILES["prompt.txt"]).decode()}),
    ],
)
def test_a_word_becomes_a_value_of_its_fields_type(word: str, payload: dict[str, Any]) -> None:
    assert fields(word) == payload


@pytest.mark.parametrize("word", ["me@home.org", "hello", "x == y", "https://a.b/c?d=e", "@file", "1=1", "", "-"])
def test_a_word_that_names_no_field_is_the_primary_value(word: str) -> None:
    assert fields(word) == {"prompt": word}


@pytest.mark.parametrize(
    ("type", "field"),
    [
        (msgspec.defstruct("A", [("n", int), ("s", str)]), "s"),
        (msgspec.defstruct("B", [("n", int), ("s", str, "")]), "n"),
        (msgspec.defstruct("C", [("n", int, 1), ("s", str, "")]), "n"),
        (msgspec.defstruct("D", [("raw", bytes), ("n", int)]), "raw"),
        (msgspec.defstruct("E", [("kind", Literal["a", "b"])], tag=True), "kind"),
    ],
)
def test_the_primary_field_is_the_first_required_text_else_the_first_required_else_the_first(
    type: Any, field: str
) -> None:
    assert list(fields("a" if field == "kind" else "1", schema=msgspec.json.schema(type))) == [field]


def test_words_go_over_the_payload_and_leave_the_rest_of_it() -> None:
    over = {"prompt": "a", "style": {"name": "ink", "weight": 1}, "extra": 1}
    assert fields("prompt=b", "style.weight=3", "steps=1", over=over) == {
        "prompt": "b",
        "style": {"name": "ink", "weight": 3.0},
        "extra": 1,
        "steps": 1,
    }
    assert over == {"prompt": "a", "style": {"name": "ink", "weight": 1}, "extra": 1}


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["stpes=1"], "no field `stpes`; the fields are `type`, `seed`", "did you mean `steps`?"),
        (["zzz=1"], "no field `zzz`", ""),
        (["style.nmae=x"], "no field `style.nmae`; the fields are `style.name`, `style", "did you mean `style.name`?"),
        (["style.weight=x"], "`style.weight` takes a number, not `x`", ""),
        (["promt@cat.png"], "no field `promt`", "did you mean `prompt@cat.png`? As text it is `field=promt@cat.png`"),
        (["a cat", "a dog"], "two values without a field name: `a cat` and `a dog`", "write `field=value`"),
        (["steps", "=", "5"], "`steps` and `=` are two words", "write `steps=5`, without spaces"),
        (["prompt", "="], "`prompt` and `=` are two words", "write `prompt=value`, without spaces"),
        (["prompt", "=a"], "`prompt` and `=a` are two words", "write `prompt=a`, without spaces"),
        (["a cat", "=a"], "two values without a field name: `a cat` and `=a`", "write `field=value`"),
        (["steps=many"], "`steps` takes a whole number, not `many`", ""),
        (["steps=1.5"], "`steps` takes a whole number, not `1.5`", ""),
        (["scale=wide"], "`scale` takes a number, not `wide`", ""),
        (["scale=inf"], "`scale` takes a finite number, not `inf`", ""),
        (["hd=maybe"], "`hd` takes true or false, not `maybe`", ""),
        (["sizes=1,2"], "`sizes` takes a JSON array, not `1,2`", "write `sizes:=[1,2]`"),
        (["sizes=a,b"], "`sizes` takes a JSON array, not `a,b`", "write `sizes:=[…]`"),
        (["mode=fats"], "`mode` is one of `7`, `fast`, not `fats`", "did you mean `fast`?"),
        (["size=7"], "`size` is one of `big`, `small`, not `7`", ""),
        (["style=oil"], "`style` takes a JSON object, not `oil`", "write `style:={…}` or `style.name=value`"),
        (["sizes:=[1,"], "`sizes` is not JSON", 'texts are quoted in JSON: `sizes:=["a", "b"]`'),
        (["style:={a"], "`style` is not JSON", 'texts are quoted in JSON: `style:={"name": "value"}`'),
        (["prompt:=a"], "`prompt` is not JSON", "`prompt=value` takes a plain value"),
        (['{"a": 1'], '`{"a": 1` is not JSON', "text is `field=…`, JSON for a field `field:=…`"),
        (["[a] cat", "steps=1"], "`[a] cat` is not JSON", "text is `field=…`"),
        (["steps=1", "steps=2"], "`steps` is given twice: `steps=1` and `steps=2`", "a field takes one value"),
        (["a cat", "prompt=b"], "`prompt` is given twice: `a cat` and `prompt=b`", ""),
        (["style.name=x", "style:={}"], "`style:={}` would replace `style.name=x`", "give `style` first"),
        (["prompt.a=1"], "`prompt` is not an object, so it has no `a`", ""),
        (["style..name=1"], "a field name with an empty part: `.name`", ""),
        (["style.=1"], "a field name with an empty part: `style.`", ""),
        (["style:=5", "style.name=x"], "`style` is not an object, so it has no `name`", ""),
        (["prompt@nothing"], "no file `nothing`", ""),
        (["prompt@cat.png"], "`cat.png` is not text, and `prompt` is not a bytes field", ""),
        (["prompt=\udcff"], "not UTF-8", "put the bytes into a file"),
    ],
)
def test_a_word_that_does_not_fit_says_why(words: list[str], message: str, hint: str) -> None:
    with pytest.raises(Failure) as caught:
        fields(*words)
    assert str(caught.value).startswith(message)
    assert caught.value.hint.startswith(hint)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("word", "payload"),
    [
        ("a=5", {"a": 5}),
        ("a.b=null", {"a": {"b": None}}),
        ("a:=[1]", {"a": [1]}),
        ("a=x y", {"a": "x y"}),
        ("a@prompt.txt", {"a": "ein Bär\n"}),
    ],
)
def test_without_a_schema_any_key_goes_and_values_are_guessed(word: str, payload: dict[str, Any]) -> None:
    assert fields(word, schema=None) == payload


def test_without_a_schema_a_bare_word_has_no_field() -> None:
    with pytest.raises(Failure, match="which field is `hello` for") as caught:
        fields("hello", schema=None)
    assert caught.value.hint == "a server that starts says `ready` once they are; else write `field=hello`"


def test_a_function_without_fields_takes_no_value() -> None:
    with pytest.raises(Failure, match="takes no fields"):
        fields("hello", schema=msgspec.json.schema(msgspec.defstruct("Empty", [])))
    with pytest.raises(Failure, match="no field `a`; the fields are none"):
        fields("a=1", schema=msgspec.json.schema(msgspec.defstruct("Empty", [])))


def test_keys_that_only_the_schema_knows_are_keys() -> None:
    kebab = msgspec.json.schema(msgspec.defstruct("Kebab", [("num_steps", int), ("a_b", str)], rename="kebab"))
    assert fields("num-steps=3", "a-b=x", schema=kebab) == {"num-steps": 3, "a-b": "x"}


KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(KEYS, JSON, max_size=5))
def test_every_payload_can_be_written_with_raw_json(payload: dict[str, Any]) -> None:
    words = [f"{key}:={msgspec.json.encode(value).decode()}" for key, value in payload.items()]
    assert fields(*words, schema=None) == payload


@given(
    seed=st.integers(), prompt=st.text(st.characters(codec="utf-8")), hd=st.booleans(), scale=st.floats(-1e300, 1e300)
)
def test_typed_values_come_back_as_they_were_written(seed: int, prompt: str, hd: bool, scale: float) -> None:
    payload = fields(f"seed={seed}", f"prompt={prompt}", f"hd={hd}", f"scale={scale}")
    paint = msgspec.json.decode(msgspec.json.encode(payload), type=Paint)
    assert paint == Paint(seed=seed, prompt=prompt, hd=hd, scale=scale)


words = st.text() | st.builds(
    "{}{}{}".format,
    KEYS | st.sampled_from(sorted(SCHEMA["$defs"]["Paint"]["properties"])),
    st.sampled_from(["=", ":=", "@", ".x="]),
    st.text(),
)
schemas: st.SearchStrategy[Any] = (
    st.none()
    | st.just(SCHEMA)
    | st.dictionaries(
        st.sampled_from(["$ref", "type", "properties", "required", "enum", "anyOf", "additionalProperties", "$defs"]),
        JSON,
    )
)


@given(st.lists(words, max_size=4), schemas)
def test_whatever_is_typed_gives_a_payload_that_is_json_or_a_failure(typed: list[str], schema: Any) -> None:
    try:
        payload = fields(*typed, schema=schema)
    except Failure:
        return
    msgspec.json.encode(payload)


def test_a_schema_that_refers_to_itself_ends() -> None:
    circle: dict[str, Any] = {
        "$ref": "#/$defs/A",
        "$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "object"}]}},
    }
    assert fields("a=1", schema=circle) == {"a": 1}


def test_files_are_read_only_where_a_field_asks_for_one() -> None:
    files = MadeUpFiles()
    payload_from(["url=a@b", "me@home.org"], over={}, schema=SCHEMA, files=files)
    assert files.seen == []
    with pytest.raises(Failure):
        payload_from(["url@x=1"], over={}, schema=SCHEMA, files=files)
    assert files.seen == ["x=1"]


# --- files that are passed as such ------------------------------------------------------------------------------------


class Framed(msgspec.Struct):
    image: ImageAsset
    width: int = 1


class Collage(msgspec.Struct):
    title: str
    images: list[Asset] = []
    mask: Asset | None = None
    frame: Framed | None = None


COLLAGE = msgspec.json.schema(Collage)


def test_a_field_for_a_file_takes_one_by_its_path() -> None:
    cat = {"ref": "cat.png", "size_bytes": 5}
    assert fields("mask@cat.png", "frame.image@cat.png", schema=COLLAGE) == {"mask": cat, "frame": {"image": cat}}
    assert fields("image@cat.png", schema=msgspec.json.schema(Framed)) == {"image": cat}


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["mask@nothing.png"], "no file `nothing.png`", ""),
        (["mask=cat.png"], "`mask` takes a file, not `cat.png`", "write `mask@cat.png`"),
        (["images@cat.png", "images=x"], "`images` is given twice", "a field takes one value"),
        (["images@cat.png", "images@nothing.png"], "no file `nothing.png`", ""),
        (["images=cat.png"], "`images` takes files, not `cat.png`", "write `images@cat.png`"),
        (["images=https://a.b/c"], "`images` takes files", 'write `images:=[{"ref": "https://a.b/c"}]`'),
        (["mask=https://a.b/c"], "`mask` takes a file", "write `mask.ref=https://a.b/c`"),
    ],
)
def test_a_file_where_none_fits_says_what_to_write(words: list[str], message: str, hint: str) -> None:
    with pytest.raises(Failure) as caught:
        fields(*words, schema=COLLAGE)
    assert str(caught.value).startswith(message)
    assert caught.value.hint.startswith(hint)


def test_a_field_for_files_takes_them_one_by_one() -> None:
    cat = {"ref": "cat.png", "size_bytes": 5}
    assert fields("images@cat.png", schema=COLLAGE) == {"images": [cat]}
    assert fields("images@cat.png", "images@cat.png", "mask@cat.png", schema=COLLAGE) == {
        "images": [cat, cat],
        "mask": cat,
    }


def test_a_bare_word_for_a_file_says_how_to_pass_it() -> None:
    with pytest.raises(Failure, match="`image` takes a file, not") as caught:
        fields("cat.png", schema=msgspec.json.schema(Framed))
    assert caught.value.hint == "write `image@cat.png`"


def test_a_list_of_files_can_come_from_a_file_of_json() -> None:
    assert fields("images@sizes.json", schema=COLLAGE) == {"images": [1, 2]}


class Styled(msgspec.Struct):
    lora: Tensors


def test_a_field_for_weights_takes_a_file_and_sends_none_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "ink.safetensors"
    file.write_bytes(b"12345")
    schema = msgspec.json.schema(Styled)
    expected = {"ref": "local/ink.safetensors", "local_path": str(file), "size_bytes": 5}
    assert payload_from([f"lora@{file}"], over={}, schema=schema, files=LocalFiles()) == {"lora": expected}
    with pytest.raises(Failure, match="takes weights, which are files of the machine that the server is on") as caught:
        payload_from([f"lora@{file}"], over={}, schema=schema, files=LocalFiles(inline=True))
    assert caught.value.hint == "name them by a URL: `lora.ref=https://…`"
