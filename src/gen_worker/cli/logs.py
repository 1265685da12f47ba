"""`gen-worker logs`: what children printed, jobs logged and the supervisor told, from its memory and its files."""

import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

import click
from msgspec.structs import replace

from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_target
from gen_worker.cli.devices import named, names_of
from gen_worker.cli.failure import CANCELED, MEANINGS, NOT_FOUND, OK, UNREACHABLE, USAGE, Failure, nearest, say
from gen_worker.cli.log_reading import Asked, Meant, Told, goes_back_to, kept, last_words, limited
from gen_worker.cli.numbers import Count
from gen_worker.cli.readers import while_somebody_reads
from gen_worker.cli.settings import read_settings
from gen_worker.cli.since import clock, since_option
from gen_worker.cli.supervisors import connected, socket_option
from gen_worker.line_files import LineFileError
from gen_worker.log_files import Line, folder_in
from gen_worker.rundir import SupervisorUnreachable, live_supervisors
from gen_worker.terminal import Style, colours, paint, printable
from gen_worker.wire.messages import Level
from gen_worker.wire.status import Status

if TYPE_CHECKING:
    from gen_worker.client import Client

SHOWN = 100  # lines, when nobody says how many
_STYLES: dict[Level, Style] = {"warning": "yellow", "error": "red", "debug": "dim"}

_HELP = f"""Show what children printed, jobs logged and the supervisor told; of one DEVICE or one REQUEST.

The last {SHOWN} lines, or as many as `--lines` says, or all since `--since`. What the supervisor does not remember any
more is in files in `logs` in the run directory; these are read where no supervisor is alive, too. Times are in UTC.

\b
gen-worker logs
gen-worker logs cuda:0 --follow
gen-worker logs r-7f3a --level warning
gen-worker logs --since 10m --grep "out of memory" --json"""


class _Command(Command):
    meanings = {**MEANINGS, NOT_FOUND: "no such device or request", CANCELED: "Ctrl-C"}  # noqa: RUF012 - nobody changes it


class Wanted(NamedTuple):
    """What of the log is to be shown, and how."""

    of: str | None
    meant: Meant
    follow: bool
    as_json: bool
    socket: str | None


