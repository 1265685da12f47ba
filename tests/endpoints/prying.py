"""A function that reads its model while it is set up, and one that looks at what it should not see."""

import os
from pathlib import Path

import msgspec

from gen_worker import HF, RequestContext, endpoint

FOLDER = Path(os.environ.get("FAULTY_FOLDER", "/nonexistent"))


class Ask(msgspec.Struct):
    pids: list[int] = []


class Said(msgspec.Struct):
    text: str
    pid: int
    seen: list[str]
    """Which files of `/proc` could be read."""


@endpoint(model=HF("acme/first"))
class Prying:
    def setup(self, weights: Path) -> None:
        if (FOLDER / "hold").exists():
            (FOLDER / "held").touch()
            while not (FOLDER / "go").exists():
                os.sched_yield()
            (FOLDER / "hold").unlink()
            try:
                self.text = (weights / "weights.txt").read_text()
            finally:
                (FOLDER / "read").touch()
        self.text = (weights / "weights.txt").read_text()

    def pry(self, ctx: RequestContext, payload: Ask) -> Said:
        named = [f"/proc/{pid}/{name}" for pid in payload.pids for name in ("environ", "mem", "fd")]
        return Said(self.text, os.getpid(), [path for path in named if _can_see(path)])


def _can_see(path: str) -> bool:
    """Whether a file can be read; of a folder of links, whether any can be followed."""
    try:
        if os.path.isdir(path):
            return any(os.path.exists(f"{path}/{name}") for name in os.listdir(path))
        os.close(os.open(path, os.O_RDONLY))
    except OSError:
        return False
    return True
