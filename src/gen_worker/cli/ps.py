"""`gen-worker ps`: what a supervisor's devices and jobs are doing."""

import os
import sys
from typing import NamedTuple

import click

from gen_worker.cli.command import Command
from gen_worker.cli.devices import number
from gen_worker.cli.failure import OK, UNREACHABLE, USAGE
from gen_worker.cli.supervisors import connected, socket_option
from gen_worker.cli.table import WIDTH, duration, room, size, table
from gen_worker.terminal import Style, colours, paint
from gen_worker.wire.hangs import HANGS
from gen_worker.wire.status import (
    DeviceStatus,
    DownloadStatus,
    EngineStatus,
    JobStatus,
    LinkStatus,
    MemoryStatus,
    Status,
)

_HELP = """Show what a supervisor's devices and jobs are doing.

It answers while a child hangs: no child is asked. `--json` prints the same and more for programs.

\b
gen-worker ps
gen-worker ps --json | jq '.gpus[].state'
gen-worker ps --socket ./.gen-worker.sock"""

_STATES = {
    "●": ("busy", "running", "VRAM"),
    "○": ("idle", "queued", "COLD", "DISK"),
    "◐": ("loading", "starting", "RAM"),
    "◓": ("drain", "drained", "ending"),
    "↻": ("restart",),
    "✖": ("hung", "dying", "failed", "wedged", "retired"),
}
_GLYPHS = {state: glyph for glyph, states in _STATES.items() for state in states}
WAITING_SHOWN = 20  # jobs of each queue, the next ones
_STATE_HEADS = ("STATE", "STATUS")
_STYLES: dict[str, Style] = {"●": "green", "◐": "blue", "◓": "yellow", "↻": "yellow", "✖": "red", "○": "dim"}


class Look(NamedTuple):
    """How a status is printed: how wide, with a glyph before each state or only its word, and in colour or not."""

    width: int = WIDTH
    glyphs: bool = False
    colour: bool = False

    def named(self, word: str) -> str:
        """Return the word for a state; the colour is never alone in telling it."""
        return f"{_GLYPHS.get(word, '·')} {word}" if self.glyphs else word

    def painted(self, head: str, text: str, cell: str) -> str:
        """Return a cell of a table: heads are bold, states have a colour, with their glyphs or without."""
        if not self.colour:
            return cell
        if not text:
            return paint(cell, "bold")
        glyph = _GLYPHS.get(text.split()[1 if self.glyphs else 0], "") if head in _STATE_HEADS else ""
        return paint(cell, _STYLES[glyph]) if glyph else cell


PLAIN = Look()
TELLING_RESERVES = 2  # with so many times the reserve left the memory is nobody's worry


@click.command("ps", cls=Command, help=_HELP, codes=(OK, USAGE, UNREACHABLE))
@click.option("--json", "as_json", is_flag=True, help="Print the status document.")
@socket_option
def command(as_json: bool, socket_: str | None) -> int:
    """Show what a supervisor's devices and jobs are doing."""
    return show(socket_, "gen-worker ps", as_json=as_json)


def show(socket_: str | None, name: str, *, as_json: bool) -> int:
    """Print the status once, for the command of this name; return its exit code."""
    with connected(socket_, name) as client:
        if as_json:
            click.echo(client.list_json())
            return OK
        status = client.list()
    click.echo(describe(status, _look()), color=True)
    return OK


def _look() -> Look:
    """Return the look for stdout; where that is no terminal, words alone and all of them, for programs."""
    terminal = sys.stdout.isatty()
    glyphs = terminal and "utf" in (sys.stdout.encoding or "").lower()
    return Look(room(), glyphs, colours(sys.stdout, os.environ))


def describe(status: Status, look: Look = PLAIN) -> str:
    """Return the status as tables."""
    parts = [_headline(status), _devices(status.gpus, look)]
    if status.jobs:
        parts.append(_jobs(status.jobs, look))
    if status.models:
        parts.append(_models(status, look))
    parts += [_download(download) for download in status.downloads]
    if engines := [(device, each) for device in status.gpus for each in device.engines]:
        parts.append("\n".join(_engine(device, each) for device, each in engines))
    if loads := [_load(device) for device in status.gpus if device.loading is not None]:
        parts.append("\n".join(loads))
    if hanging := [device for device in status.gpus if device.hang is not None]:
        parts.append("\n".join(map(_hang, hanging)))
        if any(device.job is not None for device in hanging):
            parts[-1] += "\n`gen-worker kill JOB` ends one of these jobs, and nothing else"
    parts += [_ailment(device) for device in status.gpus if device.health != "ok" or device.reason]
    if closed := [function for function in status.functions if function.state == "unavailable"]:
        parts.append("\n".join(f"`{each.name}` is unavailable: {each.reason or 'no reason given'}" for each in closed))
    if status.quarantined:
        payloads = "1 payload is" if status.quarantined == 1 else f"{status.quarantined} payloads are"
        parts.append(f"{payloads} refused; `gen-worker quarantine ls` says why")
    return "\n\n".join(parts)


def _headline(status: Status) -> str:
    state = "draining" if status.draining else f"up {duration(status.uptime_s)}"
    done = "job" if status.jobs_done == 1 else "jobs"
    lines = [f"supervisor {status.pid}, {state}: {status.jobs_done} {done} done, {status.jobs_failed} failed"]
    if status.link is not None:
        lines.append(_link(status.link))
    if status.memory is not None and status.memory.left < TELLING_RESERVES * status.memory.reserve:
        lines.append(_host_memory(status.memory))
    return "\n".join(lines)


