"""`gen-worker postmortem`: what children died of, read from the run directory, with or without a supervisor."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_postmortem
from gen_worker.cli.failure import MEANINGS, NOT_FOUND, OK, USAGE, Failure, say
from gen_worker.cli.numbers import Count
from gen_worker.cli.settings import read_settings
from gen_worker.cli.table import WIDTH, duration, room, size, table
from gen_worker.postmortem import Held, Moment, PostMortem, PostMortemError, folder_in, names, read
from gen_worker.terminal import printable

LATEST = "latest"
LISTED = 20
_SHOWN_MOMENTS = 8
_BARS = "▁▂▃▄▅▆▇█"

_HELP = """Say what children died of: all of them, the latest first, or the one that ID names.

ID is what an error or the log calls it, or what that begins with, or `latest`. The files are in `postmortems` in the
run directory, and are read without any supervisor.

\b
gen-worker postmortem
gen-worker postmortem latest
gen-worker postmortem 20261122-131502
gen-worker postmortem latest --json | jq .stack"""

_CAUSES = {
    "SIGSEGV": "it used memory that is not its own, most often in native code",
    "SIGBUS": "it used memory that is not there any more, most often a mapped file that was cut",
    "SIGABRT": "native code gave up: a failed check, or an exception of C++ that nobody caught",
    "SIGFPE": "native code divided by zero",
    "SIGILL": "native code uses what this processor has not",
    "unkillable": "the kernel or a driver held it: not even SIGKILL ended it",
    "host_oom": "it was ended before the host ran out of memory",
    "hang": "it did not get on, and was ended",
}
_ENDED_FOR = {
    "cancel": "it was canceled",
    "disconnect": "its client went away",
    "kill": "an operator killed it",
    "deadline": "its deadline had passed",
    "drain": "the supervisor was ending",
    "restart": "an operator had its child replaced",
    "stall": "it did not get on",
}


class _Command(Command):
    meanings = {**MEANINGS, NOT_FOUND: "no such post-mortem"}  # noqa: RUF012 - nobody changes it


@click.command("postmortem", cls=_Command, help=_HELP, codes=(OK, USAGE, NOT_FOUND))
@click.argument("id_", metavar="[ID]", required=False, shell_complete=complete_postmortem)
@click.option("-n", "--last", type=Count(1), metavar="N", help=f"List so many; {LISTED} when it is not given.")
@click.option("--json", "as_json", is_flag=True, help="Print the document, or a list of them.")
def command(id_: str | None, last: int | None, as_json: bool) -> int:
    """Say what children died of."""
    folder = folder_in(read_settings().run_dir)
    try:
        known = names(folder)
        if id_ is not None:
            if last is not None:
                raise Failure("`--last` lists post-mortems, and an ID names one", "leave out one of them")
            told = read(folder, meant(id_, known, folder))
            click.echo(
                msgspec.json.encode(told) if as_json else describe(told, time.time(), room(), bars=_draws_bars())
            )
            return OK
    except PostMortemError as error:
        raise Failure(str(error), "`GEN_WORKER_RUN_DIR` says which run directory is read") from None
    found = _readable(folder, known, last or LISTED)
    if as_json:
        click.echo(msgspec.json.encode(found))
    elif not found:
        click.echo(f"no child has died, as far as `{folder}` says")
    else:
        click.echo(listed(found, time.time(), room()))
        if len(known) > LISTED and last is None:
            say("hint", f"{len(known)} are kept; `--last N` lists more of them")
    return OK


def _draws_bars() -> bool:
    return "utf" in (sys.stdout.encoding or "").lower()


def _readable(folder: Path, known: Sequence[str], number: int) -> list[PostMortem]:
    """Return the latest post-mortems; those that cannot be read are said on stderr."""
    found = []
    for name in known[-number:]:
        try:
            found.append(read(folder, name))
        except PostMortemError as error:
            say("warning", str(error))
    return sorted(found, key=lambda told: -told.when)


def meant(begun: str, known: Sequence[str], folder: Path) -> str:
    """Return the only post-mortem that begins so; raise `Failure` when there is none, or more than one."""
    if begun == LATEST and known:
        return _latest(known, folder)
    fitting = [name for name in known if name.startswith(begun)]
    if begun in fitting:
        return begun
    if not fitting:
        hint = "`gen-worker postmortem` lists what is kept" if known else f"`{folder}` has none"
        raise Failure(f"no post-mortem `{begun}`", hint, code=NOT_FOUND)
    if len(fitting) > 1:
        few = ", ".join(f"`{name}`" for name in fitting[-3:])
        raise Failure(f"`{begun}` may mean {len(fitting)} post-mortems: {few}", "name one of them")
    return fitting[0]


def _latest(known: Sequence[str], folder: Path) -> str:
    """Return the latest post-mortem that can be read; without one the latest of all, so that it is said why."""
    for newest in reversed(known):
        same = [name for name in known if _moment_of(name) == _moment_of(newest)]
        if found := _readable(folder, same, len(same)):
            return found[0].id
    return known[-1]


def _moment_of(name: str) -> str:
    """Return the second in which a post-mortem was written."""
    return "-".join(name.split("-")[:2])


# --- all of them ------------------------------------------------------------------------------------------------------


def listed(found: Sequence[PostMortem], now: float, width: int = WIDTH) -> str:
    """Return one line for each."""
    rows: list[tuple[str, ...]] = []
    for told in found:
        job = suspect(told)
        ended = "" if job is None or job.ended_for is None else f", {job.ended_for}"
        others = f" +{len(told.jobs) - 1}" if len(told.jobs) > 1 else ""
        rows.append(
            (
                told.id,
                duration(max(0.0, now - told.when)),
                told.device,
                told.cause + ended,
                told.loading or "-" if job is None else job.function + others,
                "-" if job is None else job.request_id,
            )
        )
    heads = ("ID", "AGO", "DEVICE", "CAUSE", "FUNCTION", "REQUEST")
    return table(heads, rows, elastic=("CAUSE", "FUNCTION", "REQUEST"), width=width)


def suspect(told: PostMortem) -> Held | None:
    """Return the job that most probably had to do with it: one that was being ended, else one that ran."""
    ranked = sorted(told.jobs, key=lambda job: (job.ended_for is None, job.state == "leased"))
    return ranked[0] if ranked else None


# --- one of them ------------------------------------------------------------------------------------------------------


def describe(told: PostMortem, now: float, width: int = WIDTH, *, bars: bool = True) -> str:
    """Return everything that a person may want to know of one death."""
    parts = [_headline(told, now)]
    if told.jobs:
        parts.append(_jobs(told, width))
    if told.stack:
        parts.append("\n".join(["where it was:", *(f"  {line}" for line in told.stack)]))
    if told.printed:
        parts.append(_last_words(told))
    if told.timeline:
        parts.append(_timeline(told.timeline, width, bars=bars))
    if told.models:
        held = (f"  {each.ref} ({each.tier}, {size(each.bytes)}) of `{each.instance}`" for each in told.models)
        parts.append("\n".join(["models it held:", *held]))
    parts.append(_surroundings(told))
    return printable("\n\n".join(parts), lines=True)


def _headline(told: PostMortem, now: float) -> str:
    child = "a child" if told.pid is None else f"child {told.pid}"
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(told.when))  # as the ID has it
    meaning = explained(told)
    lines = [
        f"{child} of `{told.device}` died: {told.cause}" + (f" ({meaning})" if meaning else ""),
        f"{when}, {duration(max(0.0, now - told.when))} ago; it had lived {duration(told.lived_s)} and ended "
        f"{told.jobs_done} {'job' if told.jobs_done == 1 else 'jobs'} well",
    ]
    if not told.ready:
        lines.append("it was not ready yet" if told.loading is None else f"it was setting up `{told.loading}`")
    elif told.loading is not None:
        lines.append(f"it was setting up `{told.loading}`")
    if told.hang is not None:
        lines.append(f"it hung: {told.hang}")
    lines += _why_ended(told)
    return "\n".join(lines)


def explained(told: PostMortem) -> str:
    """Return what a cause means, "" where that is plain, or nobody knows."""
    if told.cause in _CAUSES:
        return _CAUSES[told.cause]
    if ended := [job for job in told.jobs if job.ended_for is not None]:
        rung = max((climbed.rung for job in ended for climbed in job.rungs), default=None)
        return "a request's ladder" if rung is None else f"rung {rung} of a request's ladder"
    if told.signal == "SIGKILL":
        return "the kernel's out-of-memory killer" if told.oom_kills else "somebody killed it, or the kernel did"
    if told.cause.startswith("protocol"):
        return "its code may have closed or used a descriptor that is not its own"
    if told.exit_code is not None:
        return "its own code, or a library of it, ended the process"
    return ""


def _why_ended(told: PostMortem) -> list[str]:
    lines = []
    for job in told.jobs:
        if job.ended_for is None:
            continue
        lines.append(f"request {job.request_id} was being ended: {_ENDED_FOR.get(job.ended_for, job.ended_for)}")
        lines += [f"  {duration(rung.after_s):>7}  rung {rung.rung}, {rung.name}" for rung in job.rungs]
    return lines


def _jobs(told: PostMortem, width: int) -> str:
    with_tenant = any(job.tenant for job in told.jobs)
    rows = [
        [
            job.request_id,
            job.function,
            *([job.tenant or "-"] if with_tenant else []),
            job.state,
            duration(job.ran_s),
            "-" if job.payload is None else job.payload[:12],
            _became(job),
        ]
        for job in told.jobs
    ]
    heads = ["REQUEST", "FUNCTION", *(["TENANT"] if with_tenant else []), "WAS", "RAN", "PAYLOAD", "BECAME"]
    text = table(heads, rows, elastic=("REQUEST", "FUNCTION", "TENANT"), width=width)
    return f"{text}\nand {told.jobs_left_out} more" if told.jobs_left_out else text


def _became(job: Held) -> str:
    if job.became == "queued":
        return "runs again"
    return "killed" if (job.became, job.ended_for) == ("canceled", "kill") else job.became


def _last_words(told: PostMortem) -> str:
    lines = [f"  {line}" if request is None else f"  [{request}] {line}" for request, line in told.printed]
    return "\n".join(["the last lines it printed:", *lines])


def _timeline(moments: Sequence[Moment], width: int, *, bars: bool) -> str:
    chosen = spread(moments, _SHOWN_MOMENTS)
    with_vram = any(moment.vram for moment in moments)
    rows = [
        [
            "the end" if moment.before_s < 0.05 else f"-{duration(moment.before_s)}",
            moment.phase,
            moment.job or "-",
            " ".join(filter(None, ("" if moment.progress is None else f"{moment.progress:.0%}", moment.stage))) or "-",
            size(moment.rss),
            *([size(moment.vram)] if with_vram else []),
            duration(moment.beat_age_s),
        ]
        for moment in chosen
    ]
    heads = ["TIME", "PHASE", "JOB", "PROGRESS", "MEMORY", *(["VRAM"] if with_vram else []), "BEAT"]
    lines = [table(heads, rows, elastic=("JOB", "PROGRESS"), width=width)]
    for name, curve in (("memory", [moment.rss for moment in moments]), ("vram", [moment.vram for moment in moments])):
        known = [value for value in curve if value]
        if bars and len(known) > 1:
            lines.append(f"{name} {sparkline(known)} {size(min(known))} to {size(max(known))}")
    return "\n".join(lines)


def spread(moments: Sequence[Moment], number: int) -> list[Moment]:
    """Return so many moments, the first and the last among them."""
    if len(moments) <= number:
        return list(moments)
    step = (len(moments) - 1) / (number - 1)
    return [moments[round(index * step)] for index in range(number)]


def sparkline(values: Sequence[int]) -> str:
    """Return a curve as a row of bars, each as high as its value among the others."""
    low, high = min(values), max(values)
    room = max(1, high - low)
    return "".join(_BARS[(value - low) * (len(_BARS) - 1) // room] for value in values)


def _surroundings(told: PostMortem) -> str:
    lines = []
    if told.memory is not None:
        after = "" if told.memory.after is None else f", {size(told.memory.after)} after it"
        used, limit = size(told.memory.used), size(told.memory.limit)
        lines.append(f"memory: {used} of {limit} in use before the death{after} ({told.memory.source})")
    if told.oom_kills:
        lines.append(f"the kernel ended {told.oom_kills} of our processes for lack of memory at that time")
    if told.vram_used is not None and told.vram_total is not None:
        lines.append(f"device: {size(told.vram_used)} of {size(told.vram_total)} in use, {told.device_health}")
    if told.device_reason:
        lines.append(f"device `{told.device}` is {told.device_health}: {told.device_reason}")
    facts = ", ".join(f"{name} {value}" for name, value in told.environment.items())
    lines.append(f"{told.host}, supervisor {told.supervisor}, gen-worker {told.version}; {facts}")
    lines.append(f"post-mortem {told.id}")
    return "\n".join(lines)
