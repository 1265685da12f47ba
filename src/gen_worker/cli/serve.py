"""`gen-worker serve`: an endpoint's functions, served by supervised child processes."""

import os
import signal
import socket
from itertools import pairwise
from types import FrameType
from typing import Any, NoReturn

import click
import msgspec

from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_place
from gen_worker.cli.failure import CANCELED, NO_MODEL, OK, USAGE, USER_CODE, Failure, say
from gen_worker.cli.numbers import Amount
from gen_worker.cli.project import Project, find_project, project_options, survey_of
from gen_worker.cli.settings import http_option, read_settings
from gen_worker.environment import forget_secrets
from gen_worker.extras import installed_by
from gen_worker.rundir import DEFAULT_SOCKET
from gen_worker.settings import Settings
from gen_worker.wire.address import Address, AddressError, parse_address
from gen_worker.wire.survey import NoFunctionError

LEAST_LINE_BYTES = 1024
_NEEDED = ((os, "memfd_create"), (os, "pidfd_open"), (socket, "AF_UNIX"), (socket, "SOCK_SEQPACKET"))

_HELP = """Serve an endpoint's functions from supervised child processes.

There is one child for each device; a crash or a hang costs one job and one child, never the server. Call the functions
with `gen-worker invoke`, watch them with `gen-worker ps`, end one with `gen-worker kill`. Ctrl-C or SIGTERM stops the
server.

Requests come from the socket and from stdin, one JSON object a line; what stdin asked for is answered on stdout. When
a file or a pipe on stdin ends, so does the server.

\b
gen-worker serve --devices cpu:2
gen-worker serve --listen tcp://127.0.0.1:8765 --idle-timeout 600
gen-worker serve < requests.ndjson > answers.ndjson"""


class _Serve(Command):
    """A command that knows what people write who mean one of its options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as problem:
            hint = _hint_for(problem.option_name, given)
            if not hint:
                raise
            raise Failure(f"no option `{problem.option_name}`", hint) from None
        if rest and not ctx.resilient_parsing:
            module = rest[0].removesuffix(".py").strip("./").replace("/", ".")
            raise Failure(f"`{rest[0]}` is no option", f"a module is named as Python imports it: `--module {module}`")
        return rest


def _hint_for(option: str, given: list[str]) -> str:
    if option == "--token":
        return "set GEN_WORKER_TOKEN: an argument could be read by others"
    if option in ("--port", "--host"):
        words = [word for each in given for word in each.split("=", 1)]
        values = dict(pairwise(words))
        host, port = values.get("--host", "127.0.0.1"), values.get("--port", "8000")
        return f"write `--listen tcp://{f'[{host}]' if ':' in host else host}:{port}`"
    return ""


GIGABYTES = Amount("a number of GB", above=True, hint="as 24 or 0.5")
"""What `--vram-budget` takes."""


@click.command(
    "serve",
    cls=_Serve,
    context_settings={"allow_extra_args": True},
    help=_HELP,
    codes=(OK, USER_CODE, USAGE, NO_MODEL, CANCELED),
)
@project_options
@click.option(
    "--socket",
    "socket_",
    metavar="PATH",
    default=DEFAULT_SOCKET,
    show_default=True,
    help="The Unix socket to listen on.",
)
@click.option(
    "--listen",
    metavar="ADDRESS",
    help="Listen on tcp://host:port instead, port 0 for any; beyond loopback with GEN_WORKER_TOKEN only.",
)
@click.option("--reload", is_flag=True, help="Serve changed code as soon as it works; meanwhile what was before.")
@click.option("--no-stdin", is_flag=True, help="Read no requests from stdin.")
@click.option(
    "--devices",
    metavar="DEVICES",
    shell_complete=complete_place,
    help="One child each: `auto`, `cpu:N`, or GPU indices or UUIDs with commas; `0+1` is a group.  [default: auto]",
)
@click.option("--device", metavar="DEVICE", shell_complete=complete_place, help="The same for a single device.")
@click.option(
    "--function",
    "functions",
    metavar="NAME",
    multiple=True,
    help="Serve only this function and its class, or this class; repeatable, or with commas.",
)
@click.option("--list-functions", is_flag=True, help="Print what would be served, and start nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --list-functions: as JSON, with the schemas.")
@click.option(
    "--eager",
    is_flag=True,
    help="Run every setup() in every child before saying ready; exit 1 if one fails, 3 for want of a model.",
)
@click.option(
    "--vram-budget",
    "vram_budget_gb",
    metavar="GB",
    type=GIGABYTES,
    help="What models and jobs may take of each device's memory.  [default: what is there, less a margin]",
)
@click.option("--offline", is_flag=True, help="Use only models that are on this machine.")
@click.option("--allow-publish", is_flag=True, help="Have producers publish for real, to the hub that is set.")
@http_option
@click.option(
    "--idle-timeout",
    "idle_timeout_s",
    metavar="SECONDS",
    type=Amount("seconds", hint="0 never stops"),
    default=0.0,
    help="Stop after so long without a request; 0 never does.  [default: 0]",
)
@click.option(
    "--max-line",
    "max_line_bytes",
    metavar="BYTES",
    help="The longest line that is taken, as 100k or 64M.  [default: 16M]",
)
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
    socket_: str,
    listen: str | None,
    reload: bool,
    no_stdin: bool,
    devices: str | None,
    device: str | None,
    functions: tuple[str, ...],
    list_functions: bool,
    as_json: bool,
    eager: bool,
    vram_budget_gb: float | None,
    offline: bool,
    allow_publish: bool,
    http: str | None,
    idle_timeout_s: float,
    max_line_bytes: str | None,
    log_format: str | None,
    log_level: str | None,
) -> int:
    """Serve an endpoint's functions from supervised child processes."""
    _end_on_signals()
    names = _names(functions)
    if as_json and not list_functions:
        raise Failure("`--json` without `--list-functions`", "requests and answers of a server are JSON anyhow")
    if list_functions:
        return _list_functions(find_project(config, module), names, as_json)
    refuse_other_systems("serve")
    settings = read_settings(max_line_bytes=max_line_bytes, http=http, log_format=log_format, log_level=log_level)
    if settings.max_line_bytes < LEAST_LINE_BYTES:
        name = "GEN_WORKER_MAX_LINE" if max_line_bytes is None else "--max-line"
        raise Failure(f"`{name}` takes at least 1k, not {settings.max_line_bytes}", "a request is one line")
    wanted = _devices(devices, device)
    address = _address(socket_, listen)
    project = find_project(config, module)
    from gen_worker.cli.destination import local_destination
    from gen_worker_supervisor.serve import Options, serve

    platform = local_destination(settings, "", publishes=allow_publish)
    environment = dict(os.environ)
    if reload:
        _refuse_without_watchfiles()
        environment["PYTHONDONTWRITEBYTECODE"] = "1"  # a change within a second, of the same length, has the same mark
    forget_secrets()
    options = Options(
        module=project.module,
        paths=project.paths,
        address=address,
        devices=wanted,
        devices_option="--devices" if device is None else "--device",
        functions=names,
        eager=eager,
        idle_timeout_s=idle_timeout_s,
        stdin=not no_stdin,
        reload=reload,
        vram_budget_gb=vram_budget_gb or 0.0,
        fetching=_fetching(settings, offline),
        platform=platform,
    )
    return serve(options, settings, environment)


