"""The board of `gen-worker top`: what is seen at each size, and what keys and the mouse do to the selection."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len
from textual.events import MouseScrollDown, MouseScrollUp
from textual.pilot import Pilot
from textual.strip import Strip

from gen_worker.top.tables import Lines
from gen_worker.wire.status import EventStatus, Status
from tests.top import samples
from tests.top.screens import Stage, played, seen

GOLDEN = Path(__file__).parent / "golden"
RECORD = os.environ.get("RECORD") == "1"


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def screen(status: Status, size: tuple[int, int], *keys: str) -> str:
    async def play(stage: Stage, pilot: Pilot[None]) -> str:
        stage.board.show(status)
        await pilot.press(*keys)
        await pilot.pause()
        return seen(stage)

    return played(play, size)


# --- what is seen -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "status", "size", "keys"),
    [
        ("80x24", samples.eight_gpus(), (80, 24), ()),
        ("120x40", samples.eight_gpus(), (120, 40), ()),
        ("200x50", samples.eight_gpus(), (200, 50), ("down", "down", "down")),
        ("cpu-slots", samples.cpu_slots(), (80, 24), ()),
        ("nothing-running", samples.nothing_running(), (120, 40), ()),
        ("64-gpus", samples.sixty_four_gpus(), (80, 24), ("end", "up")),
        ("hostile", samples.hostile(), (120, 40), ()),
    ],
)
def test_the_screen_is_the_one_that_is_written_down(
    name: str, status: Status, size: tuple[int, int], keys: tuple[str, ...]
) -> None:
    came, golden = screen(status, size, *keys), GOLDEN / f"{name}.txt"
    if RECORD:
        golden.write_text(came)
    assert came == golden.read_text()


@pytest.mark.parametrize("width", [60, 80, 104, 111, 112, 130, 179, 180, 240])
def test_no_row_is_broken_by_what_somebody_wrote(width: int) -> None:
    for line in screen(samples.hostile(), (width, 40)).splitlines():
        assert cell_len(line) <= width
        assert line.isprintable()
        assert not line.startswith(("│", "╭", "╰")) or line[-1] in "│╮╯"


def test_eight_gpus_nine_jobs_and_the_footer_fit_a_small_terminal() -> None:
    lines = screen(samples.eight_gpus(), (80, 24)).splitlines()
    assert "c5a6 train.lora" in lines[-3]
    assert len(lines) == 24


def test_a_very_small_terminal_shows_how_each_device_is_and_its_job() -> None:
    lines = screen(samples.eight_gpus(), (40, 10)).splitlines()
    assert lines[2].split() == ["GPU", "STATE", "JOB"]
    assert lines[3].split()[:6] == ["▌", "0", "●", "busy", "6d13", "generate.image"]
    assert "2 need attention" in screen(samples.eight_gpus(), (64, 10))
    assert lines[7].split()[:3] == ["ID", "FUNCTION", "STATUS"]


def test_a_small_terminal_shows_one_panel_and_the_digits_choose_it() -> None:
    async def play(stage: Stage, pilot: Pilot[None]) -> list[str]:
        stage.board.show(samples.eight_gpus())
        screens = []
        for number in (2, 3, 1):
            stage.board.focus_panel(number)
            await pilot.pause()
            screens.append(seen(stage))
        return screens

    downloads, events, jobs = played(play, (80, 24))
    assert "civitai:827184@1.2" in downloads
    assert "train.lora" not in downloads
    assert "hangs: gil_held" in events
    assert "train.lora" in jobs


def test_a_terminal_that_changes_its_size_is_drawn_for_the_new_one() -> None:
    async def play(stage: Stage, pilot: Pilot[None]) -> list[str]:
        stage.board.show(samples.eight_gpus())
        screens = []
        for size in ((80, 24), (200, 50), (120, 40), (80, 24)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
            screens.append(seen(stage))
        return screens

    small, wide, medium, again = played(play, (120, 40))
    assert small == again == screen(samples.eight_gpus(), (80, 24))
    assert medium == screen(samples.eight_gpus(), (120, 40))
    assert wide == screen(samples.eight_gpus(), (200, 50))


def test_what_is_frozen_or_out_of_reach_says_so() -> None:
    async def play(stage: Stage, pilot: Pilot[None]) -> list[str]:
        heads = []
        for told in ({"rests": "frozen"}, {"stale_s": 12.0}, {}):
            stage.board.show(samples.eight_gpus(), **told)
            await pilot.pause()
            heads.append(seen(stage).splitlines()[0])
        return heads

    frozen, stale, well = played(play)
    assert "frozen" in frozen
    assert "✖ not reachable for 12s" in stale
    assert "● orchestrator" in well


def test_only_what_has_the_text_of_the_filter_is_shown() -> None:
    async def play(stage: Stage, pilot: Pilot[None]) -> str:
        stage.board.show(samples.eight_gpus())
        stage.board.filter("Video")
        await pilot.pause()
        return seen(stage)

    shown = played(play)
    assert "video.render" in shown
    assert "caption.image" not in shown
    assert "/video" in shown.splitlines()[0]
    assert "GPUs 8 · 2 need attention" in shown


# --- the selection ----------------------------------------------------------------------------------------------------


def test_the_selection_follows_its_row_wherever_it_moves() -> None:
    async def play(stage: Stage, pilot: Pilot[None]) -> None:
        status = samples.eight_gpus()
        stage.board.show(status)
        await pilot.press("down", "down")
        assert selected(stage) == ("cuda:2", None)
        status.gpus.reverse()
        stage.board.show(status)
        assert selected(stage) == ("cuda:2", None)
        await pilot.press("down")
        assert selected(stage) == ("cuda:1", "ee14")
        status.gpus = [device for device in status.gpus if device.name != "cuda:1"]
        stage.board.show(status)
        assert selected(stage) == ("cuda:0", "6d13")

    played(play)


def selected(stage: Stage) -> tuple[str | None, str | None]:
    device, job = stage.board.selected_device, stage.board.selected_job
    return None if device is None else device.name, None if job is None else job.id


def test_the_table_with_the_keyboard_decides_what_is_selected() -> None:
    async def play(stage: Stage, pilot: Pilot[None]) -> None:
        stage.board.show(samples.eight_gpus())
        assert selected(stage) == ("cuda:0", "6d13")
        stage.board.focus_panel(1)
        await pilot.pause()
        assert selected(stage) == ("cuda:3", "2f2c")  # what hangs is on top
        await pilot.press("end")
        assert selected(stage) == (None, "c5a6")
        stage.board.focus_panel(3)
        await pilot.pause()
        assert selected(stage) == (None, "c5a6")
        stage.board.focus_devices()
        await pilot.pause()
        assert selected(stage) == ("cuda:0", "6d13")

    played(play)


def test_keys_reach_every_row_of_a_long_table() -> None:
    async def play(stage: Stage, pilot: Pilot[None]) -> None:
        stage.board.show(samples.sixty_four_gpus())
        for key, name in (("end", 63), ("up", 62), ("home", 0), ("pagedown", 9), ("down", 10), ("pageup", 1)):
            await pilot.press(key)
            assert selected(stage)[0] == f"cuda:{name}", key
            await pilot.pause()
            assert f"▌ {name:>3} " in seen(stage), key

    played(play, (80, 24))


def test_a_click_selects_and_a_second_one_picks() -> None:
    async def play(stage: Stage, pilot: Pilot[None]) -> None:
        stage.board.show(samples.eight_gpus())
        await pilot.pause()
        await pilot.click("#devices", offset=(10, 5))
        assert selected(stage) == ("cuda:3", "2f2c")
        await pilot.click("#devices", offset=(10, 9), times=2)
        await pilot.press("enter")
        assert [message.device.name for message in stage.picked if message.device] == ["cuda:7", "cuda:7"]
        assert [message.job.id for message in stage.picked if message.job] == ["37ab", "37ab"]

    played(play)


def test_the_wheel_moves_the_selection() -> None:
    async def play(stage: Stage, pilot: Pilot[None]) -> None:
        stage.board.show(samples.sixty_four_gpus())
        await pilot.pause()
        table = stage.query_one("#devices")
        for turned, name in ((MouseScrollDown, 1), (MouseScrollDown, 2), (MouseScrollUp, 1)):
            table.post_message(turned(table, 5, 5, 0, 0, 0, False, False, False))
            await pilot.pause()
            assert selected(stage)[0] == f"cuda:{name}"

    played(play)


def test_a_click_on_the_name_of_a_panel_shows_it() -> None:
    async def play(stage: Stage, pilot: Pilot[None]) -> str:
        stage.board.show(samples.eight_gpus())
        await pilot.pause()
        await pilot.click("#tabs", offset=(17, 0))
        await pilot.pause()
        return seen(stage)

    assert "civitai:827184@1.2" in played(play, (80, 24))


def test_what_happened_is_told_whole_however_narrow_the_terminal_is() -> None:
    message = "hangs: gil_held, nothing new for 4.0 s: " + "something holds the interpreter's lock; " * 3 + "finished"

    async def play(stage: Stage, pilot: Pilot[None]) -> list[str]:
        status = samples.eight_gpus()
        status.events = [EventStatus(1, samples.NOW, "error", "cuda:3", message)]
        stage.board.show(status)
        stage.board.focus_panel(3)
        screens = []
        for width in (70, 120, 200):
            await pilot.resize_terminal(width, 40)
            await pilot.pause()
            screens.append(seen(stage))
        return screens

    for screen_ in played(play, (100, 40)):
        assert "finished" in screen_


def test_events_stay_at_their_end_until_somebody_scrolls() -> None:
    async def play(stage: Stage, pilot: Pilot[None]) -> list[str]:
        status = samples.eight_gpus()
        stage.board.show(status)
        stage.board.focus_panel(3)
        await pilot.pause()
        screens = [seen(stage)]
        await pilot.press("home")
        status.events.append(EventStatus(99, samples.NOW, "info", "cuda:1", "the latest"))
        stage.board.show(status)
        await pilot.pause()
        screens.append(seen(stage))
        await pilot.press("end")
        await pilot.pause()
        screens.append(seen(stage))
        return screens

    first, scrolled, last = played(play)
    assert "`0750` done" in first
    assert "started: 8 GPUs" in scrolled
    assert "the latest" not in scrolled
    assert "the latest" in last


# --- what it costs ----------------------------------------------------------------------------------------------------


class Counted(Lines):
    """Lines that know how many of them were drawn."""

    drawn = 0

    def render_line(self, y: int) -> Strip:
        self.drawn += 1
        return super().render_line(y)


def test_only_what_has_changed_is_drawn_again() -> None:
    async def play(stage: Stage, pilot: Pilot[None]) -> None:
        lines = Counted()
        words = ["one", "two", "three"]

        def show() -> None:
            lines.show([lambda _room, word=word: ((word, "text"),) for word in words])  # type: ignore[misc]

        await stage.mount(lines)
        show()
        await pilot.pause()
        lines.drawn = 0
        show()
        await pilot.pause()
        assert lines.drawn == 0
        words[1] = "four"
        show()
        await pilot.pause()
        assert lines.drawn == 1

    played(play)
