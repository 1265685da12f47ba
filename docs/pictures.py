"""Make the pictures of `gen-worker top` in docs/pictures, from a server that works on eight GPUs that are not there.

`python docs/pictures.py`, from the root of the repository; it takes a minute, and a C compiler.
"""

import asyncio
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import msgspec  # noqa: E402
from textual.pilot import Pilot  # noqa: E402

from gen_worker.top.app import Top  # noqa: E402
from gen_worker.top.feed import Feed, Seen  # noqa: E402
from gen_worker.top.theme import BACKGROUND  # noqa: E402
from gen_worker.top.views import StackPage  # noqa: E402
from tests.nvml.session import Session, session  # noqa: E402

PICTURES = Path(__file__).with_name("pictures")
FOLDER = Path("/var/tmp/studio")  # it can be read in a picture
HOST = "gpu-host-3"
FONTS = "'DejaVu Sans Mono', Menlo, Consolas, monospace"
PATIENCE_S = 15.0
SECONDS = 12  # of history that the larger pictures show


class Picture(NamedTuple):
    """One picture: the size of the terminal, the keys that were pressed, and what it must show then."""

    name: str
    columns: int
    rows: int
    keys: tuple[str, ...] = ()
    shows: str = "cover-01"


TO_WATCH = (
    Picture("top-120x40", 120, 40),
    Picture("top-80x24", 80, 24),
    Picture("top-kill", 120, 40, ("k",), "Other GPUs go on"),
    Picture("top-stack", 120, 40, ("s",), "studio.py"),
    Picture("top-200x50", 200, 50),
)


class Anonymous(Feed):
    """Follows a supervisor, and gives its host a name that is nobody's."""

    @property
    def latest(self) -> Seen | None:
        """What was seen last."""
        return self._seen

    @latest.setter
    def latest(self, seen: Seen | None) -> None:
        self._seen = None if seen is None else seen._replace(status=msgspec.structs.replace(seen.status, host=HOST))


def drawn(app: Top) -> str:
    """Return what the terminal shows, as text."""
    rows = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in row) for row in rows)


async def until(pilot: Pilot[None], condition: Callable[[], bool], what: str) -> None:
    """Wait until something is shown."""
    for _ in range(int(PATIENCE_S / 0.1)):
        if condition():
            return
        await pilot.pause(0.1)
    raise SystemExit(f"error: {what} was not shown within {PATIENCE_S:g} s")


async def taken(picture: Picture, made: Session) -> str:
    """Return one picture of what goes on."""
    with Anonymous(str(made.server.control)) as feed:
        app = Top(feed, FOLDER / "run")
        async with app.run_test(size=(picture.columns, picture.rows)) as pilot:
            await until(pilot, lambda: "cover-01" in drawn(app), "the board")
            await pilot.pause(SECONDS if picture.columns > 120 else 1.0)
            for key in picture.keys:
                await pilot.press(key)
            await until(pilot, lambda: picture.shows in drawn(app), f"`{picture.shows}`")
            await pilot.pause(0.5)
            if isinstance(app.screen, StackPage):
                elsewhere(app.screen)
                await pilot.pause(0.5)
            return app.export_screenshot(title=f"gen-worker top on {HOST}", simplify=True)


def elsewhere(page: StackPage) -> None:
    """Have a stack name no folder of the machine that the picture is made on."""
    said = page.lines
    page.say(())
    for (text, tone), *rest in said:
        for place in (ROOT / "child", ROOT / "src", ROOT / ".venv/lib/python3.11/site-packages"):
            text = text.replace(str(place), "/usr/lib/python3.11/site-packages")
        page.add([((text.replace(sys.base_prefix, "/usr"), tone), *rest)])


def plain(svg: str) -> str:
    """Return a picture that fetches no fonts, whose IDs are the same each time, and with one background for all."""
    svg = svg.replace('fill="#292929"', f'fill="{BACKGROUND}"', 1)
    svg = re.sub(rf'<rect fill="{BACKGROUND}" x=[^>]*/>', "", svg)
    svg = re.sub(r"\s*@font-face \{.*?\}\n", "\n", svg, flags=re.DOTALL)
    svg = svg.replace("font-family: Fira Code, monospace", f"font-family: {FONTS}")
    return re.sub(r"terminal-\d+", "top", svg)


@contextmanager
def folder() -> Iterator[Path]:
    """Make the folder, and remove it in the end."""
    FOLDER.mkdir()
    try:
        yield FOLDER
    finally:
        shutil.rmtree(FOLDER)


def main() -> None:
    """Take all pictures, of one session."""
    PICTURES.mkdir(exist_ok=True)
    with folder() as place, session(place) as made:
        made.busy()
        for picture in TO_WATCH:
            svg = plain(asyncio.run(taken(picture, made)))
            (PICTURES / f"{picture.name}.svg").write_text(svg)
            print(f"wrote docs/pictures/{picture.name}.svg, {len(svg) >> 10} KiB")


if __name__ == "__main__":
    main()
