"""A terminal emulator for tests: tmux, in which one command runs, and what it shows."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.served import PATIENCE_S, alive, until

_SHELL = '"$@"; echo "ended $?"; exec sleep 600'
LOOK_S = 0.05  # each look starts a process
needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")


class Emulator:
    """One command on a screen of its own."""

    def __init__(self, socket: Path, columns: int, rows: int, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]
        self._env = {**os.environ, **env}
        size = ["-x", str(columns), "-y", str(rows)]
        self._run("new-session", "-d", *size, "sh", "-c", _SHELL, "sh", *command)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._tmux, *arguments], env=self._env, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def screen(self) -> str:
        """Return what is shown."""
        return self._run("capture-pane", "-p")

    def says(self, name: str) -> str:
        """Return what tmux knows of the screen, by its format's name."""
        return self._run("display-message", "-p", f"#{{{name}}}").strip()

    def press(self, *keys: str) -> None:
        """Press keys, by tmux's names."""
        self._run("send-keys", *keys)

    def type(self, text: bytes) -> None:
        """Send bytes as if they were typed."""
        self._run("send-keys", "-H", *(f"{byte:02x}" for byte in text))

    def resize(self, columns: int, rows: int) -> None:
        """Give it another size."""
        self._run("resize-window", "-x", str(columns), "-y", str(rows))

    def until(self, *texts: str, gone: Sequence[str] = (), within_s: float = PATIENCE_S) -> str:
        """Return what is shown once these texts are there, and those others are not; fail when that is not in time."""
        deadline = time.monotonic() + within_s
        while True:
            shown = self.screen()
            if all(text in shown for text in texts) and not any(text in shown for text in gone):
                return shown
            if time.monotonic() > deadline:
                raise AssertionError(f"not {texts} without {list(gone)} within {within_s:g} s in:\n{shown}")
            time.sleep(LOOK_S)

    @property
    def pid(self) -> int:
        """The command's process."""
        shell = self.says("pane_pid")
        return int(Path(f"/proc/{shell}/task/{shell}/children").read_text())

    def ended(self) -> int:
        """Wait for the command's end and return its exit code; the screen is then its shell's again."""
        found = re.search(r"^ended (\d+)$", self.until("ended "), re.MULTILINE)
        assert found is not None, self.screen()
        return int(found[1])

    def close(self) -> None:
        """End the emulator, and the command with it; what is started next on its socket is another one."""
        server = int(self.says("pid"))
        self._run("kill-server")
        until(lambda: not alive(server), what="the end of tmux")


@contextmanager
def emulator(
    folder: Path, *command: str, env: Mapping[str, str], columns: int = 120, rows: int = 40
) -> Iterator[Emulator]:
    """Run a command in a terminal emulator until the body ends."""
    made = Emulator(folder / "tmux", columns, rows, command, env)
    try:
        yield made
    finally:
        made.close()
