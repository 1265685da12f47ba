"""`gen-worker ps`: what a supervisor's devices and jobs are doing."""

import shutil
import sys

import click

from gen_worker.cli.command import Command
from gen_worker.cli.failure import OK, UNREACHABLE, USAGE
from gen_worker.cli.supervisors import connected, socket_option
from gen_worker.cli.table import WIDTH, duration, size, table
from gen_worker.wire.status import DeviceStatus, JobStatus, Status


@click.command("ps", cls=Command, codes=(OK, USAGE, UNREACHABLE))
@click.option("--json", "as_json", is_flag=True, help="Print the status document.")
@socket_option
def command(as_json: bool, socket_: str | None) -> int:
    """Show what a supervisor's devices and jobs are doing."""
    with connected(socket_, "gen-worker ps") as client:
        if as_json:
            click.echo(client.list_json())
            return OK
        status = client.list()
    width = max(WIDTH, shutil.get_terminal_size().columns) if sys.stdout.isatty() else WIDTH
    click.echo(describe(status, width))
    return OK


def describe(status: Status, width: int = WIDTH) -> str:
    """Return the status as tables."""
    parts = [_headline(status), _devices(status.gpus, width)]
    if status.jobs:
        parts.append(_jobs(status.jobs, width))
    if closed := [function for function in status.functions if function.state == "unavailable"]:
        parts.append("\n".join(f"`{each.name}` is unavailable: {each.reason or 'no reason given'}" for each in closed))
    return "\n\n".join(parts)


def _headline(status: Status) -> str:
    state = "draining" if status.draining else f"up {duration(status.uptime_s)}"
    return f"supervisor {status.pid}, {state}: {status.jobs_done} jobs done, {status.jobs_failed} failed"


def _devices(devices: list[DeviceStatus], width: int) -> str:
    rows = [
        (
            device.name,
            _state(device),
            "-" if device.pid is None else str(device.pid),
            size(device.rss),
            "-" if device.vram_total is None else f"{size(device.vram_used)} of {size(device.vram_total)}",
            str(device.jobs),
            str(device.restarts),
            device.job or "-",
        )
        for device in devices
    ]
    return table(
        ("DEVICE", "STATE", "PID", "MEMORY", "VRAM", "JOBS", "RESTARTS", "JOB"),
        rows,
        elastic=("DEVICE", "JOB", "STATE"),
        width=width,
    )


def _state(device: DeviceStatus) -> str:
    state = device.state if device.restart_in_s is None else f"{device.state} {duration(device.restart_in_s)}"
    return state if device.health == "ok" else f"{state} ({device.health})"


def _jobs(jobs: list[JobStatus], width: int) -> str:
    rows = [
        (
            job.id,
            job.function,
            job.status,
            job.gpu or "-",
            duration(job.elapsed_s),
            duration(job.deadline_s),
            _progress(job),
        )
        for job in jobs
    ]
    return table(
        ("JOB", "FUNCTION", "STATUS", "DEVICE", "ELAPSED", "LEFT", "PROGRESS"),
        rows,
        elastic=("JOB", "FUNCTION", "DEVICE", "PROGRESS"),
        width=width,
    )


def _progress(job: JobStatus) -> str:
    share = "" if job.progress is None else f"{job.progress:.0%}"
    return " ".join(filter(None, (share, job.stage))) or "-"
