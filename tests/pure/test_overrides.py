"""A payload may name other models in `_models`, where the endpoint says so and nowhere else."""

import types
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_worker import HF, Civitai, Hub, ModelScope, endpoint
from gen_worker.api.bindings import Binding
from gen_worker.api.overrides import OverrideError, overridden
from gen_worker.discovery import FunctionSpec, collect, describe, manifest
from gen_worker_child.executor import Executor

BINDINGS: dict[str, Binding] = {
    "fixed": HF("m/fixed", revision="v1"),
    "free": HF("m/free", revision="v1", dtype="bf16", files=("*.json",)).allow_override(),
    "listed": HF("m/listed").allow_override("c/d", "e/*"),
    "hub": Hub("m/hub", tag="beta", flavor="fp8").allow_override(),
    "civitai": Civitai("42", version="7").allow_override("43"),
    "scope": ModelScope("m/scope").allow_override("m/*"),
}


def ref(slot: str, named: object) -> str:
    return overridden(BINDINGS, {slot: named})[slot].wire_ref


# --- bindings ---------------------------------------------------------------------------------------------------------


def test_allowing_overrides_makes_another_binding() -> None:
    plain = HF("a/b", revision="v1")
    allowing = plain.allow_override("c/d", " e/* ")
    assert allowing.overrides == ("c/d", "e/*")
    assert plain.overrides == ()
    assert plain != allowing == HF("a/b", revision="v1").allow_override("c/d", "e/*")
    assert len({plain, allowing, HF("a/b", revision="v1")}) == 2
    assert type(allowing) is HF
    assert Hub("a").allow_override().overrides == ("*",)
    assert repr(plain) == "HF(ref='a/b', revision='v1')"
    with pytest.raises(AttributeError):
        allowing.overrides = ()  # type: ignore[misc]


@pytest.mark.parametrize("bad", ["", "  ", 3, None])
def test_a_ref_that_is_none_cannot_be_allowed(bad: Any) -> None:
    with pytest.raises(ValueError, match="`allow_override` takes refs"):
        HF("a/b").allow_override(bad)


# --- what is named ----------------------------------------------------------------------------------------------------


def test_a_payload_that_names_no_models_leaves_the_bindings() -> None:
    assert overridden(BINDINGS, msgspec.UNSET) == overridden(BINDINGS, {}) == BINDINGS


@pytest.mark.parametrize(
    ("slot", "named", "wire"),
    [
        ("free", "a/b", "a/b"),
        ("free", " a/b@refs/pr/3 ", "a/b@refs/pr/3"),
        ("listed", "c/d", "c/d"),
        ("listed", "e/anything", "e/anything"),
        ("hub", "a/b", "a/b"),
        ("hub", "a/b:v2#int8", "a/b:v2#int8"),
        ("civitai", "43", "43"),
        ("scope", "m/other@v3", "m/other"),
    ],
)
def test_an_allowed_model_takes_its_slot(slot: str, named: str, wire: str) -> None:
    assert ref(slot, named) == wire
    others = overridden(BINDINGS, {slot: named})
    assert {name: binding for name, binding in others.items() if name != slot} == {
        name: binding for name, binding in BINDINGS.items() if name != slot
    }


def test_another_model_has_its_own_revision_and_is_loaded_as_the_binding_says() -> None:
    assert overridden(BINDINGS, {"free": "a/b"})["free"] == HF("a/b", dtype="bf16", files=("*.json",)).allow_override()
    assert overridden(BINDINGS, {"hub": "a/b"})["hub"] == Hub("a/b").allow_override()
    assert overridden(BINDINGS, {"civitai": "43"})["civitai"] == Civitai("43").allow_override("43")


@pytest.mark.parametrize(
    ("named", "told"),
    [
        (["a/b"], "expected an object of slot to ref, got `list` - at `$._models`"),
        (None, "got `NoneType` - at `$._models`"),
        ({"fre": "a/b"}, "no slot `fre`, there is: `fixed`, `free`, `listed`"),
        ({"fixed": "a/b"}, "`fixed` takes no other model than `m/fixed@v1` - at `$._models.fixed`"),
        ({"listed": "c/e"}, "`c/e` is not allowed for `listed`, allowed is: `c/d`, `e/*` - at `$._models.listed`"),
        ({"listed": "c/d@main"}, "is not allowed"),
        ({"civitai": "44"}, "is not allowed for `civitai`, allowed is: `43`"),
        ({"free": 3}, "expected a ref as text, got `int` - at `$._models.free`"),
        ({"free": {"ref": "a/b"}}, "got `dict`"),
        ({"free": "ab"}, "`ab` has no owner; write `owner/name`, `owner/name@revision`"),
        ({"free": "a/b#fp16"}, "`a/b#fp16` has a flavor, `HF` takes none - at `$._models.free`"),
        ({"free": "cozy:a/b"}, "`cozy:a/b` is on tensorhub, `HF` takes models of hf"),
        ({"free": "a/b/c"}, "is no ref of hf"),
        ({"free": "a/../b"}, "is no ref"),
        ({"free": "a/b@../x"}, "is no ref"),
        ({"free": "https://a/b"}, "is no ref"),
        ({"free": "a/b\n"}, None),
        ({"civitai": "../x"}, "is no ref of civitai; write the id of a model"),
        ({"scope": "m/é"}, "is no ref of modelscope"),
    ],
)
def test_what_is_not_allowed_is_told_with_its_place_and_what_is(named: Any, told: str | None) -> None:
    if told is None:
        assert overridden(BINDINGS, named)["free"].wire_ref == "a/b"
        return
    with pytest.raises(OverrideError) as caught:
        overridden(BINDINGS, named)
    assert told in str(caught.value)
    assert isinstance(caught.value, msgspec.ValidationError)


