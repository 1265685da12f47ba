"""What programs read about a project's functions."""

import hashlib
import json
import sys
import tomllib
import types
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
import pytest

from gen_worker import HF, Civitai, Hub, ModelScope, RequestContext, Resources, endpoint
from gen_worker.discovery import FunctionSpec, collect, describe, manifest, survey, to_toml
from gen_worker.discovery.documents import heavy_modules


class Style(msgspec.Struct):
    name: str


class Input(msgspec.Struct):
    text: str
    style: Style | None = None


class Tree(msgspec.Struct):
    children: list["Tree"] = []


class Output(msgspec.Struct):
    text: str


class Word(msgspec.Struct):
    text: str


class Number(msgspec.Struct):
    value: int


@endpoint
def plain(ctx: RequestContext, payload: Input) -> Output:
    return Output(payload.text)


@endpoint
def walk(ctx: RequestContext, payload: Tree) -> Iterator[Word | Number]:
    yield Word("a")


@endpoint(
    models={
        "a": HF("m/a", revision="v1", dtype="bf16", files=("*.json",)),
        "b": Hub("m/b", flavor="fp8"),
        "c": Civitai("42", version="7"),
        "d": ModelScope("m/d"),
    },
    resources=Resources(vram_gb=12, libraries=("flashpack",)),
)
class Painter:
    def setup(self, a: str, b: str, c: str, d: str) -> None: ...

    async def paint_it(self, ctx: RequestContext, payload: Input) -> Output:
        return Output(payload.text)


@pytest.fixture(scope="module")
def specs() -> list[FunctionSpec]:
    name = "documented"
    module = types.ModuleType(name)
    sys.modules[name] = module
    for target in (plain, walk, Painter):
        target.__module__ = name
        setattr(module, target.__name__, target)
    return collect(module)


