"""How progress and log lines are shown."""

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.cli.events import ERASE, Events, Form, form_of, progress_bar


class Screen:
    """What was written, and a clock that goes on when it is told to."""

    def __init__(self, form: Form, level: str = "debug", *, coloured: bool = False) -> None:
        self.text = ""
        self.now = 100.0
        self.events = Events(form, self._write, level, coloured=coloured, width=lambda: 80, clock=lambda: self.now)

    def _write(self, text: str) -> None:
        self.text += text

    def progress(self, share: float, stage: str | None = None) -> None:
        self.now += 1
        value: dict[str, Any] = {"progress": share} | ({} if stage is None else {"stage": stage})
        self.events.show("paint", "r1", "progress", value, 5.0)

    def log(self, message: str, level: str = "info") -> None:
        self.events.show("paint", "r1", "log", {"message": message, "level": level}, 5.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("wanted", "stream", "env", "form"),
    [
        ("auto", Terminal(), {}, "bar"),
        ("auto", Terminal(), {"TERM": "dumb"}, "text"),
        ("auto", io.StringIO(), {}, "json"),
        ("text", Terminal(), {}, "bar"),
        ("text", io.StringIO(), {}, "text"),
        ("json", Terminal(), {}, "json"),
    ],
)
def test_a_person_gets_text_and_a_program_json_unless_the_other_is_wanted(
    wanted: str, stream: io.StringIO, env: dict[str, str], form: str
) -> None:
    assert form_of(wanted, stream, env) == form


def test_json_events_are_lines_with_sorted_keys() -> None:
    screen = Screen("json")
    screen.progress(0.5, "denoise")
    screen.log("hello", "warning")
    progress, log = screen.text.splitlines()
    assert progress == (
        '{"payload":{"progress":0.5,"stage":"denoise"},"request_id":"r1","timestamp":5.0,"type":"request.progress"}'
    )
    assert json.loads(log)["payload"] == {"level": "warning", "message": "hello"}


def test_text_has_a_line_for_each_tenth_and_each_stage() -> None:
    screen = Screen("text")
    for step in range(101):
        screen.progress(step / 100, "denoise")
    screen.progress(1.0, "save")
    lines = screen.text.splitlines()
    assert lines[:2] == ["[paint] 0% denoise", "[paint] 10% denoise"]
    assert lines[-2:] == ["[paint] 100% denoise", "[paint] 100% save"]
    assert len(lines) == 12


def test_log_lines_carry_their_function_and_their_level() -> None:
    screen = Screen("text")
    screen.log("hello")
    screen.log("hot", "warning")
    assert screen.text == "[paint] hello\n[paint] warning: hot\n"


def test_lines_below_the_wanted_level_are_left_out_and_progress_is_not() -> None:
    screen = Screen("text", "warning")
    screen.log("hello")
    screen.log("hot", "warning")
    screen.progress(0.5)
    assert screen.text == "[paint] warning: hot\n[paint] 50%\n"


def test_levels_have_colours_where_they_may() -> None:
    screen = Screen("text", coloured=True)
    screen.log("hot", "warning")
    assert screen.text == "[paint] \x1b[33mwarning:\x1b[0m hot\n"


def test_the_bar_is_drawn_in_place_and_leaves_nothing_behind() -> None:
    screen = Screen("bar")
    screen.progress(0.5, "denoise")
    assert screen.text == ERASE + progress_bar(0.5, "denoise", 80)
    screen.text = ""
    screen.log("hello")
    assert screen.text == f"{ERASE}[paint] hello\n{progress_bar(0.5, 'denoise', 80)}"
    screen.text = ""
    screen.events.hide()
    assert screen.text == ERASE
    screen.events.hide()
    assert screen.text == ERASE
    assert screen.events.erasing == ""


def test_the_bar_is_drawn_at_most_twenty_times_a_second_and_at_the_end() -> None:
    screen = Screen("bar")
    for step in range(1001):
        screen.now -= 1 - 0.0001
        screen.progress(step / 1000)
    assert screen.text.count(ERASE) <= 4
    assert screen.text.endswith(progress_bar(1.0, "", 80))


def test_a_job_cannot_steer_the_terminal() -> None:
    screen = Screen("bar")
    screen.log("\x1b[2Jgone\rback")
    screen.progress(0.5, "a\nb\x1b]0;title\x07")
    assert "\x1b[2J" not in screen.text
    assert "\x1b]" not in screen.text
    assert "\n" not in screen.text.split("\n", 1)[1]


@given(st.floats(allow_nan=False), st.text(max_size=200), st.integers(1, 300))
def test_the_bar_fits_one_line_of_any_terminal(share: float, stage: str, width: int) -> None:
    assert len(progress_bar(share, stage, width)) <= max(1, width - 1)
