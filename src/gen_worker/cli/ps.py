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
    parts += [f"device `{device.name}` is {device.health}" for device in status.gpus if device.health != "ok"]
    if closed := [function for function in status.functions if function.state == "unavailable"]:
        parts.append("\n".join(f"`{each.name}` is unavailable: {each.reason or 'no reason given'}" for each in closed))
    return "\n\n".join(parts)


def _headline(status: Status) -> str:
    state = "draining" if status.draining else f"up {duration(status.uptime_s)}"
    return f"supervisor {status.pid}, {state}: {status.jobs_done} jobs done, {status.jobs_failed} failed"


def _devices(devices: list[DeviceStatus], width: int) -> str:
    rows = [
        (
            device.name if device.index is None else f"{device.index} {device.name}",
            device.state if device.restart_in_s is None else f"{device.state} {duration(device.restart_in_s)}",
            "-" if device.pid is None else str(device.pid),
            _memory(device),
            str(device.jobs),
            str(device.restarts),
            device.job or "-",
        )
        for device in devices
    ]
    heads = ("DEVICE", "STATE", "PID", "MEMORY", "JOBS", "RESTARTS", "JOB")
    return table(heads, rows, elastic=("DEVICE", "JOB"), width=width)


def _memory(device: DeviceStatus) -> str:
    """Return the device's own memory in use, for a CPU the child's."""
    if device.vram_total is None:
        return size(device.rss)
    used = "-" if device.vram_used is None else f"{device.vram_used / (1 << 30):.1f}"
    return f"{used}/{device.vram_total / (1 << 30):.1f} GiB"


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
    heads = ("JOB", "FUNCTION", "STATUS", "DEVICE", "ELAPSED", "LEFT", "PROGRESS")
    return table(heads, rows, elastic=("JOB", "FUNCTION", "DEVICE", "PROGRESS"), width=width)


def _progress(job: JobStatus) -> str:
    share = "" if job.progress is None else f"{job.progress:.0%}"
    return " ".join(filter(None, (share, job.stage))) or "-"