@click.command("logs", cls=_Command, help=_HELP, codes=(OK, USAGE, UNREACHABLE, NOT_FOUND, CANCELED))
@click.argument("of", metavar="[DEVICE|REQUEST]", required=False, shell_complete=complete_target)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@since_option
@click.option("-n", "--lines", "last", type=Count(0), metavar="N", help="So many of the last lines.")
@click.option("--level", type=click.Choice(get_args(Level)), default="debug", help="Nothing that is less grave.")
@click.option("--grep", default="", metavar="TEXT", help="Only lines with this text, in capitals or not.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@socket_option
def command(
    of: str | None,
    follow: bool,
    since: float | None,
    last: int | None,
    level: Level,
    grep: str,
    as_json: bool,
    socket_: str | None,
) -> int:
    """Show the log."""
    number = SHOWN if last is None and since is None else last
    return show(Wanted(of, Meant(level=level, grep=grep, since=since, last=number), follow, as_json, socket_))


def show(wanted: Wanted) -> int:
    """Show lines of the log: those that there are and, where that is wanted, those that come."""
    run_dir = read_settings().run_dir
    if wanted.socket is None and not wanted.follow and not live_supervisors(run_dir):
        return _show_kept(wanted, run_dir)
    with connected(wanted.socket, "gen-worker logs") as client:
        meant = wanted.meant
        if wanted.of is not None:
            meant = _aimed(wanted.of, meant, client.list())
        asked = Asked(client, meant)
        found = limited(_with_older(asked, client, run_dir, meant), meant.last)
        if not found and meant.request_id:
            _explain(asked, meant, client.list(), run_dir)
        show_lines(found, wanted.as_json)
        if wanted.follow:
            _follow(asked, meant, run_dir, client.supervisor.boot_id, as_json=wanted.as_json)
    return OK


def _with_older(asked: Asked, client: "Client", run_dir: Path, meant: Meant) -> list[Told]:
    """Return what a supervisor remembers, after what is only in the files, where that is wanted."""
    found = asked.remembered()
    enough = meant.last is not None and len(found) >= meant.last
    oldest = asked.oldest()
    if enough or oldest is None or (meant.since is not None and oldest.ts < meant.since):
        return found
    return kept(run_dir, meant, client.supervisor.boot_id, oldest) + found


def _follow(asked: Asked, meant: Meant, run_dir: Path, boot_id: str, *, as_json: bool) -> None:
    """Show lines as they come; of a supervisor that ends those, too, that it tells when its socket is closed."""
    with while_somebody_reads():
        try:
            for found in asked.coming():
                if asked.left_out:
                    say("warning", f"{asked.left_out} lines are missing: they came faster than they were read")
                show_lines(found, as_json)
        except SupervisorUnreachable:
            show_lines(last_words(run_dir, meant, boot_id, asked.last), as_json)
            raise


def _show_kept(wanted: Wanted, run_dir: Path) -> int:
    """Show what is in the files, as no supervisor is alive; what is named may be a device or a request."""
    meant, of = wanted.meant, wanted.of
    found = kept(run_dir, meant)
    if not found and not folder_in(run_dir).exists():
        text = f"no supervisor is alive in `{run_dir}`, and no log of one is kept"
        raise Failure(text, "start one with `gen-worker serve`", code=UNREACHABLE)
    if of is not None:
        found = [told for told in found if of in _names(told.line)]
        if not found:
            _explain_kept(of, meant, run_dir)
    show_lines(limited(found, meant.last), wanted.as_json)
    return OK


def _aimed(of: str, meant: Meant, status: Status) -> Meant:
    """Return what is meant with the device or the request that a person named, which `kill` may list as `link/id`."""
    device = named(of, status.gpus)
    if device is not None:
        return meant._replace(device=device.name)
    linked = {f"{job.link}/{job.id}": job.id for job in status.jobs}
    return meant._replace(request_id=linked.get(of, of))


def _explain(asked: Asked, meant: Meant, status: Status, run_dir: Path) -> None:
    """Say why there is no line of a request; raise `Failure` for one that nobody has heard of."""
    running = {job.id: time.time() - job.elapsed_s for job in status.jobs}
    began = _began(meant.request_id, running, run_dir)
    if began is None:
        raise _unknown(meant.request_id, {*running, *(name for device in status.gpus for name in names_of(device))})
    _say_nothing_told(meant.request_id, meant, began, goes_back_to(run_dir, asked.oldest()))


def _explain_kept(of: str, meant: Meant, run_dir: Path) -> None:
    """Say why nothing that is kept is of a device or a request; raise `Failure` where nothing ever was."""
    lines = [told.line for told in kept(run_dir, Meant())]
    began = _began(of, {}, run_dir)
    if began is None and not any(of in _names(line) for line in lines):
        raise _unknown(of, {name for line in lines for name in (line.child, line.job) if name})
    _say_nothing_told(of, meant, began, goes_back_to(run_dir, None))


def _say_nothing_told(of: str, meant: Meant, began: float | None, oldest: float | None) -> None:
    narrowed = meant != Meant(request_id=meant.request_id, last=meant.last) or meant.last == 0
    told = f"`{printable(of)}` has told nothing" + (" that is meant here" if narrowed else "")
    if oldest is not None and began is not None and began < oldest:
        told += f" since {clock(oldest, time.time())}; what it told before that is not kept any more"
    say("hint", told)


def _names(line: Line) -> tuple[str | None, ...]:
    return line.child, line.source, line.job


def _began(request_id: str, running: Mapping[str, float], run_dir: Path) -> float | None:
    """Return when a request began to run, last; None for one that nobody has heard of."""
    from gen_worker.job_records import folder_in as records_in
    from gen_worker.job_records import read

    if request_id in running:
        return running[request_id]
    try:
        ended = [record for record in read(records_in(run_dir)) if record.request_id == request_id]
    except LineFileError:
        return None
    return ended[-1].ts - ended[-1].run_s if ended else None


def _unknown(of: str, names: Iterable[str]) -> Failure:
    near = nearest(of, names)
    hint = f"did you mean `{near}`?" if near else "`gen-worker ps` shows what there is"
    return Failure(f"no device and no request `{of}`", hint, code=NOT_FOUND)


# --- how lines look ---------------------------------------------------------------------------------------------------


def show_lines(found: Iterable[Told], as_json: bool) -> None:
    """Print lines to stdout, at once."""
    now = time.time()
    colour = colours(sys.stdout, os.environ)
    for told in found:
        click.echo(told.text, nl=False) if as_json else click.echo(text_of(told.line, now, colour=colour), color=True)
    sys.stdout.flush()


def text_of(line: Line, now: float, *, colour: bool = False) -> str:
    """Return a line as a person reads it: its time, its source, its job, its level where that is not `info`."""
    told = replace(line, message=printable(line.message, lines=True).replace("\n", "\n  "))
    moment = clock(told.ts, now)
    job = "" if told.job is None else f" job={printable(told.job)}"
    mark = "" if told.level == "info" else f"{told.level}: "
    if colour:
        moment = paint(moment, "dim")
        mark = mark and paint(mark.strip(), _STYLES[told.level]) + " "
    return f"{moment} {printable(told.source)}{job} {mark}{told.message}"