def _fetching(settings: Settings, offline: bool) -> bytes:
    """Return what the fetcher goes by, as its first frame has it."""
    from gen_worker.fetch.config import FetchConfig

    return msgspec.msgpack.encode(FetchConfig.of(settings, offline=offline))


def _refuse_without_watchfiles() -> None:
    from importlib.util import find_spec

    if find_spec("watchfiles") is None:
        raise Failure("`--reload` needs `watchfiles`", installed_by("reload"))


def _end_on_signals() -> None:
    """End in order at SIGTERM and SIGHUP from now on: until the server takes them over nothing needs an end of its own.

    The first process of a container would not notice them at all.
    """
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` has it ignored
            signal.signal(number, _end)


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(OK)


def _names(given: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(name.strip() for part in given for name in part.split(","))
    if not all(names):
        raise Failure("`--function` names no function", "several are separated by commas: `--function embed,rank`")
    return names


def _devices(devices: str | None, device: str | None) -> str:
    if devices is not None and device is not None:
        raise Failure("`--devices` and `--device` together", "give one of them")
    wanted = device if devices is None else devices
    return "auto" if wanted is None else wanted


def _address(socket_: str, listen: str | None) -> Address:
    if listen is not None and _is_written("socket_"):
        say("warning", f"`--socket` is not used: `--listen` says where, `{listen}`")
    try:
        return parse_address(socket_ if listen is None else listen)
    except AddressError as error:
        raise Failure(str(error), error.hint) from None


def _is_written(parameter: str) -> bool:
    source = click.get_current_context().get_parameter_source(parameter)
    return source is click.core.ParameterSource.COMMANDLINE


def _list_functions(project: Project, names: tuple[str, ...], as_json: bool) -> int:
    try:
        survey = survey_of(project).of_owners(names)
    except NoFunctionError as error:
        raise Failure(str(error), error.hint) from None
    described = msgspec.json.decode(survey.description)["functions"]
    if as_json:
        click.echo(msgspec.json.encode({"functions": described}))
    else:
        for each in described:
            click.echo(_listed(each))
    return OK


def _listed(function: dict[str, Any]) -> str:
    owner = function.get("class")
    return f"{function['name']}  ({owner})" if owner else str(function["name"])


def refuse_other_systems(command: str) -> None:
    """Raise `Failure` where the system has not what a supervisor is made of."""
    missing = [name for home, name in _NEEDED if not hasattr(home, name)]
    if missing:
        listed = ", ".join(f"`{name}`" for name in missing)
        raise Failure(f"`{command}` needs Linux: this system has no {listed}", "`gen-worker run` works here")
