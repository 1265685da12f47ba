"""What the documentation shows is what happens: its code blocks are run, its console blocks compared with what comes.

Marks stand in an HTML comment before a block:

- `file: NAME`    the block is a file of the page's folder
- `server`        its command goes on, until the page's next one; the next block waits until its output has come and its
                  children are ready
- `meanwhile`     the same in another terminal; its output is compared at the end of the page
- `output`        what the `python` block before it prints
- `not run: WHY`  nothing is run
- `uses: PAGE`    anywhere: the page goes on with the files of another one
- `needs: NAMES`  anywhere: from here on it is followed only where these modules are installed

In expected output `...` stands for anything, lengths of time, sizes and numbers from four digits on for any other such,
`/home/ada/endpoint` for the page's folder, and an id like `invoke-1a2b3c4d`, or of a post-mortem, or a port of
`127.0.0.1`, for the one that came in its place.
"""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.ports import documented_ports

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MEASURED = ROOT / "docs" / "benchmarks.md"  # its commands take minutes, and have tests of their own
HOME = "/home/ada/endpoint"
RUNNABLE = {"python", "console", "sh"}

_BLOCK = re.compile(r"^```(\w*)[ ]*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- ([a-z ]+)(?:: ([^\n]*?))? -->\n\Z")
_USES = re.compile(r"<!-- uses: (\S+) -->")
_NEEDS = re.compile(r"<!-- needs: ([\w, ]+) -->")
_ID = r"invoke-[0-9a-f]{8}|\d{8}-\d{6}-[a-z0-9]+-[0-9a-f]{4}|127\.0\.0\.1:[1-9]\d*"
_PORT = re.compile(r"\b(?:808\d|18081)\b|gen-worker orchestrator")
_LOOSE = re.compile(rf"\n\.\.\.(?=\n|\Z)|\.\.\.|{_ID}|\d+(?:\.\d+)?(?= ?(?:s|ms|KiB|MiB|GiB)\b)|\d{{4,}}|[ ]+")


class Block(NamedTuple):
    """One fenced block and the mark before it."""

    language: str
    text: str
    mark: str
    value: str
    line: int


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in _BLOCK.finditer(text):
        mark = _MARK.search(text, 0, found.start())
        kind, value = (mark[1], mark[2] or "") if mark else ("", "")
        yield Block(found[1], found[2], kind, value, text.count("\n", 0, found.start()) + 1)


def followed(page: Path) -> Iterator[Block]:
    """The blocks of a page up to where it needs what is not installed."""
    text = page.read_text()
    for block in blocks_of(page):
        above = "".join(text.splitlines(keepends=True)[: block.line - 1])
        needed = {name for found in _NEEDS.findall(above) for name in found.replace(",", " ").split()}
        if all(importlib.util.find_spec(name) for name in needed):
            yield block


def commands_of(block: Block) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the output that is shown for it."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        while command.endswith("\\"):
            more, _, shown = shown.partition("\n")
            command = f"{command[:-1]}{more.lstrip('> ')}"
        yield command, shown


