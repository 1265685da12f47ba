"""Scenario files: sessions at a shell as text that a person reads, played against the installed commands.

    $ COMMAND          is typed; with ` &` at its end it goes on beside the session, as %1, %2, ...
    ? COMMAND          is typed again and again until it shows this
    < LINE             goes to its stdin, which else is empty
    > LINE             is what it prints
    ! LINE             is what it says on stderr
    exit N             is how it ends

`$ wait %1` and `$ kill -INT %1` show the rest of what `%1` says, and how it ends. Of a command that goes on the
session waits for the lines that are shown. `-- NAME --` begins a file of the session's folder, `uses FOLDER` fills that
from the repository before; every other line is prose. A line `...` stands for any lines, `...` inside of one for
anything, `<pid>` and its like for what their patterns allow; in a command `<id>`, `<port>` and `<postmortem>` are the
last that were seen. Where a line has several spaces there may be as many others.
"""

import difflib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 20.0  # for a line that is shown, and for an end

# What differs from one session to the next, and how it looks.
PLACEHOLDERS = {
    "clock": r"(?:\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d(?:\.\d{3}Z)?",
    "id": r"(?:invoke|run|repl|local)-[0-9a-f]{8}",
    "number": r"\d+",
    "pid": r"\d+",
    "port": r"\d+",
    "postmortem": r"\d{8}-\d{6}-[a-z0-9]+-[0-9a-f]{4}",
    "seconds": r"\d+(?:\.\d+)?",
    "sha256": r"[0-9a-f]{64}",
    "size": r"\d+(?:\.\d+)? (?:B|[KMG]iB)",
    "time": r"\d+\.\d+",
    "version": r"\d+\.\d+\.\d+\S*",
}
REMEMBERED = ("id", "port", "postmortem")  # in a command they stand for the last one that was seen
# How a recorded line gets them: what is left is for the eye of who records.
_VARIABLE = (
    (r"^(?:\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d(?:\.\d{3}Z)?", "<clock>"),
    (r"\b(?:invoke|run|repl|local)-[0-9a-f]{8}\b", "<id>"),
    (r"\b\d{8}-\d{6}-[a-z0-9]+-[0-9a-f]{4}\b", "<postmortem>"),
    (r"\b[0-9a-f]{64}\b", "<sha256>"),
    (r"\b\d+(?:\.\d+)? [KMG]iB\b", "<size>"),
    (r"((?:child|supervisor|pid|server) |\"pid\": ?)\d+", r"\1<pid>"),
    (r"(idle|busy)( +)\d+", r"\1\2<pid>"),
    (r"\b\d{9,}\.\d+\b", "<time>"),
    (r"\b\d+\.\d+(?= ?(?:s|ms)\b)", "<seconds>"),
    (r"(127\.0\.0\.1|\[::1\]):\d+", r"\1:<port>"),
)
_MARKED = re.compile(r"([$?<>!]) (.*)|([<>!])|exit (-?\d+)")
_JOB = re.compile(r"(?:wait|kill -(\w+)) %(\d+)")
_FILE = re.compile(r"^-- (\S+) --\n", re.MULTILINE)


@dataclass
class Step:
    """A command, what it is told, and what comes of it."""

    command: str
    repeated: bool = False
    stdin: list[str] = field(default_factory=list)
    stdout: list[str] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)
    code: int | None = None

    def lines(self) -> list[str]:
        """The step as it stands in a file."""
        marked = [("<", self.stdin), (">", self.stdout), ("!", self.stderr)]
        shown = [f"{mark} {line}".rstrip() for mark, lines in marked for line in lines]
        end = [] if self.code is None else [f"exit {self.code}"]
        return [f"{'?' if self.repeated else '$'} {self.command}", *shown, *end]


@dataclass
class Scenario:
    """A scenario file: prose and steps in their order, the folder it begins with, and its files."""

    parts: list[str | Step]
    files: dict[str, str]
    uses: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Scenario":
        """Read a scenario file."""
        session, *named = _FILE.split(text)
        found = cls([], dict(zip(named[::2], named[1::2], strict=True)))
        step: Step | None = None
        for line in session.splitlines():
            marked = _MARKED.fullmatch(line)
            if marked is None:
                step = None
                found.parts.append(line)
                if line.startswith("uses "):
                    found.uses = line.removeprefix("uses ")
            elif marked[1] in ("$", "?"):
                step = Step(marked[2], repeated=marked[1] == "?")
                found.parts.append(step)
            else:
                assert step is not None, f"no command before `{line}`"
                _put(step, marked)
        return found

    def text(self) -> str:
        """The file that this is."""
        lines = [line for part in self.parts for line in ([part] if isinstance(part, str) else part.lines())]
        return "\n".join(lines) + "\n" + "".join(f"-- {name} --\n{text}" for name, text in self.files.items())


