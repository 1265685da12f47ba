"""Which functions are served when only some are asked for."""

import msgspec
import pytest

from gen_worker.wire.survey import NoFunctionError, Survey, SurveyedFunction


def function(name: str, class_name: str = "") -> SurveyedFunction:
    python_name = name.replace("-", "_")
    return SurveyedFunction(name, python_name, class_name, class_name, "sync", "device", False, None)


FUNCTIONS = [function("embed", "Text"), function("rank-all", "Text"), function("paint", "Image"), function("hello")]
SURVEY = Survey(
    "shop",
    [],
    FUNCTIONS,
    msgspec.Raw(msgspec.json.encode({"functions": [{"name": each.name} for each in FUNCTIONS], "kept": 1})),
    [],
)


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        ([], ["embed", "rank-all", "paint", "hello"]),
        (["embed"], ["embed", "rank-all"]),
        (["rank-all"], ["embed", "rank-all"]),
        (["rank_all"], ["embed", "rank-all"]),
        (["hello"], ["hello"]),
        (["hello", "paint", "paint"], ["paint", "hello"]),
    ],
)
def test_a_function_is_served_with_those_of_its_class(asked: list[str], served: list[str]) -> None:
    chosen = SURVEY.of_owners(asked)
    assert [each.name for each in chosen.functions] == served
    assert msgspec.json.decode(chosen.description) == {"functions": [{"name": name} for name in served], "kept": 1}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("embd", "did you mean `embed`? available: `embed`, `hello`, `paint`, `rank-all`"),
        ("x", "available: `embed`, `hello`, `paint`, `rank-all`"),
    ],
)
def test_an_unknown_function_is_told_with_those_there_are(name: str, hint: str) -> None:
    with pytest.raises(NoFunctionError, match=f"no function `{name}` in `shop`") as caught:
        SURVEY.of_owners(["embed", name])
    assert caught.value.hint == hint


def test_a_variant_is_named_in_either_spelling() -> None:
    variant = SurveyedFunction("paint-exactly", "paint", "Painter", "Painter", "sync", "device", False, None)
    survey = Survey("m", [], [variant], msgspec.Raw(b'{"functions":[]}'), [])
    for spelling in ("paint-exactly", "paint_exactly", "paint"):
        assert [each.name for each in survey.of_owners([spelling]).functions] == ["paint-exactly"]
