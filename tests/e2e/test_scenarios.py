"""Every session under `tests/scenarios` goes as it is written down; `RECORD=1` writes down how it goes."""

import os
from pathlib import Path

import click
import pytest

from gen_worker.cli.program import commands
from tests.scenario import Scenario, Step, difference, matching, play

FOLDER = Path(__file__).resolve().parents[1] / "scenarios"
SCENARIOS = sorted(FOLDER.glob("*.txt"))
RECORD = os.environ.get("RECORD") == "1"


@pytest.mark.process
@pytest.mark.parametrize("file", SCENARIOS, ids=lambda file: file.stem)
def test_a_session_goes_as_it_is_written(file: Path, tmp_path: Path) -> None:
    scenario = Scenario.parse(file.read_text())
    went: list[tuple[Step, Step]] = []
    for shown, came in play(scenario, tmp_path):
        went.append((shown, came))
        if not RECORD and (differs := difference(shown, came)):
            pytest.fail(f"{file.name}:\n{differs}", pytrace=False)
    if RECORD:
        steps = iter(came for _, came in went)
        scenario.parts = [next(steps) if isinstance(part, Step) else part for part in scenario.parts]
        file.write_text(scenario.text())


def test_every_command_has_a_session() -> None:
    assert set(commands.list_commands(click.Context(commands))) <= {file.stem for file in SCENARIOS}


@pytest.mark.parametrize("file", SCENARIOS, ids=lambda file: file.stem)
def test_a_session_is_written_as_it_is_recorded(file: Path) -> None:
    assert Scenario.parse(file.read_text()).text() == file.read_text()


@pytest.mark.parametrize(
    ("shown", "printed", "taken"),
    [
        (["a"], ["a"], {1}),
        (["a"], ["a", "b"], {1}),
        (["a"], ["b"], set()),
        ([], ["a"], {0}),
        (["...", "b"], ["a", "a", "b", "c"], {3}),
        (["...", "b"], ["b", "a", "b"], {1, 3}),
        (["a", "..."], ["a", "b", "c"], {1, 2, 3}),
        (["b", "..."], ["a"], set()),
        (["child <pid> ready after <seconds> s"], ["child 77 ready after 0.09 s"], {1}),
        (["child <pid> ready"], ["child x ready"], set()),
        (["in <folder>/x"], ["in /tmp/here/x"], {1}),
        (["cpu:0  idle"], ["cpu:0        idle"], {1}),
        (["cpu:0 idle"], ["cpu:0  idle"], set()),
        (["killed `<id>` by ..."], ["killed `invoke-0a1b2c3d` by rung 4"], {1}),
        (["no <placeholder>"], ["no <placeholder>"], {1}),
    ],
)
def test_lines_are_compared_as_a_reader_would(shown: list[str], printed: list[str], taken: set[int]) -> None:
    assert matching(shown, printed, Path("/tmp/here")) == taken


def test_a_step_that_went_otherwise_is_shown_whole_with_what_differs() -> None:
    shown = Step("gen-worker run", stdout=["polo"], stderr=["a", "b"], code=0)
    came = Step("gen-worker run", stdout=["marco"], stderr=["a", "b"], code=1)
    assert difference(shown, came).splitlines() == [
        "  $ gen-worker run",
        "- > polo",
        "+ > marco",
        "  ! a",
        "  ! b",
        "- exit 0",
        "+ exit 1",
    ]
    assert difference(shown, shown) == ""


SAYS_MORE = """
$ echo hello; echo oh >&2; exit 3
> hello
! no
exit 0

$ cat x.txt
> what
exit 0
-- x.txt --
what
"""

GOES_ON = """
$ read a; echo got $a; read b; echo then $b; read c || echo end &
< 1
< 2
> got 1

$ echo meanwhile
> meanwhile
exit 0

$ wait %1
> then 2
> end
exit 0

$ trap 'echo bye; exit 9' INT; echo up; while :; do sleep 0.01; done &
> up

$ kill -INT %2
> bye
exit 9
"""


def test_a_command_that_says_something_else_or_ends_otherwise_is_noticed(tmp_path: Path) -> None:
    (wrong, went), (right, same) = play(Scenario.parse(SAYS_MORE), tmp_path)
    assert went.lines() == ["$ echo hello; echo oh >&2; exit 3", "> hello", "! oh", "exit 3"]
    assert difference(wrong, went)
    assert not difference(right, same)


def test_a_command_goes_on_beside_the_session_until_it_is_waited_for(tmp_path: Path) -> None:
    for shown, came in play(Scenario.parse(GOES_ON), tmp_path):
        assert not difference(shown, came), difference(shown, came)