def entry(document: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (each for each in document["functions"] if each["name"] == name)
    return dict(found)


# --- the description --------------------------------------------------------------------------------------------------


def test_the_description_names_the_endpoint_and_its_functions(specs: list[FunctionSpec]) -> None:
    document = describe(specs, "documented")
    assert document["protocol_version"] == 1
    assert document["endpoint"] == {"main_module": "documented", "kind": "inference", "classes": ["Painter"]}
    assert [function["name"] for function in document["functions"]] == ["paint-it", "plain", "walk"]
    assert {"describe", "list_functions", "prefetch", "cancel", "streaming", "tcp_listen", "serve_sidecar"} <= set(
        document["capabilities"]
    )
    json.dumps(document)


def test_a_described_function_shows_what_it_takes_and_gives(specs: list[FunctionSpec]) -> None:
    function = entry(describe(specs, "documented"), "plain")
    schema = function.pop("input_schema")
    assert function.pop("output_schema")["properties"] == {"text": {"type": "string"}}
    assert function == {
        "name": "plain",
        "class": None,
        "method": None,
        "kind": "inference",
        "is_generator": False,
        "output": "Output",
        "models": {},
    }
    assert schema["properties"]["text"] == {"type": "string"}
    assert list(schema["$defs"]) == ["Style"]


def test_a_described_method_names_its_class_and_its_models(specs: list[FunctionSpec]) -> None:
    function = entry(describe(specs, "documented"), "paint-it")
    assert (function["class"], function["method"]) == ("Painter", "paint_it")
    assert function["models"] == {
        "a": {
            "type": "HF",
            "provider": "hf",
            "ref": "m/a",
            "revision": "v1",
            "dtype": "bf16",
            "files": ["*.json"],
        },
        "b": {"type": "Hub", "provider": "tensorhub", "ref": "m/b", "tag": "prod", "flavor": "fp8"},
        "c": {"type": "Civitai", "provider": "civitai", "ref": "42", "version": "7"},
        "d": {"type": "ModelScope", "provider": "modelscope", "ref": "m/d"},
    }


def test_a_schema_that_contains_itself_keeps_its_definition(specs: list[FunctionSpec]) -> None:
    function = entry(describe(specs, "documented"), "walk")
    assert function["is_generator"]
    assert function["output"] == "Word | Number"
    schema = function["input_schema"]
    assert schema["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}
    assert "Tree" in schema["$defs"]


def test_kinds_are_listed_when_they_are_mixed() -> None:
    assert describe([], "documented")["endpoint"] == {"main_module": "documented", "kind": [], "classes": []}


# --- the manifest -----------------------------------------------------------------------------------------------------


def test_a_manifest_entry_says_everything_that_is_not_a_default(specs: list[FunctionSpec]) -> None:
    function = entry(manifest(specs), "paint-it")
    assert function["resources"] == {"gpu": True, "vram_gb": 12.0, "libraries": ["flashpack"]}
    assert function["bindings"]["b"] == {
        "kind": "fixed",
        "provider": "tensorhub",
        "slot_name": "b",
        "ref": "m/b",
        "tag": "prod",
        "flavor": "fp8",
    }
    assert (function["module"], function["declared_module"], function["class_name"]) == ("documented",) * 2 + (
        "Painter",
    )
    assert (function["python_name"], function["is_async"], function["output_mode"]) == ("paint_it", True, "single")
    assert function["payload_type"] == {"module": __name__, "qualname": "Input"}
    assert not {"runtime", "timeout_ms", "delta_type"} & set(function)


def test_schemas_are_fingerprinted_in_their_compact_sorted_form(specs: list[FunctionSpec]) -> None:
    function = entry(manifest(specs), "plain")
    for schema, digest in (("input_schema", "payload_schema_sha256"), ("output_schema", "output_schema_sha256")):
        compact = json.dumps(function[schema], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert function[digest] == hashlib.sha256(compact.encode()).hexdigest()


def test_a_stream_of_several_types_has_one_schema(specs: list[FunctionSpec]) -> None:
    function = entry(manifest(specs), "walk")
    assert (function["output_mode"], function["incremental_output"]) == ("incremental", True)
    assert len(function["delta_output_schema"]["oneOf"]) == 2
    assert set(function["delta_output_schema"]["$defs"]) == {"Word", "Number"}
    assert function["delta_type"] == {"module": __name__, "qualname": "Word | Number"}


class Awkward(msgspec.Struct):
    """Names and "values" that need care: é."""

    nothing: int | None = None
    endless: float = float("inf")
    choice: Literal["a", None] = "a"
    large: int = 2**80
    text: str = "a\nb\t\u2028'\"\\"
    data: bytes = b"\0\xff"
    pairs: dict[str, int | None] = {}
    tags: frozenset[str] = frozenset({"c", "a", "b"})
    odd_name: str = msgspec.field(name="a.b é", default="")


@endpoint
def take_care(ctx: object, payload: Awkward) -> Awkward:
    return payload


def test_a_manifest_survives_toml_and_json_alike() -> None:
    module = types.ModuleType("documented")
    vars(module)["take_care"] = take_care
    document = manifest(collect(module))
    assert tomllib.loads(to_toml(document)) == json.loads(msgspec.json.encode(document)) == document
    (function,) = document["functions"]
    assert not list(nulls(document))
    schema = function["input_schema"]
    assert schema["$defs"]["Awkward"]["properties"]["tags"]["default"] == ["a", "b", "c"]
    compact = json.dumps(schema, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert function["payload_schema_sha256"] == hashlib.sha256(compact.encode()).hexdigest()


def nulls(value: Any) -> Iterator[Any]:
    """Find what TOML cannot say."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from nulls(each)
    elif value is None or value in (float("inf"), -float("inf")):
        yield value


# --- the survey -------------------------------------------------------------------------------------------------------


def test_a_survey_says_what_dispatch_needs(specs: list[FunctionSpec]) -> None:
    surveyed = survey(specs, module="documented", paths=["/x"], loaded={"numpy": object(), "torch": None})
    assert (surveyed.module, surveyed.paths, surveyed.preload) == ("documented", ["/x"], ["numpy"])
    painter = next(function for function in surveyed.functions if function.name == "paint-it")
    assert painter.models == ["m/a@v1", "m/b#fp8", "42@7", "m/d"]
    assert (painter.gpu, painter.vram_gb, painter.lane, painter.instance) == (
        True,
        12.0,
        "device",
        "documented:Painter",
    )
    assert msgspec.json.decode(surveyed.description) == json.loads(json.dumps(describe(specs, "documented")))


def test_only_heavy_packages_and_what_defines_models_are_worth_importing_early() -> None:
    loaded = [
        "sys",
        "torch",
        "numpy",
        "torch.nn",
        "numpy.linalg",
        "diffusers",
        "diffusers.utils",
        "diffusers.pipelines.sdxl.pipeline_sdxl",
        "transformers.models.clip.modeling_clip",
        "torchvision",
        "mine.pipeline_x",
    ]
    assert heavy_modules(loaded) == [
        "torch",
        "numpy",
        "diffusers",
        "diffusers.pipelines.sdxl.pipeline_sdxl",
        "transformers.models.clip.modeling_clip",
    ]
