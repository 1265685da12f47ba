"""Which functions of the earlier API are served, and what discovery says of the others."""

import json
import types
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Annotated, Any

import msgspec
import pytest

import gen_worker
from gen_worker import endpoint
from gen_worker.api.context import RequestContext
from gen_worker.discovery import DiscoveryError, FunctionSpec, collect, manifest
from gen_worker.earlier.context import ActionContext
from gen_worker.earlier.functions import ResourceRequirements, worker_function, worker_websocket
from gen_worker.earlier.injection import (
    ModelArtifacts,
    ModelRef,
    ModelRefSource,
    parse_injection,
    register_runtime_loader,
    type_qualname,
)
from gen_worker.earlier.manifest import entries, surveyed_injections
from gen_worker.earlier.realtime import RealtimeSocket
from gen_worker.wire.survey import SurveyedInjection


class In(msgspec.Struct):
    text: str = ""
    model: Any = None


class Out(msgspec.Struct):
    text: str = ""


Deployed = Annotated[ModelArtifacts, ModelRef(ModelRefSource.DEPLOYMENT, "hf:acme/tiny@v1")]
Chosen = Annotated[ModelArtifacts, ModelRef(ModelRefSource.PAYLOAD, "model")]


def module(*functions: Callable[..., Any], name: str = "made_in_memory") -> types.ModuleType:
    import sys

    made = types.ModuleType(name)
    for function in functions:
        function.__module__ = name
        setattr(made, function.__name__, function)
    sys.modules[name] = made
    return made


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    import sys

    sys.modules.pop("made_in_memory", None)


def spec_of(function: Callable[..., Any]) -> FunctionSpec:
    (spec,) = collect(module(function))
    return spec


# --- marks ------------------------------------------------------------------------------------------------------------


def test_a_decorator_marks_a_function_and_leaves_it_what_it_is() -> None:
    def plain(ctx: ActionContext, payload: In) -> Out:
        return Out()

    attributes = vars(plain)
    needs = ResourceRequirements(max_concurrency=2)
    assert worker_function(needs)(plain) is plain
    assert attributes == {"_is_worker_function": True, "_worker_resources": needs}
    assert needs.to_dict() == {"max_concurrency": 2}
    assert ResourceRequirements().to_dict() == {}

    async def speaks(ctx: ActionContext, sock: RealtimeSocket) -> None: ...

    assert worker_websocket()(speaks) is speaks
    assert vars(speaks)["_is_worker_websocket"] is True


def test_a_decorator_that_is_not_called_says_how_it_is() -> None:
    with pytest.raises(TypeError, match=r"write `@worker_function\(\)`"):
        worker_function(lambda ctx, payload: None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="goes on a function"):
        worker_function()(int)
    with pytest.raises(ValueError, match="above 0"):
        ResourceRequirements(max_concurrency=0)


@pytest.mark.parametrize("name", sorted(gen_worker._EARLIER))
def test_every_earlier_name_is_had_from_the_package_and_not_listed(name: str) -> None:
    assert getattr(gen_worker, name) is not None
    assert name not in gen_worker.__all__


def test_errors_of_both_modules_are_the_same_classes() -> None:
    from gen_worker import errors
    from gen_worker.api import errors as newer

    for name in errors.__all__:
        assert getattr(errors, name) is getattr(newer, name)


# --- rules ------------------------------------------------------------------------------------------------------------


def single(ctx: ActionContext, payload: In) -> Out:
    return Out()


def payload_last(ctx: ActionContext, files: Deployed, payload: In) -> Out:
    return Out()


def incremental(ctx: ActionContext, payload: In) -> Iterator[Out]:
    yield Out()


def iterable(ctx: ActionContext, payload: In) -> Iterable[Out]:
    return [Out()]


async def later(ctx: ActionContext, payload: In) -> Out:
    return Out()


async def later_and_later(ctx: ActionContext, payload: In) -> Iterator[Out]:  # type: ignore[misc]
    yield Out()


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (single, "sync"),
        (payload_last, "sync"),
        (incremental, "generator"),
        (iterable, "generator"),
        (later, "async"),
        (later_and_later, "async_generator"),
    ],
)
def test_what_a_function_returns_is_how_it_answers(function: Callable[..., Any], shape: str) -> None:
    spec = spec_of(worker_function()(function))
    assert (spec.shape, spec.payload_type, spec.output_type) == (shape, In, Out)
    assert (spec.name, spec.python_name) == (function.__name__.replace("_", "-"), function.__name__)


def no_context(payload: In) -> Out: ...  # type: ignore[empty-body]
def other_context(ctx: RequestContext, payload: In) -> Out: ...  # type: ignore[empty-body]
def no_payload(ctx: ActionContext) -> Out: ...  # type: ignore[empty-body]
def two_payloads(ctx: ActionContext, one: In, other: Out) -> Out: ...  # type: ignore[empty-body]
def plain_model(ctx: ActionContext, payload: In, model: str) -> Out: ...  # type: ignore[empty-body]
def untyped(ctx: ActionContext, payload: In, model) -> Out: ...  # type: ignore[no-untyped-def,empty-body]
def no_return(ctx: ActionContext, payload: In): ...  # type: ignore[no-untyped-def]
def returns_text(ctx: ActionContext, payload: In) -> str: ...  # type: ignore[empty-body]
async def async_items(ctx: ActionContext, payload: In) -> AsyncIterator[Out]:
    yield Out()


