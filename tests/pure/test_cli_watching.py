"""How fetches of models are shown."""

import json
import re

from gen_worker.cli.events import Form
from gen_worker.cli.watching import Bars, JsonLines, Lines, Watch, watch_of
from gen_worker.models.errors import ModelError
from gen_worker.models.snapshot import Snapshot, SnapshotEntry
from gen_worker.models.wanted import Wanted

MIB = 1 << 20
FIRST = Wanted("hf", "acme/first")
SECOND = Wanted("hf", "acme/second")


def there(wanted: Wanted, *notes: str) -> Snapshot:
    return Snapshot(wanted, "key", "c0ffee", "/cache/it", (SnapshotEntry("a", 40 * MIB),), notes)


class Screen:
    """What a watch wrote, and a clock that goes on when it is told to."""

    def __init__(self, form: Form) -> None:
        self.text = ""
        self.now = 100.0
        self.watch: Watch = watch_of(form, self._write)
        if isinstance(self.watch, Lines | JsonLines):
            kind = type(self.watch)
            self.watch = kind(self._write, clock=lambda: self.now)
        if isinstance(self.watch, Bars):
            self.watch = Bars(self._write, clock=lambda: self.now, width=lambda: 80)

    def _write(self, text: str) -> None:
        self.text += text

    def progress(self, wanted: Wanted, done_mib: int, total_mib: int | None = 40, retries: int = 0) -> str:
        """Tell progress a second later; return what was written."""
        self.now += 1
        before = len(self.text)
        self.watch.progress(wanted, done_mib * MIB, None if total_mib is None else total_mib * MIB, retries)
        return self.text[before:]

    def shown(self) -> list[str]:
        """Return the lines of a terminal that all of it was written to."""
        lines, row = [""], 0
        for piece in re.findall(r"\x1b\[\d*[AJ]|\r|\n|[^\x1b\r\n]+", self.text):
            if piece.endswith("A"):
                row -= int(piece[2:-1])
            elif piece.endswith("J"):
                del lines[row + 1 :]
                lines[row] = ""
            elif piece == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif piece != "\r":
                lines[row] += piece
        return lines


def test_json_lines_tell_each_step_of_a_fetch() -> None:
    screen = Screen("json")
    screen.watch.started(FIRST)
    screen.progress(FIRST, 0)
    screen.watch.completed(FIRST, there(FIRST, "fp32 weights were taken"), 40 * MIB)
    started, progress, completed = map(json.loads, screen.text.splitlines())
    assert started == {"kind": "model_fetch.started", "ref": "acme/first", "provider": "hf"}
    assert progress["kind"] == "model_fetch.progress"
    assert (progress["bytes_done"], progress["bytes_total"], progress["retries"]) == (0, 40 * MIB, 0)
    assert (completed["kind"], completed["local_dir"]) == ("model_fetch.completed", "/cache/it")
    assert completed["notes"] == ["fp32 weights were taken"]


def test_progress_comes_at_most_once_a_second_where_lines_stay() -> None:
    for form in ("json", "text"):
        screen = Screen("json" if form == "json" else "text")
        screen.watch.started(FIRST)
        for done in range(41):
            screen.now += 0.01 - 1
            screen.progress(FIRST, done)
        assert len(screen.text.splitlines()) == (2 if form == "json" else 0)
        screen.progress(FIRST, 40)
        assert len(screen.text.splitlines()) == (3 if form == "json" else 1)


def test_json_lines_tell_no_start_of_what_is_here() -> None:
    screen = Screen("json")
    screen.watch.started(FIRST)
    screen.watch.completed(FIRST, there(FIRST), 0)
    assert [json.loads(line)["kind"] for line in screen.text.splitlines()] == ["model_fetch.completed"]


def test_text_has_a_line_for_each_tenth() -> None:
    screen = Screen("text")
    screen.watch.started(FIRST)
    for done in range(41):
        screen.progress(FIRST, done)
    lines = screen.text.splitlines()
    assert len(lines) == 11
    assert lines[5] == "acme/first: 50% 20 MiB of 40 MiB, 1 MiB/s"


def test_text_says_what_was_fetched_and_what_a_person_should_know_of_it() -> None:
    screen = Screen("text")
    screen.watch.started(FIRST)
    screen.now += 3
    screen.watch.completed(FIRST, there(FIRST, "fp32 weights were taken"), 40 * MIB)
    assert screen.text == "acme/first: fetched 40 MiB in 3.0s\nwarning: fp32 weights were taken\n"


def test_what_was_here_already_is_not_worth_a_line() -> None:
    for form in ("text", "bar"):
        screen = Screen("text" if form == "text" else "bar")
        screen.watch.started(FIRST)
        screen.watch.completed(FIRST, there(FIRST), 0)
        assert screen.text == ""


def test_tries_are_counted_and_an_unknown_size_is_no_share() -> None:
    screen = Screen("text")
    screen.watch.started(FIRST)
    assert screen.progress(FIRST, 1, None, 3) == "acme/first: 1 MiB, tried again: 3\n"


def test_each_download_has_its_bar_and_those_done_a_line_above() -> None:
    screen = Screen("bar")
    for wanted in (FIRST, SECOND):
        screen.watch.started(wanted)
        screen.progress(wanted, 10)
    assert [line.partition("%")[2] for line in screen.shown()] == [
        f" acme/{name} 10 MiB of 40 MiB" for name in ("first", "second")
    ]
    screen.watch.completed(FIRST, there(FIRST), 40 * MIB)
    screen.progress(SECOND, 20)
    done, bar = screen.shown()
    assert done == "acme/first: fetched 40 MiB in 2.0s"
    assert "50% acme/second 20 MiB of 40 MiB" in bar
    screen.watch.hide()
    assert screen.shown() == [done, ""]


def test_a_ref_cannot_steer_the_terminal() -> None:
    screen = Screen("bar")
    odd = Wanted("hf", "acme/\x1b[2J")
    screen.watch.started(odd)
    screen.progress(odd, 10)
    assert "\x1b[2J" not in screen.text


def test_the_bar_of_a_download_that_failed_goes() -> None:
    screen = Screen("bar")
    screen.watch.started(FIRST)
    screen.progress(FIRST, 10)
    screen.watch.failed(FIRST, ModelError("gated", "gated"))
    assert screen.shown() == [""]


def test_progress_of_a_fetch_that_has_ended_changes_nothing() -> None:
    for form in ("text", "bar"):
        screen = Screen("text" if form == "text" else "bar")
        screen.watch.started(FIRST)
        screen.watch.failed(FIRST, ModelError("gated", "gated"))
        assert screen.progress(FIRST, 10) == ""


def test_who_is_waited_for_is_told_in_each_form() -> None:
    for form in ("json", "text", "bar"):
        screen = Screen(form)
        screen.watch.started(FIRST)
        screen.watch.waiting(FIRST, "hub.example")
        (line,) = screen.text.splitlines()
        assert "acme/first" in line
        assert "hub.example" in line
        assert ("`--offline`" in line) == (form != "json")