def _link(link: LinkStatus) -> str:
    since = "" if link.since_s is None else f" for {duration(link.since_s)}"
    return f"orchestrator {link.addr}: {link.state}{since}"


def _host_memory(memory: MemoryStatus) -> str:
    short = "short" if memory.left < memory.reserve else "scarce"
    figures = f"{size(memory.left)} of {size(memory.limit)} are left ({memory.source})"
    return f"memory is {short}: {figures}; below {size(memory.reserve)} a child is ended"


def _devices(devices: list[DeviceStatus], look: Look) -> str:
    rows = [
        (
            f"{number(device)} {device.name}".lstrip(),
            look.named(device.state) + ("" if device.restart_in_s is None else f" {duration(device.restart_in_s)}"),
            "-" if device.pid is None else str(device.pid),
            _memory(device),
            str(device.jobs),
            str(device.restarts),
            device.job or "-",
        )
        for device in devices
    ]
    heads = ("DEVICE", "STATE", "PID", "MEMORY", "JOBS", "RESTARTS", "JOB")
    return table(heads, rows, elastic=("DEVICE", "JOB"), width=look.width, painted=look.painted)


def _engine(device: DeviceStatus, engine: EngineStatus) -> str:
    at = "" if engine.port is None else f" at 127.0.0.1:{engine.port}"
    pid = "" if engine.pid is None else f", pid {engine.pid}"
    return f"engine `{engine.name}` of `{engine.instance}` on `{device.name}`: {engine.state}{at}{pid}"


def _load(device: DeviceStatus) -> str:
    loaded = "" if not device.loading_bytes else f": {size(device.loading_bytes)}"
    total = "" if not loaded or device.loading_total is None else f" of {size(device.loading_total)}"
    return f"child {device.pid} of `{device.name}` sets up `{device.loading}`{loaded}{total}"


def _elapsed_s(job: JobStatus) -> float:
    """Return how long a job has run, or how long it has waited."""
    return job.elapsed_s if job.status != "queued" or job.queued_s is None else job.queued_s


def _hang(device: DeviceStatus) -> str:
    silence = "" if device.silent_s is None else f", nothing new for {duration(device.silent_s)}"
    at = "" if device.job is None else f", at `{device.job}`"
    return f"child {device.pid} of `{device.name}`{at}: {device.hang}{silence}: {HANGS.get(device.hang or '', '')}"


def _ailment(device: DeviceStatus) -> str:
    what = device.health if device.health != "ok" else "given up"
    return f"device `{device.name}` is {what}" + (f": {device.reason}" if device.reason else "")


def _models(status: Status, look: Look) -> str:
    rows = []
    for model in status.models:
        held = [(each.name, kept) for each in status.gpus for kept in each.models if kept.ref == model.ref]
        where = ", ".join(dict.fromkeys(f"{name} {kept.rung}" if kept.rung else name for name, kept in held))
        rows.append((model.ref, look.named(model.state), size(model.bytes), where or "-"))
    return table(
        ("MODEL", "STATE", "SIZE", "DEVICE"), rows, elastic=("MODEL", "DEVICE"), width=look.width, painted=look.painted
    )


def _download(download: DownloadStatus) -> str:
    wanted_by = ", ".join(f"`{name}`" for name in download.wanted_by)
    total = "" if download.bytes_total is None else f" of {size(download.bytes_total)}"
    speed = f", {size(int(download.bytes_per_s))}/s" if download.bytes_per_s else ""
    again = f", retried {download.retries} times" if download.retries else ""
    return f"{download.state} `{download.ref}` for {wanted_by}: {size(download.bytes_done)}{total}{speed}{again}"


def _memory(device: DeviceStatus) -> str:
    """Return the device's own memory in use, for a CPU the child's."""
    if device.vram_total is None:
        return size(device.rss)
    used = "-" if device.vram_used is None else f"{device.vram_used / (1 << 30):.1f}"
    return f"{used}/{device.vram_total / (1 << 30):.1f} GiB"


def _jobs(jobs: list[JobStatus], look: Look) -> str:
    shown = [job for job in jobs if job.position is None or job.position <= WAITING_SHOWN]
    columns = {
        "JOB": [job.id for job in shown],
        "FUNCTION": [job.function for job in shown],
        "TENANT": [job.tenant or "-" for job in shown],
        "PRIORITY": [str(job.priority) for job in shown],
        "STATUS": [look.named(job.status) for job in shown],
        "DEVICE": [job.gpu or "-" for job in shown],
        "ELAPSED": [duration(_elapsed_s(job)) for job in shown],
        "LEFT": [duration(job.deadline_s) for job in shown],
        "PROGRESS": [_progress(job) for job in shown],
    }
    if not any(job.tenant for job in jobs):
        del columns["TENANT"]
    if not any(job.priority for job in jobs):
        del columns["PRIORITY"]
    rows = list(zip(*columns.values(), strict=True))
    elastic = ("JOB", "FUNCTION", "TENANT", "DEVICE", "PROGRESS")
    told = table(list(columns), rows, elastic=elastic, width=look.width, painted=look.painted)
    more = len(jobs) - len(shown)
    return f"{told}\n{more} more wait: `gen-worker ps --json` names them" if more else told


def _progress(job: JobStatus) -> str:
    """Return how far a job is, or its place in its queue and when it is about to start."""
    share = "" if job.progress is None else f"{job.progress:.0%}"
    place = "" if job.position is None else f"#{job.position}"
    if job.starts_in_s is not None:
        place += f" in {duration(job.starts_in_s)}"
    return " ".join(filter(None, (place, share, job.stage))) or "-"