def variadic(ctx: ActionContext, payload: In, *more: Deployed) -> Out: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (no_context, "`payload` first, which is `In`: it must be an `ActionContext`"),
        (other_context, "it must be an `ActionContext`"),
        (no_payload, "takes no payload"),
        (two_payloads, "takes two payloads: `one` and `other`"),
        (plain_model, "takes `model`, which is `str`"),
        (untyped, "has no annotation for `model`"),
        (no_return, "has no return annotation"),
        (returns_text, "cannot be served with its return annotation: `str`"),
        (async_items, "cannot be served with its return annotation"),
        (variadic, "by name"),
    ],
)
def test_a_function_that_breaks_a_rule_is_named_with_the_rule(function: Callable[..., Any], said: str) -> None:
    with pytest.raises(DiscoveryError) as told:
        collect(module(worker_function()(function)))
    assert f"`{function.__name__}`" in told.value.message
    assert said in told.value.message


async def speaks(ctx: ActionContext, sock: RealtimeSocket, files: Deployed) -> None: ...
def speaks_not_async(ctx: ActionContext, sock: RealtimeSocket) -> None: ...
async def speaks_alone(ctx: ActionContext) -> None: ...
async def speaks_to_files(ctx: ActionContext, files: Deployed, sock: RealtimeSocket) -> None: ...
async def speaks_of_payload(ctx: ActionContext, sock: RealtimeSocket, files: Chosen) -> None: ...


def test_a_realtime_function_is_async_and_takes_a_socket() -> None:
    spec = spec_of(worker_websocket()(speaks))
    assert (spec.shape, spec.lane, list(spec.bindings)) == ("websocket", "loop", ["files"])
    assert manifest([spec])["functions"] == entries([spec]) == []
    for function in (speaks_not_async, speaks_alone, speaks_to_files, speaks_of_payload):
        with pytest.raises(DiscoveryError, match=function.__name__):
            collect(module(worker_websocket()(function)))


# --- beside others ----------------------------------------------------------------------------------------------------


def test_where_a_worker_boots_a_bad_function_is_left_out_and_told_of() -> None:
    made = module(worker_function()(single), worker_function()(no_payload))
    skipped: list[DiscoveryError] = []
    specs = collect(made, skipped=skipped)
    assert [spec.name for spec in specs] == ["single"]
    assert [problem.message.endswith("takes no payload") for problem in skipped] == [True]


def test_an_endpoint_and_earlier_functions_live_in_one_module() -> None:
    @endpoint
    def newer(ctx: RequestContext, payload: In) -> Out:
        return Out()

    assert [spec.name for spec in collect(module(newer, worker_function()(single)))] == ["newer", "single"]


def test_of_two_with_one_name_the_earlier_function_is_passed_over() -> None:
    @endpoint(name="single")
    def newer(ctx: RequestContext, payload: In) -> Out:
        return Out()

    made = module(newer, worker_function()(single))
    passed: list[DiscoveryError] = []
    (kept,) = collect(made, passed_over=passed)
    assert kept.earlier is None
    assert len(passed) == 1
    with pytest.raises(DiscoveryError, match="two functions are routed as `single`"):
        collect(made)


# --- documents --------------------------------------------------------------------------------------------------------


def test_the_entry_of_a_function_says_what_it_takes_and_of_which_models() -> None:
    spec = spec_of(worker_function(ResourceRequirements(max_concurrency=3))(payload_last))
    (entry,) = json.loads(msgspec.json.encode(entries([spec])))
    assert {name: entry[name] for name in ("name", "module", "resources", "output_mode", "required_models")} == {
        "name": "payload_last",
        "module": "made_in_memory",
        "resources": {"max_concurrency": 3},
        "output_mode": "single",
        "required_models": ["hf:acme/tiny@v1"],
    }
    mark = {"source": "deployment", "key": "hf:acme/tiny@v1"}
    artifacts = "gen_worker.earlier.injection.ModelArtifacts"
    assert entry["injection_json"] == [{"param": "files", "type": artifacts, "model_ref": mark}]
    assert "delta_type" not in entry
    assert spec.earlier is not None
    surveyed = SurveyedInjection("files", artifacts, "deployment", "hf:acme/tiny@v1")
    assert surveyed_injections(spec.earlier.injections) == [surveyed]


def test_the_entry_of_a_stream_says_what_its_items_are() -> None:
    (entry,) = entries([spec_of(worker_function()(incremental))])
    assert (entry["output_mode"], entry["incremental_output"]) == ("incremental", True)
    assert entry["delta_type"] == entry["output_type"]


# --- marks of models --------------------------------------------------------------------------------------------------


def test_a_mark_names_who_says_which_model_it_is() -> None:
    found = parse_injection("files", Chosen)
    assert found is not None
    assert (found.param, found.type, found.model_ref.source) == ("files", ModelArtifacts, ModelRefSource.PAYLOAD)
    assert parse_injection("files", Annotated[str, "other"]) is None
    assert parse_injection("files", str) is None
    assert ModelRef("payload", "x") == ModelRef(ModelRefSource.PAYLOAD, "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a key"):
        ModelRef(ModelRefSource.PAYLOAD, " ")
    with pytest.raises(ValueError, match="2 marks"):
        parse_injection("files", Annotated[str, ModelRef("payload", "a"), ModelRef("payload", "b")])  # type: ignore[arg-type]


def test_artifacts_say_where_files_are() -> None:
    files = ModelArtifacts("m", "/models/m", {"unet": "/models/m/unet.bin"}, {"sm": "90"})
    assert str(files.path("unet")) == "/models/m/unet.bin"
    assert files.get_path("vae") is None
    with pytest.raises(KeyError):
        files.path("vae")


def test_a_loader_is_something_to_call() -> None:
    with pytest.raises(TypeError, match="something to call"):
        register_runtime_loader(int, 3)  # type: ignore[type-var]
    assert type_qualname(In) == f"{__name__}.In"
