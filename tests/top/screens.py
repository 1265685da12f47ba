"""A board on a terminal of any size, and what a person reads there."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from textual.app import App, ComposeResult
from textual.pilot import Pilot

from gen_worker.top.board import Board

T = TypeVar("T")


class Stage(App[None]):
    """A board, the line for the footer below it, and what was picked."""

    ENABLE_COMMAND_PALETTE = False
    CSS = "Screen { padding: 0 0 1 0; }"

    def __init__(self) -> None:
        super().__init__()
        self.animation_level = "none"
        self.board = Board()
        self.picked: list[Board.Picked] = []

    def compose(self) -> ComposeResult:
        yield self.board

    def on_board_picked(self, message: Board.Picked) -> None:
        self.picked.append(message)


Play = Callable[[Stage, Pilot[None]], Awaitable[T]]


def played(play: Play[T], size: tuple[int, int] = (120, 40)) -> T:
    """Return what a play returns that has a stage of this size to itself."""

    async def run() -> T:
        stage = Stage()
        async with stage.run_test(size=size) as pilot:
            return await play(stage, pilot)

    return asyncio.run(run())


def seen(app: App[None]) -> str:
    """Return the screen as text."""
    return "\n".join(strip.text.rstrip() for strip in app.screen._compositor.render_strips()) + "\n"
