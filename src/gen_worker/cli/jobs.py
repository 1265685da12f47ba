"""`gen-worker jobs`: the jobs that ended, read from the run directory, with or without a supervisor."""

import sys
import time
from collections.abc import Sequence
from operator import attrgetter
from statistics import median

import click
import msgspec

from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_served
from gen_worker.cli.failure import OK, USAGE, Failure
from gen_worker.cli.numbers import Count
from gen_worker.cli.settings import read_settings
from gen_worker.cli.since import clock, since_option
from gen_worker.cli.table import WIDTH, duration, room, size, table
from gen_worker.job_records import JobRecord, folder_in, read, whole
from gen_worker.line_files import LineFileError

SHOWN = 20

_HELP = f"""List the jobs that ended: how long each waited, ran and held its device, and how it ended.

The last {SHOWN}, or as many as `-n` says, or all since `--since`. They are kept in `jobs` in the run directory, and
read without any supervisor. Times are in UTC. HELD is how long a job had its device for itself, PEAK the most memory
of the device that it took, or of the host where it took none of a device.

\b
gen-worker jobs
gen-worker jobs --since 1h --failed
gen-worker jobs --tenant acme --since 1d --json | jq 'map(.device_s) | add'"""


@click.command("jobs", cls=Command, help=_HELP, codes=(OK, USAGE))
@since_option
@click.option("--function", metavar="NAME", help="Only jobs of this function.", shell_complete=complete_served)
@click.option("--tenant", metavar="NAME", help="Only jobs for this tenant.")
@click.option("--failed", is_flag=True, help="Only jobs that did not end well.")
@click.option("-n", "--last", type=Count(1), metavar="N", help="So many of the last ones.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of documents.")
def command(
    since: float | None, function: str | None, tenant: str | None, failed: bool, last: int | None, as_json: bool
) -> int:
    """List the jobs that ended."""
    folder = folder_in(read_settings().run_dir)

    def is_meant(record: JobRecord) -> bool:
        return (
            record.ts >= (since or 0.0)
            and function in (None, record.function)
            and tenant in (None, record.tenant)
            and not (failed and record.outcome == "ok")
        )

    try:
        found = sorted(filter(is_meant, read(folder)), key=attrgetter("ts"))
    except LineFileError as error:
        raise Failure(str(error), "`GEN_WORKER_RUN_DIR` says which run directory is read") from None
    number = SHOWN if last is None and since is None else last
    shown = found if number is None else found[-number:]
    if as_json:
        click.echo(msgspec.json.encode([whole(each) for each in shown]))
    elif not shown:
        click.echo(f"no such job has ended, as far as `{folder}` says")
    else:
        click.echo(listed(shown, time.time(), room()))
        if len(shown) < len(found):
            sys.stderr.write(f"{len(found) - len(shown)} more are kept; `-n N` shows more of them\n")
    return OK


def listed(records: Sequence[JobRecord], now: float, width: int = WIDTH) -> str:
    """Return one line for each, and what they come to."""
    columns = {
        "WHEN": [clock(each.ts, now).partition(".")[0] for each in records],
        "JOB": [each.request_id for each in records],
        "FUNCTION": [each.function for each in records],
        "TENANT": [each.tenant or "-" for each in records],
        "DEVICE": [each.device or "-" for each in records],
        "OUTCOME": [each.outcome for each in records],
        "QUEUE": [duration(each.queue_s) for each in records],
        "RUN": [duration(each.run_s) for each in records],
        "HELD": [duration(each.device_s) for each in records],
        "PEAK": [size(each.peak_vram or each.peak_rss or None) for each in records],
        "TRY": [str(_tries(each)) for each in records],
        "CAUSE": [_cause(each) for each in records],
    }
    for head, empty in (("TENANT", "-"), ("PEAK", "-"), ("TRY", "1"), ("CAUSE", "-")):
        if set(columns[head]) == {empty}:
            del columns[head]
    rows = list(zip(*columns.values(), strict=True))
    told = table(list(columns), rows, elastic=("JOB", "FUNCTION", "TENANT", "CAUSE"), width=width)
    return f"{told}\n{_total(records)}"


def _tries(record: JobRecord) -> int:
    """Return how often it was begun: what each death of a child under it was followed by, but for one that ended it."""
    cut_off = record.outcome == "retryable" and record.postmortem is not None
    ended_it = record.deaths > 0 and (record.outcome == "child_died" or cut_off)
    return record.attempt + record.deaths - ended_it


def _cause(record: JobRecord) -> str:
    return ", ".join(filter(None, (record.cause, record.hang))) or "-"


def _total(records: Sequence[JobRecord]) -> str:
    well = sum(each.outcome == "ok" for each in records)
    jobs = "1 job" if len(records) == 1 else f"{len(records)} jobs"
    held = duration(sum(each.device_s for each in records))
    return (
        f"{jobs}: {well} ok, {len(records) - well} not; {held} of devices; "
        f"median queue {duration(median(each.queue_s for each in records))}, "
        f"run {duration(median(each.run_s for each in records))}"
    )