class Reader:
    """Somebody who does what a page says, in a folder of their own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.ids: dict[str, str] = {}
        self.printed = ""
        self.pending: list[tuple[Path, str]] = []
        self._stack = stack
        self._server = stack.enter_context(ExitStack())
        binaries = Path(sys.executable).parent
        told = "PYTEST_ADDOPTS"  # says what a run of tests prints
        inherited = {name: value for name, value in os.environ.items() if name != told}
        self._environment = inherited | {
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "GEN_WORKER_RUN_DIR": str(folder / "run"),
            "TENSORHUB_CACHE_DIR": str(folder / "models"),
        }

    def follow(self, block: Block) -> None:
        """Do what a block says."""
        match block.mark, block.language:
            case "file", _:
                target = self.folder / block.value
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(block.text)
            case "output", _:
                self.compare(block.text, self.printed)
            case (("server" | "meanwhile"), "console"):
                ((command, shown),) = commands_of(block)
                if block.mark == "server":
                    self._server.close()
                log = (self._server if block.mark == "server" else self._stack).enter_context(self.running(command))
                if block.mark == "server":
                    self.await_output(log, shown)
                    self.await_children()
                else:
                    self.pending.append((log, shown))
            case _, "console":
                for command, shown in commands_of(block):
                    self.type_in(command, shown)
            case _, "python":
                self.printed = self.run([sys.executable, "-c", block.text], strict=True)
            case _, "sh":
                self.run(["bash", "-ec", block.text], strict=True)

    def finish(self) -> None:
        """See how what ran meanwhile has ended."""
        for log, shown in self.pending:
            self.await_output(log, shown)

    def run(self, command: list[str], *, strict: bool = False) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=150,
            check=False,
        )
        assert not strict or done.returncode == 0, done.stdout
        return done.stdout

    def type_in(self, command: str, shown: str) -> None:
        for known, real in self.ids.items():
            command = command.replace(known, real)
        waits = time.monotonic() + (10 if command.startswith("gen-worker ps") else 0)  # it shows a moment
        while not self.matches(shown, printed := self.run(["bash", "-c", command])) and time.monotonic() < waits:
            time.sleep(0.02)
        self.compare(shown, printed)

    @contextmanager
    def running(self, command: str) -> Iterator[Path]:
        log = self.folder / f"terminal-{len(list(self.folder.glob('terminal-*')))}"
        with (
            log.open("wb") as out,
            subprocess.Popen(
                ["bash", "-c", command],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            ) as process,
        ):
            try:
                yield log
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    raise

    def await_children(self) -> None:
        """Wait as a person does until the children have started, so that jobs go where the page says."""
        deadline = time.monotonic() + 30
        while True:
            document = self.run(["gen-worker", "ps", "--json"], strict=True)
            states = {device["state"] for device in json.loads(document)["gpus"]}
            if states == {"idle"}:
                return
            assert time.monotonic() < deadline, states
            time.sleep(0.02)

    def await_output(self, log: Path, shown: str) -> None:
        deadline = time.monotonic() + 30
        while not self.matches(shown, log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.compare(shown, log.read_text())

    def compare(self, shown: str, printed: str) -> None:
        assert self.matches(shown, printed), f"the page shows:\n{shown}\nbut this came:\n{printed}"

    def matches(self, shown: str, printed: str) -> bool:
        names: list[str] = []

        def loosely(found: re.Match[str]) -> str:
            text = found[0]
            if text == "\n...":
                return r"(?:\n.*?)?"
            if text == "...":
                return ".*?"
            if re.fullmatch(_ID, text):
                names.append(text)
                return f"({_ID})"
            return " +" if not text.strip() else r"\d+(?:\.\d+)?"

        pattern, end = "", 0
        whole = shown.strip().replace(HOME, str(self.folder))
        for found in _LOOSE.finditer(whole):
            pattern += re.escape(whole[end : found.start()]) + loosely(found)
            end = found.end()
        pattern += re.escape(whole[end:])
        tidy = "\n".join(line.rstrip() for line in printed.strip().splitlines())
        found_all = re.fullmatch(pattern, tidy, re.DOTALL)
        if found_all is not None:
            self.ids |= dict(zip(names, found_all.groups(), strict=True))
        return found_all is not None


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.process
@pytest.mark.parametrize("page", [page for page in PAGES if page != MEASURED], ids=name_of)
def test_what_a_page_shows_happens(page: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        if _PORT.search(page.read_text()):
            stack.enter_context(documented_ports())
        reader = Reader(tmp_path, stack)
        for used in _USES.findall(page.read_text()):
            for block in blocks_of(page.parent / used):
                if block.mark == "file":
                    reader.follow(block)
        for block in followed(page):
            if block.mark == "not run" or not (block.language in RUNNABLE or block.mark):
                continue
            try:
                reader.follow(block)
            except AssertionError as error:
                error.add_note(f"at {name_of(page)}:{block.line}")
                raise
        reader.finish()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    for block in blocks_of(page):
        assert block.mark != "not run" or block.value, f"{name_of(page)}:{block.line}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_is_shown_as_json_is_json(page: Path) -> None:
    for block in blocks_of(page):
        if block.language == "json":
            for document in re.split(r"\n(?=[\[{])", block.text.strip()):
                json.loads(document)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("done in 0.3 s", "done in 12 s", True),
        ("pid 1234", "pid 99887", True),
        ("1 jobs done", "2 jobs done", False),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...\nd", "a\nd", True),
        ("a\n...", "a", True),
        ("a", "a\nb", False),
        ('{"sha256":"..."}', '{"sha256":"abc"}', True),
        ("killed `invoke-0a1b2c3d`", "killed `invoke-99999999`", True),
        ("cpu:0   idle  -", "cpu:0     idle      -", True),
    ],
)
def test_output_is_compared_as_a_reader_would(shown: str, printed: str, same: bool, tmp_path: Path) -> None:
    with ExitStack() as stack:
        assert Reader(tmp_path, stack).matches(shown, printed) is same