def _put(step: Step, marked: re.Match[str]) -> None:
    if marked[4] is not None:
        step.code = int(marked[4])
        return
    lines = {"<": step.stdin, ">": step.stdout, "!": step.stderr}[marked[1] or marked[3]]
    lines.append(marked[2] or "")


# --- comparing --------------------------------------------------------------------------------------------------------


def pattern_of(line: str, folder: Path) -> str:
    """The regular expression of a line that is shown."""
    pattern = ""
    for part in re.split(r"(\.\.\.|<\w+>| {2,})", line):
        name = part[1:-1]
        if part == "...":
            pattern += ".*"
        elif part.startswith("<") and name in PLACEHOLDERS:
            named = name in REMEMBERED and f"(?P<{name}>" not in pattern
            pattern += f"(?P<{name}>{PLACEHOLDERS[name]})" if named else PLACEHOLDERS[name]
        elif part.startswith("  "):
            pattern += " +"
        else:
            pattern += re.escape(part.replace("<folder>", str(folder)).replace("<home>", str(folder.parent)))
    return pattern


def matching(shown: Sequence[str], printed: Sequence[str], folder: Path) -> set[int]:
    """Return how many of the printed lines all that are shown may stand for; nothing when they do not fit."""
    ends = {0}
    for line in shown:
        if line == "...":
            ends = set(range(min(ends, default=len(printed) + 1), len(printed) + 1))
        else:
            pattern = re.compile(pattern_of(line, folder))
            ends = {at + 1 for at in ends if at < len(printed) and pattern.fullmatch(printed[at].rstrip())}
    return ends


def generalised(line: str, folder: Path) -> str:
    """The line with placeholders for what differs from session to session."""
    line = line.rstrip().replace(str(folder), "<folder>").replace(str(folder.parent), "<home>")
    for pattern, placeholder in _VARIABLE:
        line = re.sub(pattern, placeholder, line)
    return line


def settled(shown: Sequence[str], printed: Sequence[str], folder: Path) -> list[str]:
    """The printed lines in the words that are shown, where they agree."""
    patterns = [(line, re.compile(pattern_of(line, folder))) for line in shown if line != "..."]
    return [
        next((line for line, pattern in patterns if pattern.fullmatch(each.rstrip())), generalised(each, folder))
        for each in printed
    ]


# --- playing ----------------------------------------------------------------------------------------------------------


class Job:
    """A command that was typed: where its output goes, and how much of that has been shown."""

    def __init__(self, command: str, stage: "Stage", *, stdin: list[str], goes_on: bool) -> None:
        number = len(list(stage.streams.glob("*.out")))
        self._places = {"stdout": stage.streams / f"{number}.out", "stderr": stage.streams / f"{number}.err"}
        self._seen = {"stdout": 0, "stderr": 0}
        given = stage.streams / f"{number}.in"
        given.write_text("".join(f"{line}\n" for line in stdin))
        with self._places["stdout"].open("wb") as out, self._places["stderr"].open("wb") as err, given.open() as file:
            self.process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=stage.folder,
                env=stage.environment,
                stdin=subprocess.PIPE if goes_on and stdin else file if stdin else subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self._stdin: BinaryIO | None = self.process.stdin  # type: ignore[assignment]
        if self._stdin is not None:
            self._stdin.write(given.read_bytes())
            self._stdin.flush()

    def lines(self, stream: str) -> list[str]:
        """What has come and was not shown yet."""
        return self._places[stream].read_text(errors="replace").splitlines()[self._seen[stream] :]

    def show(self, stream: str, number: int) -> list[str]:
        """Take the next lines as shown."""
        shown = self.lines(stream)[:number]
        self._seen[stream] += number
        return shown

    def end(self) -> int:
        """Wait until it has ended, with nothing more on its stdin."""
        if self._stdin is not None:
            with suppress(BrokenPipeError):
                self._stdin.close()
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """End it if it has not."""
        with suppress(BrokenPipeError):
            if self._stdin is not None:
                self._stdin.close()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise


