"""The one spelling of a name that is routed, and finding a function by what a person types."""

import re
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.discovery import did_you_mean, match_name, slugify_name


class Function(NamedTuple):
    name: str


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("marco_polo", "marco-polo"),
        ("  Marco Polo  ", "marco-polo"),
        ("a__b--c", "a-b-c"),
        ("v1.5", "v1.5"),
        ("-.x.-", "x"),
        ("naïve", "na-ve"),
        ("___", ""),
        ("", ""),
        ("x" * 127 + "-y", "x" * 127),
    ],
)
def test_a_name_has_one_slug(name: str, slug: str) -> None:
    assert slugify_name(name) == slug


@given(st.text(max_size=300) | st.text(alphabet="aB_-. 9", max_size=300))
def test_a_slug_is_short_plain_and_its_own_slug(name: str) -> None:
    slug = slugify_name(name)
    assert re.fullmatch(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?", slug)
    assert "--" not in slug
    assert len(slug) <= 128
    assert slugify_name(slug) == slug


def test_a_function_is_found_in_either_spelling() -> None:
    functions = [Function("marco-polo"), Function("generate")]
    assert match_name("marco_polo", functions) == match_name("marco-polo", functions) == functions[0]
    assert match_name("generat", functions) is None


def test_what_was_probably_meant_is_offered() -> None:
    assert did_you_mean("generat", ["marco-polo", "generate"]) == "generate"
    assert did_you_mean("MARCO_POL", ["marco-polo", "generate"]) == "marco-polo"
    assert did_you_mean("upscale", ["marco-polo", "generate"]) is None
