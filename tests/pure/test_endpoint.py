"""`@endpoint`: what it accepts, what it refuses, and that it says what to write instead."""

from collections.abc import AsyncIterator, Iterator
from types import MappingProxyType
from typing import Any, Literal

import msgspec
import pytest

from gen_worker import HF, Civitai, Hub, ModelScope, RequestContext, Resources, endpoint
from gen_worker.api.decorator import HANDLERS, RECORD, slot_of


class Input(msgspec.Struct):
    text: str


class Output(msgspec.Struct):
    text: str


SMALL, LARGE = HF("maker/small"), HF("maker/large")


def echo(ctx: RequestContext, payload: Input) -> Output:
    return Output(payload.text)


def echo_with(ctx: RequestContext, payload: Input, pipe: str) -> Output:
    return Output(pipe)


class Echo:
    def say(self, ctx: RequestContext, payload: Input) -> Output:
        return Output(payload.text)


class Painter:
    def setup(self, pipe: str) -> None: ...

    def paint(self, ctx: RequestContext, payload: Input) -> Output:
        return Output(payload.text)


class Pair:
    def setup(self, base: str, refiner: str) -> None: ...

    def paint(self, ctx: RequestContext, payload: Input) -> Output:
        return Output(payload.text)


def clone(cls: type, **members: Any) -> type:
    """Return a fresh class, so that marking it marks nothing else."""
    return type(cls.__name__, (cls,), {"__module__": __name__, **members})


def record_of(target: Any) -> Any:
    return vars(target)[RECORD]


# --- accepted ---------------------------------------------------------------------------------------------------------


def test_a_marked_function_is_the_same_function() -> None:
    def local(ctx: RequestContext, payload: Input) -> Output:
        return Output(payload.text)

    assert endpoint(local) is local
    assert endpoint()(local) is local
    assert record_of(local).is_function
    assert record_of(local).kind == "inference"
    assert record_of(local).resources == Resources()


def test_a_marked_class_is_the_same_class_and_lists_its_handlers() -> None:
    cls = clone(Echo)
    assert endpoint(cls) is cls
    assert not record_of(cls).is_function
    assert vars(cls)[HANDLERS] == [("say", Echo.say)]


def test_the_record_cannot_be_changed() -> None:
    cls = endpoint(models={"pipe": SMALL})(clone(Painter))
    with pytest.raises(AttributeError):
        record_of(cls).kind = "training"
    assert isinstance(record_of(cls).models, MappingProxyType)


def test_hooks_and_underscored_methods_are_no_handlers() -> None:
    def hook(self: Any) -> None: ...

    def method(self: Any, ctx: Any, payload: Input) -> Output:
        return Output("")

    cls = clone(Echo, setup=hook, warmup=hook, shutdown=hook, _private=hook, other=method)
    endpoint(cls)
    assert [name for name, _ in vars(cls)[HANDLERS]] == ["say", "other"]


def test_static_methods_class_methods_and_properties_are_no_handlers() -> None:
    cls = clone(
        Echo,
        static=staticmethod(lambda: None),
        of_class=classmethod(lambda cls: None),
        computed=property(lambda self: 1),
    )
    endpoint(cls)
    assert [name for name, _ in vars(cls)[HANDLERS]] == ["say"]


def test_an_inherited_method_that_is_switched_off_is_no_handler() -> None:
    def other(self: Any, ctx: Any, payload: Input) -> Output:
        return Output("")

    cls = clone(Echo, say=None, other=other)
    endpoint(cls)
    assert [name for name, _ in vars(cls)[HANDLERS]] == ["other"]


@pytest.mark.parametrize("binding", [HF("a/b"), Hub("a/b"), Civitai("12"), ModelScope("a/b")])
def test_every_kind_of_binding_fills_a_slot(binding: Any) -> None:
    def local(ctx: RequestContext, payload: Input, pipe: str) -> Output:
        return Output(pipe)

    assert dict(record_of(endpoint(model=binding)(local)).models) == {"pipe": binding}


