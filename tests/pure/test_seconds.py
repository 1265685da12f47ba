"""Lengths of time as options take them."""

import click
import pytest

from gen_worker.cli.seconds import Length


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "1e10", "soon"])
def test_what_is_no_length_of_time_is_wrong_usage(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Length(0.0).convert(text, None, None)


def test_a_length_of_time_in_its_range_is_taken() -> None:
    assert Length(0.0, 60.0).convert("1.5", None, None) == 1.5
