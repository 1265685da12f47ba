"""Which models earlier functions are given: who says which it is, where its files are, and what is made of them."""

import asyncio
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from gen_worker import HF, Hub
from gen_worker.api.context import CancelFlag, RequestContext
from gen_worker.api.errors import CanceledError, ResourceError
from gen_worker.api.overrides import OverrideError
from gen_worker.discovery import DiscoveryError
from gen_worker.earlier import values
from gen_worker.earlier.calling import EarlierFunction
from gen_worker.earlier.context import ActionContext
from gen_worker.earlier.functions import worker_function
from gen_worker.earlier.injection import (
    LOADERS,
    Injection,
    ModelArtifacts,
    ModelRef,
    ModelRefSource,
    register_runtime_loader,
)
from gen_worker.earlier.managers import ModelManager
from gen_worker.earlier.refs import binding_of, canonical
from gen_worker.earlier.specs import spec_of
from gen_worker.earlier.surroundings import Surroundings, VariableError, surroundings
from gen_worker.wire.messages import EarlierRun


class In(msgspec.Struct):
    model: Any = None


class Engine:
    def __init__(self, name: str) -> None:
        self.name = name


class Loadable:
    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def from_pretrained(cls, path: str) -> "Loadable":
        return cls(path)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Give what sets variables for a test."""

    def put(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        surroundings.cache_clear()

    surroundings.cache_clear()
    yield put
    surroundings.cache_clear()
    values._manager.cache_clear()
    LOADERS.clear()


def given(
    type_: Any, source: str = "deployment", key: str = "m", shape: Any = "sync", **models: str
) -> EarlierFunction:
    def function(ctx: ActionContext, payload: In, it: Any) -> Any:
        return it

    injection = Injection("it", type_, ModelRef(ModelRefSource(source), key))
    return EarlierFunction(function, shape, "payload", (injection,), models)


def called(function: EarlierFunction, payload: In | None = None, **found: Any) -> Any:
    return function.caller()(RequestContext(request_id="r1"), payload or In(), **found)


# --- refs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "spelt"),
    [
        ("org/repo", "cozy:org/repo:latest"),
        ("cozy:org/repo:v1", "cozy:org/repo:v1"),
        ("cozy:org/repo@sha256:ab", "cozy:org/repo@sha256:ab"),
        ("hf:org/repo", "hf:org/repo"),
        ("hf:hf:org/repo@main", "hf:org/repo@main"),
    ],
)
def test_a_ref_has_one_canonical_spelling(text: str, spelt: str) -> None:
    assert canonical(text) == spelt == canonical(spelt)


@pytest.mark.parametrize("text", ["org/repo@tensorrt", "repo", "", "org/repo@md5:ab", "civitai:12"])
def test_what_is_no_ref_is_a_value_error_and_has_no_files_to_fetch(text: str) -> None:
    with pytest.raises(ValueError, match=r"ref|owner|digest"):
        canonical(text)
    assert binding_of(text) is None


def test_a_ref_is_fetched_as_an_endpoints_binding_is() -> None:
    assert binding_of("hf:org/repo@v1") == HF("org/repo", revision="v1")
    assert binding_of("org/repo") == Hub("org/repo", tag="latest")
    pinned = binding_of("cozy:org/repo@sha256:ab")
    assert pinned is not None
    assert (pinned.wanted.digest, pinned.wire_ref) == ("sha256:ab", "org/repo@sha256:ab")


# --- which model ------------------------------------------------------------------------------------------------------


def test_a_deployments_key_is_looked_up_and_else_the_id_itself() -> None:
    function = given(ModelArtifacts, key="m", m="hf:org/repo")
    assert list(function.ids(None).values()) == ["hf:org/repo"]
    assert list(given(ModelArtifacts, key="hf:a/b").ids(None).values()) == ["hf:a/b"]
    assert function.bindings(function.ids(None)) == {"it": HF("org/repo")}


def test_a_payload_names_a_key_or_an_id() -> None:
    function = given(ModelArtifacts, "payload", "model", m="hf:org/repo")
    assert function.asks
    assert list(function.ids(In("m")).values()) == ["hf:org/repo"]
    assert list(function.ids(In("hf:a/b")).values()) == ["hf:a/b"]
    for missing in (In(), In(3), In(" "), None):
        with pytest.raises(OverrideError, match=r"\$\.model"):
            function.ids(missing)


def test_what_a_deployment_says_wins_and_what_it_does_not_allow_is_refused() -> None:
    function = given(ModelArtifacts, "payload", "model", m="hf:org/repo")
    run = EarlierRun(model_keys={"m": "cozy:x/y"}, model_ids=("x/y:latest",))
    assert list(function.ids(In("m"), run).values()) == ["cozy:x/y"]
    with pytest.raises(OverrideError, match="not one of this deployment's"):
        function.ids(In("hf:org/repo"), run)


# --- what is made of it -----------------------------------------------------------------------------------------------


def test_artifacts_are_what_the_environment_names(environment: Callable[..., None]) -> None:
    told = {"m": {"root_dir": "/models/m", "files": {"unet": "unet.bin", "vae": "/v"}, "metadata": {"a": 1}}}
    environment(WORKER_MODEL_ARTIFACTS_JSON=json.dumps(told))
    function = given(ModelArtifacts)
    assert function.bindings(function.ids(None)) == {}
    files = called(function)
    assert (str(files.path("unet")), str(files.path("vae")), files.metadata["a"]) == ("/models/m/unet.bin", "/v", 1)


def test_artifacts_that_were_fetched_are_named_by_their_paths(environment: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/a.bin").write_bytes(b"a")
    files = called(given(ModelArtifacts, key="hf:a/b"), it=tmp_path)
    assert (files.model_id, files.root_dir, files.path("unet/a.bin")) == ("hf:a/b", tmp_path, tmp_path / "unet/a.bin")


def test_artifacts_of_an_id_that_nothing_is_known_of_lie_in_the_cache(environment: Callable[..., None]) -> None:
    environment(WORKER_MODEL_CACHE_DIR="/cache")
    files = called(given(ModelArtifacts, key="my/model@tensor"))
    assert (str(files.root_dir), dict(files.files)) == ("/cache/my_model_tensor", {})


def test_a_loader_is_called_once_for_each_model(environment: Callable[..., None]) -> None:
    calls: list[tuple[str, str]] = []

    def load(ctx: ActionContext, files: ModelArtifacts) -> Engine:
        calls.append((ctx.run_id, files.model_id))
        return Engine(files.model_id)

    register_runtime_loader(Engine, load)
    call = given(Engine, "payload", "model").caller()
    made = [call(RequestContext(request_id="r1"), In(name)) for name in ("a", "b", "a")]
    assert [each.name for each in made] == ["a", "b", "a"]
    assert made[0] is made[2]
    assert calls == [("r1", "a"), ("r1", "b")]


def test_the_environment_names_a_loader_by_the_type(environment: Callable[..., None]) -> None:
    home = types.ModuleType("earlier_loaders")
    home.load = lambda ctx, files: Engine("from the environment")  # type: ignore[attr-defined]
    sys.modules["earlier_loaders"] = home
    environment(WORKER_RUNTIME_LOADERS_JSON=json.dumps({f"{__name__}.Engine": "earlier_loaders:load"}))
    try:
        assert called(given(Engine)).name == "from the environment"
    finally:
        del sys.modules["earlier_loaders"]


class Keeper(ModelManager):
    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def load(self, model_id: str) -> bool:
        self.kept[model_id] = Engine(model_id)
        return True

    async def get(self, model_id: str) -> Any:
        return self.kept.get(model_id)

    def unload(self, model_id: str) -> bool:
        return self.kept.pop(model_id, None) is not None

    def stats(self) -> dict[str, Any]:
        return {}


def test_a_manager_of_the_authors_gives_what_it_has_or_loads(environment: Callable[..., None]) -> None:
    environment(MODEL_MANAGER_CLASS=f"{__name__}:Keeper")
    assert called(given(Engine)).name == "m"
    with pytest.raises(ValueError, match=r"takes a `.*Loadable`, the manager has a `.*Engine`"):
        called(given(Loadable))


def test_what_the_worker_built_is_given_as_it_is(environment: Callable[..., None]) -> None:
    function = given(Loadable, key="hf:a/b")
    assert function.slot_types() == {"it": Loadable}
    built = Loadable("x")
    assert called(function, it=built) is built


def test_a_type_that_nothing_makes_is_told_with_what_would(environment: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="register_runtime_loader"):
        called(given(Engine, key="hf:a/b"), it=tmp_path)
    with pytest.raises(ValueError, match="no key of"):
        called(given(Loadable))


def test_an_engine_for_other_hardware_is_refused(environment: Callable[..., None]) -> None:
    built = {"cuda_version": "12.6", "tensorrt_version": "10.1", "sm": "90"}
    told = {"a/b@tensorrt": {"root": "/m", "metadata": built}}
    here = {"WORKER_CUDA_VERSION": "12.6", "WORKER_TENSORRT_VERSION": "10.1", "WORKER_SM": "89"}
    environment(WORKER_MODEL_ARTIFACTS_JSON=json.dumps(told), **here)
    with pytest.raises(ResourceError, match="built for sm `90`, this host has `89`"):
        called(given(ModelArtifacts, key="a/b@tensorrt"))
    environment(WORKER_SM="90")
    assert called(given(ModelArtifacts, key="a/b@tensorrt")).model_id == "a/b@tensorrt"


def test_a_variable_that_cannot_be_meant_is_named() -> None:
    with pytest.raises(VariableError, match="WORKER_MODEL_ARTIFACTS_JSON"):
        Surroundings.read({"WORKER_MODEL_ARTIFACTS_JSON": "[1]"})


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MODEL_MANAGER_CLASS", "nowhere:Keeper", "cannot be imported"),
        ("MODEL_MANAGER_CLASS", "os:sep", "which is nothing to call"),
        ("WORKER_RUNTIME_LOADERS_JSON", f'{{"{__name__}.Engine": "os:nothing"}}', "cannot be imported"),
        ("WORKER_RUNTIME_LOADERS_JSON", "{", "is not the JSON"),
    ],
)
def test_what_is_to_make_models_and_is_not_there_is_told_before_the_first_run(
    environment: Callable[..., None], variable: str, value: str, said: str
) -> None:
    def function(
        ctx: ActionContext, payload: In, it: Annotated[Engine, ModelRef(ModelRefSource.DEPLOYMENT, "m")]
    ) -> In:
        return payload

    environment(**{variable: value})
    with pytest.raises(DiscoveryError, match=f"`function` cannot be given its models: `{variable}`.*{said}"):
        spec_of(worker_function()(function), "top")


# --- calls ------------------------------------------------------------------------------------------------------------


def test_a_run_that_was_asked_to_end_ends_as_canceled_whatever_it_returns() -> None:
    def ends(ctx: ActionContext, payload: In) -> In:
        ctx.cancel()
        return payload

    def interrupted(ctx: ActionContext, payload: In) -> In:
        raise InterruptedError("enough")

    for function in (ends, interrupted):
        with pytest.raises(CanceledError):
            EarlierFunction(function, "sync", "payload", (), {}).caller()(RequestContext(request_id="r1"), In())


def test_a_stream_that_is_interrupted_ends_as_canceled_wherever_its_items_come_from() -> None:
    def items(ctx: ActionContext, payload: In) -> Iterator[In]:
        yield payload
        raise InterruptedError("enough")

    def elsewhere(ctx: ActionContext, payload: In) -> Iterator[In]:
        return items(ctx, payload)

    for function in (items, elsewhere):
        call = EarlierFunction(function, "generator", "payload", (), {}).caller()
        stream = call(RequestContext(request_id="r1"), In())
        assert next(stream) == In()
        with pytest.raises(CanceledError, match="enough"):
            next(stream)


def test_so_many_runs_of_an_async_function_are_at_work_as_it_says() -> None:
    at_work, most = 0, 0

    async def work(ctx: ActionContext, payload: In) -> In:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0)
        at_work -= 1
        return payload

    async def all_of_them() -> None:
        call = EarlierFunction(work, "async", "payload", (), {}, max_concurrency=2).caller()
        await asyncio.gather(*(call(RequestContext(request_id=f"r{each}"), In()) for each in range(8)))

    asyncio.run(all_of_them())
    assert most == 2


def test_a_stream_stops_where_its_run_was_asked_to_end() -> None:
    flag = CancelFlag()

    def stream(ctx: ActionContext, payload: In) -> Iterator[int]:
        yield 1
        ctx.cancel()

    items = EarlierFunction(stream, "generator", "payload", (), {}).caller()(
        RequestContext(request_id="r1", cancel=flag), In()
    )
    assert next(items) == 1
    with pytest.raises(CanceledError):
        next(items)
