"""`gen-worker top` without a terminal: a test presses its keys and reads its screen."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from textual.pilot import Pilot

from gen_worker.top.app import Top
from gen_worker.top.feed import Feed

PATIENCE_S = 10.0
OFTEN_S = 0.1


class Looking:
    """What a person does at the keyboard, and sees."""

    def __init__(self, top: Top, pilot: Pilot[None]) -> None:
        self.top = top
        self.pilot = pilot

    def screen(self) -> str:
        """Return the screen's text."""
        strips = self.top.screen._compositor.render_strips()
        return "\n".join(strip.text for strip in strips)

    async def press(self, *keys: str) -> None:
        """Press keys, by Textual's names."""
        await self.pilot.press(*keys)

    async def until(self, condition: Callable[[], object], what: str = "it") -> None:
        """Let the program go on until a condition is true; fail when it is not in time."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come true:\n{self.screen()}"
            await self.pilot.pause(0.02)

    async def sees(self, *texts: str, gone: str = "") -> str:
        """Wait until these texts are on the screen, and another one is not; return the screen."""
        await self.until(
            lambda: all(text in self.screen() for text in texts) and not (gone and gone in self.screen()),
            f"seeing {texts}",
        )
        return self.screen()


@asynccontextmanager
async def looking(
    address: Path, run_dir: Path, *, readonly: bool = False, size: tuple[int, int] = (120, 40)
) -> AsyncIterator[Looking]:
    """Look at a supervisor until the body ends; the first document is on the screen when that begins."""
    with Feed(str(address), OFTEN_S) as feed:
        top = Top(feed, run_dir, readonly=readonly)
        async with top.run_test(size=size, notifications=True) as pilot:
            look = Looking(top, pilot)
            await look.sees("gen-worker", " run ")
            yield look
