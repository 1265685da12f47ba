"""`gen-worker doctor`: whether this host is fit for a worker, and whether what is promised holds on it."""

import os
import shutil
import signal
import sys
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click
import msgspec
from click.shell_completion import CompletionItem

from gen_worker.cli.command import Command
from gen_worker.cli.failure import CANCELED, MEANINGS, OK, USAGE, USER_CODE, Failure, nearest
from gen_worker.cli.project import find_project, project_options
from gen_worker.cli.serve import refuse_other_systems
from gen_worker.doctor.finding import Finding, Status
from gen_worker.terminal import Style, colours, paint, printable

if TYPE_CHECKING:
    from gen_worker.doctor.chaos.trial import Result

SCHEMA = 1
_WIDTH = 80
_WORD, _NAME = 7, 17  # columns
_HELP = """Look at this host, and say what a worker lacks here and what to do about it.

Nothing is changed, no running supervisor is disturbed. `--online` asks the hubs, too; `--module` or `--config` looks
at what an endpoint needs.

`--chaos` breaks things: it starts a supervisor that is there for nothing else, kills, hangs and floods its children,
and says which promises hold on this host, with times.

\b
gen-worker doctor
gen-worker doctor --only gpus --json
gen-worker doctor --chaos"""
_MEANINGS = {
    **MEANINGS,
    OK: "nothing is in the way of a worker",
    USER_CODE: "there is a problem, or a promise does not hold",
    USAGE: "wrong usage",
}
_GLYPHS = {Status.OK: "✔", Status.WARNING: "!", Status.PROBLEM: "✖", Status.SKIPPED: "·"}
_STYLES: dict[Status, Style] = {
    Status.OK: "green",
    Status.WARNING: "yellow",
    Status.PROBLEM: "red",
    Status.SKIPPED: "dim",
}


class _Doctor(Command):
    meanings = _MEANINGS


