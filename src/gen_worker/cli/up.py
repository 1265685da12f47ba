"""`gen-worker up`: a worker of an orchestrator on this machine, from a project instead of an image."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_path, complete_place
from gen_worker.cli.failure import MEANINGS, OK, USAGE, USER_CODE, Failure
from gen_worker.cli.project import find_project, project_options
from gen_worker.cli.serve import GIGABYTES, refuse_other_systems
from gen_worker.cli.settings import check_folders, http_option, read_settings

if TYPE_CHECKING:
    from gen_worker.discovery.image import Served

_HELP = """Work for an orchestrator: run the jobs that it sends, on every device of this machine.

What is served is the project of the current folder, as with `gen-worker serve`; in a container the same worker is
started with `python -m gen_worker.entrypoint`, which reads what the image carries. The worker goes on when the
orchestrator is away for a while. Ctrl-C or SIGTERM drains it: it takes no more jobs, and those that run have 30 s.

\b
gen-worker up --orchestrator 127.0.0.1:8080
gen-worker up --orchestrator grpcs://orchestrator.example --devices 0,1"""
_MEANINGS = {
    **MEANINGS,
    OK: "drained",
    USER_CODE: "no orchestrator will have it, or no device can serve",
    USAGE: "wrong usage, or what is asked for is not to be had",
}


class _Up(Command):
    meanings = _MEANINGS


@click.command("up", cls=_Up, help=_HELP, codes=(OK, USER_CODE, USAGE))
@project_options
@click.option(
    "--manifest",
    metavar="PATH",
    shell_complete=complete_path,
    help="Serve the modules that a manifest names, as an image would, instead of a project.",
)
@click.option(
    "--orchestrator",
    metavar="ADDRESS",
    help="Where the orchestrator is, as host:port or grpcs://host.  [default: ORCHESTRATOR_PUBLIC_ADDR]",
)
@click.option(
    "--worker-id",
    metavar="NAME",
    help="What the worker calls itself.  [default: what its token says, or py-worker-PID]",
)
@click.option(
    "--devices",
    metavar="DEVICES",
    shell_complete=complete_place,
    help="One child each: `auto`, `cpu:N`, or GPU indices or UUIDs with commas; `0+1` is a group.  [default: auto]",
)
@click.option(
    "--vram-budget",
    "vram_budget_gb",
    metavar="GB",
    type=GIGABYTES,
    help="What models and jobs may take of each device's memory.  [default: what is there, less a margin]",
)
@click.option("--offline", is_flag=True, help="Use only models that are on this machine.")
@http_option
@click.option(
    "--log-format",
    type=click.Choice(["auto", "text", "json"]),
    metavar="FORMAT",
    help="`text`, `json`, or `auto`: text, but JSON lines as the first process of a container.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    metavar="LEVEL",
    help="The least that is logged: `debug`, `info`, `warning`, `error`.  [default: info]",
)
def command(
    config: str | None,
    module: str | None,
    manifest: str | None,
    orchestrator: str | None,
    worker_id: str | None,
    devices: str | None,
    vram_budget_gb: float | None,
    offline: bool,
    http: str | None,
    log_format: str | None,
    log_level: str | None,
) -> int:
    """Work for an orchestrator."""
    refuse_other_systems("up")
    settings = read_settings(
        orchestrator_public_addr=orchestrator,
        worker_id=worker_id,
        devices=devices,
        max_vram_gb=vram_budget_gb,
        offline="1" if offline else None,
        http=http,
        log_format=log_format,
        log_level=log_level,
    )
    if not settings.orchestrators:
        hint = "say where it is with `--orchestrator 127.0.0.1:8080`; `gen-worker orchestrator` starts one"
        raise Failure("no orchestrator to work for", hint)
    from gen_worker.fetch.config import FetchConfig

    check_folders(FetchConfig.of(settings))
    served = _served(config, module, manifest)
    from gen_worker.entrypoint import Wish, start

    option = "GEN_WORKER_DEVICES" if devices is None else "--devices"
    return start(Wish(lambda _: served, settings, strict_gpus=False, devices_option=option, lines_for_programs=False))


def _served(config: str | None, module: str | None, manifest: str | None) -> "Served":
    from gen_worker.discovery.image import ImageError, Served, served_by_manifest

    if manifest is None:
        project = find_project(config, module)
        return Served((project.module,), project.paths)
    if config is not None or module is not None:
        raise Failure("`--manifest` and a project together", "a manifest names its modules: give one of them")
    try:
        return served_by_manifest(Path(manifest))
    except ImageError as error:
        raise Failure(str(error), error.hint) from None
