"""Which function `run` means."""

import sys
import types
from collections.abc import Iterator

import pytest

from gen_worker.cli.failure import Failure
from gen_worker.cli.selection import Wanted, select
from gen_worker.discovery.function_spec import FunctionSpec
from gen_worker.discovery.specs import collect

MAIN = """
from collections.abc import Iterator
import msgspec
from gen_worker import HF, RequestContext, endpoint

class In(msgspec.Struct):
    text: str = ""

@endpoint
def chosen_one(ctx: RequestContext, payload: In) -> In: ...

@endpoint
class Words:
    def say_it(self, ctx: RequestContext, payload: In) -> In: ...
    def shout(self, ctx: RequestContext, payload: In) -> In: ...

@endpoint(model=HF("a/base"), variants={"fast": HF("a/fast"), "paint": HF("a/other")})
class Pictures:
    def setup(self, pipeline: str) -> None: ...
    def generate(self, ctx: RequestContext, payload: In) -> In: ...
"""


@pytest.fixture(scope="module")
def specs() -> Iterator[list[FunctionSpec]]:
    module = types.ModuleType("chosen_one")
    sys.modules["chosen_one"] = module
    exec(MAIN, module.__dict__)
    yield collect(module)
    del sys.modules["chosen_one"]


def name(specs: list[FunctionSpec], class_name: str | None, method: str | None, module: str = "elsewhere.main") -> str:
    return select(specs, Wanted(module, class_name, method)).name


@pytest.mark.parametrize(
    ("class_name", "method", "chosen"),
    [
        (None, "say_it", "say-it"),
        (None, "say-it", "say-it"),
        ("Words", "shout", "shout"),
        (None, "fast", "fast"),
        (None, "generate", "generate"),
        ("Pictures", "paint", "paint"),
        (None, "chosen-one", "chosen-one"),
    ],
)
def test_filters_choose_by_class_and_by_either_spelling_of_the_name(
    specs: list[FunctionSpec], class_name: str | None, method: str, chosen: str
) -> None:
    assert name(specs, class_name, method) == chosen


def test_the_function_named_like_the_package_stands_out(specs: list[FunctionSpec]) -> None:
    assert name(specs, None, None, module="chosen_one.main") == "chosen-one"


def test_the_only_function_needs_no_name(specs: list[FunctionSpec]) -> None:
    assert name(specs[:1], None, None) == specs[0].name


def test_variants_without_a_base_are_all_meant_by_their_handlers_name(specs: list[FunctionSpec]) -> None:
    variants = [spec for spec in specs if spec.name in ("fast", "paint")]
    with pytest.raises(Failure, match="which function\\? 2 match: `fast`, `paint`"):
        name(variants, None, "generate")


LISTED = "`chosen-one`, `fast`, `generate`, `paint`, `say-it`, `shout`"


@pytest.mark.parametrize(
    ("class_name", "method", "message", "hint"),
    [
        (None, None, "which function? 6 match: `chosen-one`", "choose one: `--method chosen-one`"),
        ("Words", None, "which function? 2 match: `say-it`, `shout`", "choose one: `--method say-it`"),
        (
            "Word",
            None,
            "no endpoint class `Word` in `elsewhere.main`",
            "did you mean `Words`? the classes are `Pictures`, `Words`",
        ),
        ("Zebra", None, "no endpoint class `Zebra` in `elsewhere.main`", "the classes are `Pictures`, `Words`"),
        (None, "shuot", "no function `shuot` in `elsewhere.main`", f"did you mean `shout`? available: {LISTED}"),
        ("Words", "fast", "no function `fast` in `elsewhere.main`", "available: `say-it`, `shout`"),
    ],
)
def test_what_is_not_one_function_is_refused_with_what_there_is(
    specs: list[FunctionSpec], class_name: str | None, method: str | None, message: str, hint: str
) -> None:
    with pytest.raises(Failure) as caught:
        name(specs, class_name, method)
    assert str(caught.value).startswith(message)
    assert caught.value.hint == hint


def test_an_endpoint_without_functions_says_how_to_make_one() -> None:
    with pytest.raises(Failure, match="no functions in `empty`") as caught:
        select([], Wanted("empty", None, None))
    assert caught.value.hint == "mark a class or a function with `@endpoint`"