def test_model_goes_to_the_only_parameter_of_setup() -> None:
    assert dict(record_of(endpoint(model=SMALL)(clone(Painter))).models) == {"pipe": SMALL}


def test_model_goes_to_the_only_injected_parameter_when_there_is_no_setup() -> None:
    def one(self: Any, ctx: Any, payload: Input, pipe: str) -> Output:
        return Output(pipe)

    def plain(self: Any, ctx: Any, payload: Input) -> Output:
        return Output("")

    cls = type("Direct", (), {"one": one, "other": one, "plain": plain})
    assert dict(record_of(endpoint(model=SMALL)(cls)).models) == {"pipe": SMALL}


class ServerHandle: ...


@pytest.mark.parametrize("annotation", [ServerHandle, "ServerHandle", "server.ServerHandle"])
def test_the_handle_of_an_engine_is_not_counted_as_a_slot(annotation: Any) -> None:
    def setup(self: Any, pipe: str, server: Any) -> None: ...

    setup.__annotations__["server"] = annotation
    assert slot_of(clone(Painter, setup=setup)) == "pipe"


def test_setup_with_any_keywords_takes_any_slot() -> None:
    def setup(self: Any, **models: str) -> None: ...

    cls = endpoint(models={"one": SMALL, "two": LARGE})(clone(Painter, setup=setup))
    assert list(record_of(cls).models) == ["one", "two"]


def test_a_variant_has_a_binding_and_may_need_more_than_its_class() -> None:
    cls = endpoint(variants={"fast": SMALL, "best": (LARGE, Resources(vram_gb=20))})(clone(Painter))
    variants = record_of(cls).variants
    assert (variants["fast"].binding, variants["fast"].resources) == (SMALL, None)
    assert (variants["best"].binding, variants["best"].resources) == (LARGE, Resources(vram_gb=20))


def test_variants_of_several_slots_are_allowed() -> None:
    cls = endpoint(models={"base": SMALL, "refiner": LARGE}, variants={"large": LARGE})(clone(Pair))
    assert list(record_of(cls).variants) == ["large"]


class Chosen(msgspec.Struct):
    variant: Literal["fast", "best"]


class Free(msgspec.Struct):
    variant: str


def test_a_payload_may_name_the_declared_variants() -> None:
    def paint(self: Any, ctx: Any, payload: Chosen) -> Output:
        return Output("")

    endpoint(variants={"fast": SMALL, "best": LARGE, "more": LARGE})(clone(Painter, paint=paint))