class Stage:
    """A folder and an environment in which a scenario is played, until it is closed."""

    def __init__(self, scenario: Scenario, place: Path) -> None:
        self.folder = place / "here"
        self.streams = place / "streams"
        self.streams.mkdir()
        if scenario.uses is None:
            self.folder.mkdir()
        else:
            shutil.copytree(ROOT / scenario.uses, self.folder, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        for name, text in scenario.files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text)
        self.environment = {
            "HOME": str(place),
            "LANG": "C.UTF-8",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "USER": "ada",
            "GEN_WORKER_RUN_DIR": str(place / "run"),
            **{
                name: value for name, value in os.environ.items() if name == "PYTHONPATH" or name.startswith("GW_TESTS")
            },
        }
        self._seen = {"folder": str(self.folder)}
        self._jobs: list[Job] = []
        self._open = ExitStack()

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._open.close()

    def play(self, step: Step) -> Step:
        """Do what a step says; return it as it went, in the step's words where they agree."""
        command = re.sub(r"<(\w+)>", lambda found: self._seen.get(found[1], found[0]), step.command)
        if step.repeated:
            return self._again(step, command)
        if (named := _JOB.fullmatch(command)) is not None:
            job = self._jobs[int(named[2]) - 1]
            if named[1]:
                job.process.send_signal(signal.Signals[f"SIG{named[1]}"])
            return self._ended(step, job)
        goes_on = command.endswith(" &")
        job = Job(command.removesuffix(" &"), self, stdin=step.stdin, goes_on=goes_on)
        self._open.callback(job.close)
        if not goes_on:
            return self._ended(step, job)
        self._jobs.append(job)
        return self._begun(step, job)

    def _again(self, step: Step, command: str) -> Step:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            job = Job(command, self, stdin=step.stdin, goes_on=False)
            came = self._ended(step, job)
            if came.lines() == step.lines() or time.monotonic() > deadline:
                return came

    def _ended(self, step: Step, job: Job) -> Step:
        code = job.end()
        stdout, stderr = (
            self._came(shown, job, stream, whole=True)
            for shown, stream in ((step.stdout, "stdout"), (step.stderr, "stderr"))
        )
        return Step(step.command, step.repeated, step.stdin, stdout, stderr, code)

    def _begun(self, step: Step, job: Job) -> Step:
        """Wait until what is shown of a command that goes on has come."""
        deadline = time.monotonic() + PATIENCE_S
        wanted = (("stdout", step.stdout), ("stderr", step.stderr))
        while not all(matching(shown, job.lines(stream), self.folder) for stream, shown in wanted):
            if time.monotonic() > deadline or job.process.poll() is not None:
                break
            time.sleep(0.01)
        stdout, stderr = (self._came(shown, job, stream, whole=False) for stream, shown in wanted)
        return Step(step.command, step.repeated, step.stdin, stdout, stderr)

    def _came(self, shown: list[str], job: Job, stream: str, *, whole: bool) -> list[str]:
        printed = job.lines(stream)
        ends = matching(shown, printed, self.folder)
        if len(printed) in ends or (ends and not whole):
            self._remember(shown, job.show(stream, len(printed) if whole else min(ends)))
            return shown
        last = re.compile(pattern_of(shown[-1], self.folder)) if shown and not whole else None
        at = next((at for at, line in enumerate(printed) if last and last.fullmatch(line)), len(printed) - 1)
        return settled(shown, job.show(stream, at + 1), self.folder)

    def _remember(self, shown: list[str], printed: list[str]) -> None:
        for pattern in (re.compile(pattern_of(line, self.folder)) for line in shown):
            for found in filter(None, (pattern.fullmatch(line.rstrip()) for line in printed)):
                self._seen |= found.groupdict()


def play(scenario: Scenario, place: Path) -> Iterator[tuple[Step, Step]]:
    """Play a scenario in an empty folder; give each step as it is shown and as it went."""
    with Stage(scenario, place) as stage:
        for part in scenario.parts:
            if isinstance(part, Step):
                yield part, stage.play(part)


def difference(shown: Step, came: Step) -> str:
    """The whole step with what differs marked as in a diff; nothing when nothing does."""
    lines = difflib.ndiff(shown.lines(), came.lines())
    return "" if shown.lines() == came.lines() else "\n".join(line for line in lines if not line.startswith("?"))