def _complete_only(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the checks and their groups, with `--chaos` the faults."""
    if ctx.params.get("chaos"):
        from gen_worker.doctor.chaos.faults import FAULTS

        names = [fault.name for fault in FAULTS]
    else:
        names = _names_of_checks()
    return [CompletionItem(name) for name in names if name.startswith(begun)]


def _names_of_checks() -> list[str]:
    """Return every check and every group, in the order in which they are told, and what else may be found."""
    from gen_worker.doctor.checks import Endpoint, Patient, checks

    every = checks(Patient.here(os.environ, Endpoint("", []), online=True))
    names = [name for check in every for name in (check.group, check.name, *check.tells)]
    return list(dict.fromkeys(name for name in names if "*" not in name))


@click.command("doctor", cls=_Doctor, help=_HELP, codes=(OK, USER_CODE, USAGE, CANCELED))
@click.option("--json", "as_json", is_flag=True, help="Print a document.")
@click.option(
    "--only",
    metavar="NAME",
    multiple=True,
    shell_complete=_complete_only,
    help="Only this check or group of checks, with --chaos this fault; repeatable, or with commas.",
)
@click.option("--online", is_flag=True, help="Ask the hubs that models come from, too.")
@click.option("--chaos", is_flag=True, help="Break things in a supervisor of its own, and see what holds.")
@project_options
def command(
    as_json: bool, only: tuple[str, ...], online: bool, chaos: bool, config: str | None, module: str | None
) -> int:
    """Look at this host."""
    names = [name.strip() for part in only for name in part.split(",") if name.strip()]
    if chaos:
        if online or config or module:
            raise Failure("`--chaos` with options of the other checks", "it takes `--only` and `--json`")
        return _break(names, as_json)
    from gen_worker.doctor.checks import Endpoint, Patient, checks
    from gen_worker.doctor.examination import examine

    project = find_project(config, module) if config or module else None
    endpoint = Endpoint(project.module, project.paths) if project is not None else None
    wanted = checks(Patient.here(os.environ, endpoint, online=online))
    if names:
        unknown = [name for name in names if not any(check.answers_to(name) for check in wanted)]
        _refuse_unknown("check", unknown, _names_of_checks())
        wanted = [check for check in wanted if any(map(check.answers_to, names))]
    found = ((told.group, each) for told in examine(wanted, _say_slow) for each in told.findings)
    return _print_document(list(found)) if as_json else _print_text(found)


def _refuse_unknown(what: str, names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean `{near}`?" if near else f"there are: {', '.join(sorted(known))}"
            raise Failure(f"no {what} `{name}`", hint)


def _say_slow(name: str) -> None:
    sys.stderr.write(f"still looking at `{name}`\n")
    sys.stderr.flush()


# --- what is printed --------------------------------------------------------------------------------------------------


class Look(NamedTuple):
    """How findings are printed: how wide, with a glyph before each word or without, and in colour or not."""

    width: int = _WIDTH
    glyphs: bool = False
    colour: bool = False

    def marked(self, status: Status, word: str = "") -> str:
        """Return the word for a status; neither glyph nor colour is alone in telling it."""
        word = f"{word or status:<{_WORD}}"
        text = f"{_GLYPHS[status]} {word}" if self.glyphs else word
        return paint(text, _STYLES[status]) if self.colour else text

    @property
    def indent(self) -> int:
        """How far in a finding's text begins, but for its name."""
        return 2 + _WORD + (2 if self.glyphs else 0) + 2


def look_of_stdout() -> Look:
    """Return the look for stdout."""
    terminal = sys.stdout.isatty()
    width = max(_WIDTH, shutil.get_terminal_size().columns) if terminal else _WIDTH
    glyphs = terminal and "utf" in (sys.stdout.encoding or "").lower()
    return Look(width, glyphs, colours(sys.stdout, os.environ))


def _print_text(found: Iterable[tuple[str, Finding]]) -> int:
    look, counted = look_of_stdout(), Counter[Status]()
    group = ""
    for heading, finding in found:
        if heading != group:
            click.echo(("" if not group else "\n") + (paint(heading, "bold") if look.colour else heading), color=True)
            group = heading
        for line in lines(finding, look):
            click.echo(line, color=True)
        sys.stdout.flush()
        counted[finding.status] += 1
    click.echo(f"\n{summary(counted)}")
    return USER_CODE if counted[Status.PROBLEM] else OK


def lines(finding: Finding, look: Look) -> Iterator[str]:
    """Return a finding as lines: what was found, and what to do."""
    name = f"{finding.name:<{_NAME}}"
    indent = " " * look.indent
    texts = _wrapped(f"{name}  {printable(finding.found)}", look.width - look.indent, len(name) + 2)
    yield f"  {look.marked(finding.status)}  {texts[0]}"
    yield from (indent + text for text in texts[1:])
    if finding.remedy:
        inner = " " * (len(name) + 2)
        hint = paint("hint:", "blue") if look.colour else "hint:"
        told = _wrapped(f"hint: {printable(finding.remedy)}", look.width - look.indent - len(inner), 6)
        yield indent + inner + hint + told[0].removeprefix("hint:")
        yield from (indent + inner + text for text in told[1:])


def _wrapped(text: str, width: int, indent: int) -> list[str]:
    return textwrap.wrap(
        text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    ) or [""]


def summary(counted: Counter[Status]) -> str:
    """Return how many findings there are of each kind."""
    parts = [f"{counted[Status.OK]} ok"]
    for status, one, many in (
        (Status.WARNING, "warning", "warnings"),
        (Status.PROBLEM, "problem", "problems"),
        (Status.SKIPPED, "skipped", "skipped"),
    ):
        if counted[status]:
            parts.append(f"{counted[status]} {one if counted[status] == 1 else many}")
    return ", ".join(parts)


def _print_document(found: Sequence[tuple[str, Finding]]) -> int:
    import gen_worker

    problems = any(finding.status is Status.PROBLEM for _, finding in found)
    findings = [{"group": group, **msgspec.to_builtins(finding)} for group, finding in found]
    _print_json({"version": gen_worker.__version__, "ok": not problems, "findings": findings})
    return USER_CODE if problems else OK


def _print_json(document: dict[str, Any]) -> None:
    click.echo(msgspec.json.encode({"schema": SCHEMA, **document}))


# --- chaos ------------------------------------------------------------------------------------------------------------


def _break(names: Sequence[str], as_json: bool) -> int:
    """Try faults in a supervisor of its own; Ctrl-C and SIGTERM end that, too."""
    refuse_other_systems("doctor --chaos")
    from gen_worker.doctor.chaos.faults import FAULTS
    from gen_worker.doctor.chaos.scratch import ScratchError
    from gen_worker.doctor.chaos.trial import run

    _refuse_unknown("fault", names, [fault.name for fault in FAULTS])
    wanted = [fault for fault in FAULTS if not names or fault.name in names]
    _end_on_signals()
    look, results = look_of_stdout(), []
    faults = "1 fault" if len(wanted) == 1 else f"{len(wanted)} faults"
    sys.stderr.write(f"trying {faults} in a supervisor that is there for nothing else\n")
    under_way = iter(fault.name for fault in wanted)
    try:
        with closing(run(wanted)) as trial:
            _show(next(under_way))
            for result in trial:
                _show("")
                results.append(result)
                if not as_json:
                    click.echo("\n".join(borne(result, look)), color=True)
                    sys.stdout.flush()
                _show(next(under_way, ""))
    except ScratchError as error:
        raise Failure(str(error), "`gen-worker doctor` may say why", code=USER_CODE) from None
    held = sum(result.verdict == "holds" for result in results)
    failed = sum(result.verdict == "fails" for result in results)
    if as_json:
        _print_json({"ok": not failed, "faults": results})
    else:
        skipped = f", {len(results) - held - failed} skipped" if held + failed < len(results) else ""
        click.echo(f"\n{held} of {held + failed} promises hold{skipped}")
    return USER_CODE if failed else OK


def _show(name: str) -> None:
    """Show on a terminal, until the next thing is said, which fault is being tried; an empty name for none."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K  …        {name}" if name else "\r\x1b[K")
        sys.stderr.flush()


def borne(result: "Result", look: Look) -> Iterator[str]:
    """Return how a fault was borne as lines: what is promised, what was measured, and what was not as it must be."""
    status = {"holds": Status.OK, "fails": Status.PROBLEM, "skipped": Status.SKIPPED}[result.verdict]
    measured = result.measured
    if result.limit:
        measured += f" (limit: {result.limit})"
    if result.others_s is not None:
        measured += f"; jobs of others: {result.others_s * 1000:.0f} ms at most"
    indent = " " * (look.indent + _NAME + 2)
    texts = [result.promise, measured, *(f"wrong: {each}" for each in result.wrong)]
    parts = [printable(part) for text in texts for part in text.splitlines()]
    shown = [line for part in parts for line in _wrapped(part, look.width - len(indent), 0)]
    yield f"  {look.marked(status, result.verdict)}  {result.name:<{_NAME}}  {shown[0]}"
    yield from (indent + line for line in shown[1:])


def _end_on_signals() -> None:
    """End in order at SIGTERM and SIGHUP from now on, as at Ctrl-C, and say so: nothing that was started may stay."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    os.write(2, b"\nending what was started\n")
    raise KeyboardInterrupt