NAMED = st.dictionaries(
    st.sampled_from([*BINDINGS, "none"]) | st.text(max_size=5),
    st.text(alphabet="ab/@:#.*-_ \\é\0", max_size=12) | st.none() | st.integers() | st.lists(st.text()),
    max_size=3,
)


@settings(deadline=None)  # the machine may be busy
@given(NAMED)
def test_whatever_is_named_only_allowed_slots_change(named: dict[str, Any]) -> None:
    try:
        chosen = overridden(BINDINGS, named)
    except OverrideError:
        return
    assert list(chosen) == list(BINDINGS)
    assert chosen["fixed"] == BINDINGS["fixed"]
    assert chosen["listed"].ref.partition("/")[0] in ("m", "c", "e")
    for binding in chosen.values():
        assert ".." not in binding.wire_ref
        assert not set(binding.wire_ref) & set(" \\\0*é")


# --- decoding ---------------------------------------------------------------------------------------------------------


class Text(msgspec.Struct):
    text: str


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    text: str


class Own(msgspec.Struct):
    models: list[str] = msgspec.field(name="_models")


@endpoint(model=HF("m/base").allow_override("c/d"))
def lenient(ctx: object, payload: Text, pipe: str) -> Text:
    return payload


@endpoint(model=HF("m/base").allow_override("c/d"))
def strict(ctx: object, payload: Strict, pipe: str) -> Text:
    return Text("")


@endpoint(model=HF("m/base").allow_override("c/d"))
def own(ctx: object, payload: Own, pipe: str) -> Text:
    return Text("")


@endpoint
def without(ctx: object, payload: Text) -> Text:
    return payload


@pytest.fixture(scope="module")
def executor() -> Executor:
    module = types.ModuleType("overriding")
    for function in (lenient, strict, own, without):
        setattr(module, function.__name__, function)
    return Executor(collect(module))


def decoded(executor: Executor, name: str, encoding: Any, **payload: object) -> tuple[msgspec.Struct, dict[str, str]]:
    spec = executor.specs[name]
    body = msgspec.json.encode(payload) if encoding == "json" else msgspec.msgpack.encode(payload)
    view = memoryview(body)
    models = executor.models_of(spec, view, encoding)
    return executor.decode(spec, view, encoding), {slot: binding.wire_ref for slot, binding in models.items()}


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_models_are_read_off_the_payload_in_either_encoding(executor: Executor, encoding: str) -> None:
    override = {"_models": {"pipe": "c/d"}}
    assert decoded(executor, "lenient", encoding, text="a") == (Text("a"), {"pipe": "m/base"})
    assert decoded(executor, "lenient", encoding, text="a", **override) == (Text("a"), {"pipe": "c/d"})
    assert decoded(executor, "strict", encoding, text="a", **override) == (Strict("a"), {"pipe": "c/d"})
    assert decoded(executor, "strict", encoding, text="a") == (Strict("a"), {"pipe": "m/base"})
    for name in ("lenient", "strict"):
        with pytest.raises(msgspec.ValidationError, match=r"`x/y` is not allowed for `pipe`.* at `\$._models.pipe`"):
            decoded(executor, name, encoding, text="a", _models={"pipe": "x/y"})
    with pytest.raises(msgspec.ValidationError, match="unknown field `more`"):
        decoded(executor, "strict", encoding, text="a", more=1, **override)


def test_a_field_of_that_name_belongs_to_the_author(executor: Executor) -> None:
    assert decoded(executor, "own", "json", _models=["x/y"]) == (Own(["x/y"]), {"pipe": "m/base"})


def test_a_function_without_models_has_no_use_for_the_name(executor: Executor) -> None:
    assert decoded(executor, "without", "json", text="a", _models="whatever") == (Text("a"), {})


def test_documents_tell_what_may_be_overridden(executor: Executor) -> None:
    specs: list[FunctionSpec] = list(executor.specs.values())
    described = {function["name"]: function for function in describe(specs, "overriding")["functions"]}
    assert described["lenient"]["models"]["pipe"]["allow_override"] == ["c/d"]
    locked = {function["name"]: function for function in manifest(specs)["functions"]}
    assert locked["lenient"]["bindings"]["pipe"]["allow_override"] == ["c/d"]
