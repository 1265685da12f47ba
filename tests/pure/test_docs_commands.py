"""Commands that the pages show are commands that there are, in blocks that nobody runs, too."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from gen_worker.cli.program import commands

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
_BLOCK = re.compile(r"^```(?:text|console|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ENDS = {"|", "||", "&&", ";", "&", ">", ">>", "<", "2>", "2>>"}


def shown(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of each `gen-worker` that a page shows."""
    for block in _BLOCK.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(\$ |gen-worker )", line):
                yield from _calls(line.removeprefix("$ "))


def _calls(line: str) -> Iterator[list[str]]:
    words = shlex.split(line, comments=True)
    while "gen-worker" in words:
        words = words[words.index("gen-worker") + 1 :]
        end = next((at for at, word in enumerate(words) if word.rstrip(";") != word or word in _ENDS), len(words))
        yield [word.rstrip(";") for word in words[: end + (end < len(words) and words[end] not in _ENDS)]]


def misunderstood(words: list[str]) -> str:
    """Return what the command line makes nothing of, or nothing."""
    command: click.Command = commands
    context = click.Context(command)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        if found is None:
            return f"no command `{words[0]}`"
        command, words = found, words[1:]
        context = click.Context(command, info_name=command.name, parent=context)
    try:
        _, left, _ = command.make_parser(context).parse_args(args=list(words))
    except click.UsageError as error:
        return error.format_message()
    return f"`{' '.join(left)}` is too much" if left and not context.allow_extra_args else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_that_a_page_shows_is_understood(page: Path) -> None:
    wrong = {" ".join(words): told for words in shown(page) if (told := misunderstood(words))}
    assert not wrong