def test_producers_may_be_plain_functions() -> None:
    def convert(ctx: Any, payload: Input) -> Output:
        return Output("")

    assert record_of(endpoint(kind="conversion")(convert)).kind == "conversion"


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [3, "text", len, Echo().say])
def test_only_classes_and_plain_functions_are_marked(target: Any) -> None:
    with pytest.raises(TypeError, match="goes on a class or a plain function"):
        endpoint(target)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"kind": "magic"}, ValueError, "`kind=` takes one of inference, training, dataset, conversion, got 'magic'"),
        ({"resources": {"gpu": True}}, TypeError, "`resources=` takes a `Resources"),
        ({"model": SMALL, "models": {"pipe": SMALL}}, ValueError, "exclude each other"),
        ({"model": "maker/small"}, TypeError, "takes `HF"),
        ({"models": {"pipe": "maker/small"}}, TypeError, "takes `HF"),
        ({"models": [SMALL]}, TypeError, "takes a dict"),
        ({"models": {"my pipe": SMALL}}, ValueError, "name of a parameter, got 'my pipe'"),
        ({"runtime": "sglang"}, ValueError, "`runtime=` takes one of vllm, llama-server"),
    ],
)
def test_wrong_options_are_refused_before_there_is_a_target(options: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        endpoint(**options)


@pytest.mark.parametrize(("option", "value"), [("variants", {"a": SMALL}), ("runtime", "vllm")])
def test_what_is_for_classes_is_refused_on_functions(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{option}=` is for classes; `echo` is a function"):
        endpoint(**{option: value})(echo)


def test_a_class_is_not_renamed() -> None:
    with pytest.raises(ValueError, match="routed by the names of its methods"):
        endpoint(name="other")(clone(Echo))


def test_a_class_without_public_methods_is_refused() -> None:
    with pytest.raises(TypeError, match="`Empty` has nothing to serve"):
        endpoint(type("Empty", (), {"_hidden": echo}))


def test_a_method_that_is_no_handler_is_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"`Echo.helper` must take at least \(self, ctx, payload\).*underscore"):
        endpoint(clone(Echo, helper=lambda self, text: text))


def test_a_function_without_payload_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`short` must take at least \(ctx, payload\)"):

        @endpoint
        def short(ctx: RequestContext) -> Output:
            return Output("")


def test_model_on_a_class_whose_setup_takes_several_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`Pair.setup`, found 2: base, refiner"):
        endpoint(model=SMALL)(clone(Pair))


def test_model_on_a_class_that_injects_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="found none"):
        endpoint(model=SMALL)(clone(Echo))


def test_model_on_a_function_that_takes_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`echo` after \(ctx, payload\), found none"):
        endpoint(model=SMALL)(echo)


def test_a_slot_that_setup_does_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`Painter.setup` has no parameter for `vae`; it takes: pipe"):
        endpoint(models={"pipe": SMALL, "vae": LARGE})(clone(Painter))


def test_variants_need_exactly_one_handler() -> None:
    def other(self: Any, ctx: Any, payload: Input) -> Output:
        return Output("")

    with pytest.raises(ValueError, match="one handler, `Painter` has 2: paint, other"):
        endpoint(variants={"a": SMALL})(clone(Painter, other=other))


@pytest.mark.parametrize(
    ("variants", "error", "says"),
    [
        ({"": SMALL}, ValueError, "must not be empty"),
        ({"a": SMALL, " a ": LARGE}, ValueError, "two variants are named `a`"),
        ({"a": "maker/small"}, TypeError, "the variant `a` takes a binding"),
        ({"a": (SMALL, 3)}, TypeError, "the variant `a` takes a binding"),
        ({"a": (SMALL, Resources(), 3)}, ValueError, "got 3 values"),
        ([SMALL], TypeError, "takes a dict"),
    ],
)
def test_a_malformed_variant_is_refused(variants: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        endpoint(variants=variants)(clone(Painter))


def test_a_payload_that_names_an_undeclared_variant_is_refused() -> None:
    def paint(self: Any, ctx: Any, payload: Chosen) -> Output:
        return Output("")

    with pytest.raises(ValueError, match=r"`Chosen.variant` of `Painter.paint` names 'best'; declared are: fast"):
        endpoint(variants={"fast": SMALL})(clone(Painter, paint=paint))


def test_a_payload_whose_variant_is_any_string_is_refused() -> None:
    def paint(self: Any, ctx: Any, payload: Free) -> Output:
        return Output("")

    with pytest.raises(ValueError, match="must be a `Literal"):
        endpoint(variants={"fast": SMALL})(clone(Painter, paint=paint))


def _stream(ctx: RequestContext, payload: Input) -> Iterator[Output]:
    yield Output("")


async def _async_stream(ctx: RequestContext, payload: Input) -> AsyncIterator[Output]:
    yield Output("")


@pytest.mark.parametrize("kind", ["conversion", "dataset", "training"])
@pytest.mark.parametrize("handler", [_stream, _async_stream])
def test_producers_do_not_stream(kind: Any, handler: Any) -> None:
    with pytest.raises(TypeError, match="must not be a generator"):
        endpoint(kind=kind)(handler)
