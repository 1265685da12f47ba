"""Numbers as options take them, of every command there is."""

from collections.abc import Iterator

import click
import pytest

from gen_worker.cli.failure import Failure
from gen_worker.cli.numbers import Amount, Count
from gen_worker.cli.program import commands

NUMBERS = {"SECONDS", "HOURS", "GB", "NUMBER", "N"}
"""What options for numbers call them."""


def below(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command below one, with its name."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from below(found, (*path, name))
    else:
        yield path, command


def options() -> Iterator[tuple[tuple[str, ...], click.Command, click.Option]]:
    """Yield every option of every command that takes a value."""
    for path, command in below(commands):
        for each in command.params:
            if isinstance(each, click.Option) and not each.is_flag:
                yield path, command, each


NUMERIC = [
    pytest.param(command, option, id=" ".join([*path, max(option.opts, key=len)]))
    for path, command, option in options()
    if isinstance(option.type, Amount | Count)
]
BAD = ["nan", "inf", "-inf", "1e400", "-1000000", "soon", ""]


def test_every_option_for_a_number_is_one_of_ours() -> None:
    """Click's own numbers take `nan`, and tell what they are as no person would."""
    assert len(NUMERIC) >= 12
    for path, _, option in options():
        is_number = option.metavar in NUMBERS and (path, option.opts) != (("cache", "prune"), ["--bytes"])  # `50G`
        assert isinstance(option.type, Amount | Count) == is_number, (path, option.opts)
        assert not isinstance(option.type, click.types.FloatParamType | click.types.IntParamType), (path, option.opts)


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize(("command", "option"), NUMERIC)
def test_what_is_no_number_is_refused_by_the_name_of_its_option(
    command: click.Command, option: click.Option, text: str
) -> None:
    name = max(option.opts, key=len)
    arguments = [f"{name}={text}"] if name.startswith("--") else [name, text]
    with pytest.raises(Failure, match=rf"^`{name}` takes .*, (more than )?[-\d.]+( or more| to \d+)?, not `{text}`$"):
        command.make_context("it", arguments)


@pytest.mark.parametrize(
    ("type", "text", "number"),
    [
        (Amount("seconds"), "0", 0.0),
        (Amount("seconds", 0.1, 3600.0), "1.5", 1.5),
        (Amount("GB", above=True), "0.5", 0.5),
        (Count(0), "0", 0),
        (Count(-100, 100), "-100", -100),
    ],
)
def test_a_number_in_its_range_is_taken(type: Amount | Count, text: str, number: float) -> None:
    assert type.convert(text, None, None) == number


@pytest.mark.parametrize(
    ("type", "text", "error"),
    [
        (Amount("seconds", 0.1, 3600.0), "0", "takes seconds, 0.1 to 3600, not `0`"),
        (Amount("seconds"), "1e10", "takes seconds, 0 or more, not `1e10`"),
        (Amount("GB", above=True), "0", "takes GB, more than 0, not `0`"),
        (Count(0), "1.5", "takes a whole number, 0 or more, not `1.5`"),
        (Count(-100, 100), "101", "takes a whole number, -100 to 100, not `101`"),
    ],
)
def test_a_number_out_of_its_range_is_told_with_it(type: Amount | Count, text: str, error: str) -> None:
    with pytest.raises(Failure) as raised:
        type.convert(text, None, None)
    assert str(raised.value).endswith(error)
