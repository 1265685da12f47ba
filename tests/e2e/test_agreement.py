"""Whatever is wrong with an endpoint, every command that looks at it says the same."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.served import GEN_WORKER

MAIN = """
import msgspec
from gen_worker import endpoint

class Text(msgspec.Struct):
    text: str

@endpoint
def say_it(ctx, payload: Text) -> Text: ...
"""
USAGE, FOUND_FAULTS = 2, 1
COMMANDS = {
    "run --list": ([*GEN_WORKER, "run", "--list"], USAGE),
    "run": ([*GEN_WORKER, "run", "text=a"], USAGE),
    "serve": ([*GEN_WORKER, "serve", "--devices", "cpu:1", "--no-stdin"], USAGE),
    "validate": ([*GEN_WORKER, "validate"], USAGE),
    "discovery": ([sys.executable, "-m", "gen_worker.discovery"], FOUND_FAULTS),
    "discover": ([sys.executable, "-m", "gen_worker.discover"], FOUND_FAULTS),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\n[tool.gen_worker]\nmain = "mine.main"\n')
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "main.py").write_text(MAIN)
    (tmp_path / "Dockerfile").touch()
    (tmp_path / "uv.lock").touch()
    return tmp_path


def said_by(command: str, root: Path) -> tuple[int, list[str]]:
    """Return how a command ended and the last lines of ours that it wrote to stderr."""
    arguments, _ = COMMANDS[command]
    done = subprocess.run(
        arguments, cwd=root, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False
    )
    lines = done.stderr.splitlines()
    return done.returncode, [line for line in lines if line.startswith(("error: ", "hint: "))]


@pytest.mark.parametrize(
    ("main", "error"),
    [
        (None, "error: no module `mine.main`"),
        ("import no_such_library", "error: `mine.main` does not import: ModuleNotFoundError: No module named"),
        ("class A:", "error: `mine.main` does not import: IndentationError"),
        ("1 / 0", "error: `mine.main` does not import: ZeroDivisionError: division by zero"),
        ("raise SystemExit(0)", "error: `mine.main` does not import: SystemExit: 0"),
        (MAIN.replace("payload: Text", "payload"), "error: "),
    ],
    ids=["missing", "dependency", "syntax", "exception", "exit", "handler"],
)
def test_the_words_and_the_remedy_are_the_same_everywhere(root: Path, main: str | None, error: str) -> None:
    if main is None:
        (root / "mine" / "main.py").unlink()
    else:
        (root / "mine" / "main.py").write_text(main)
    told = {command: said_by(command, root) for command in COMMANDS}
    assert {command: status for command, (status, _) in told.items()} == {
        command: status for command, (_, status) in COMMANDS.items()
    }
    words = {tuple(lines) for _, lines in told.values()}
    assert len(words) == 1, told
    assert next(iter(words))[0].startswith(error)


def test_an_import_that_ends_the_process_is_told_the_same_by_all_that_look_from_outside(root: Path) -> None:
    (root / "mine" / "main.py").write_text("import os; os.abort()")
    for command in ("run --list", "serve", "validate", "discovery", "discover"):
        status, lines = said_by(command, root)
        assert (status, lines) == (COMMANDS[command][1], ["error: importing `mine.main` ended the process: SIGABRT"])
