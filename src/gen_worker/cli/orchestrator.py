"""`gen-worker orchestrator`: a control plane on this host, for development, tests and one host that serves itself."""

import importlib.util
import ipaddress
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_path, complete_place
from gen_worker.cli.failure import CANCELED, MEANINGS, OK, USAGE, USER_CODE, Failure, nearest
from gen_worker.cli.numbers import Amount
from gen_worker.cli.project import find_project, survey_of
from gen_worker.cli.settings import read_settings
from gen_worker.extras import installed_by
from gen_worker.settings import VARIABLES
from gen_worker.terminal import printable

if TYPE_CHECKING:  # it serves HTTP, and is imported when something is served
    from gen_worker.orchestrator.app import Options, Said
    from gen_worker.orchestrator.telling import Lines

DEFAULT_STATE = ".gen-worker-orchestrator"
_NEEDED = ("starlette", "uvicorn", "grpc")
_MEANINGS = {
    **MEANINGS,
    OK: "ended in order",
    USER_CODE: "it has failed",
    USAGE: "wrong usage, or it cannot be started",
}

_HELP = """Run a control plane on this host: workers connect to it, jobs come in over HTTP.

It is for development, for tests, and for one host that serves itself. It gives jobs to the workers that have their
models, tries again what was lost with a worker, keeps files, and loses nothing that it has accepted when it is killed.

\b
gen-worker orchestrator --worker examples/tiny-diffusion --devices cpu:1
gen-worker orchestrator --model acme/tiny-sdxl=models/tiny-sdxl
gen-worker orchestrator --listen 0.0.0.0:8080 --auth
gen-worker orchestrator token --worker-id gpu-7"""


class _Command(Command):
    meanings = _MEANINGS


class _Commands(_Command, click.Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands:
            near = nearest(args[0], self.commands)
            hint = f"did you mean `gen-worker orchestrator {near}`?" if near else "a project of this host is `--worker`"
            raise Failure(f"no command `orchestrator {args[0]}`", hint)
        return super().resolve_command(ctx, args)


def _state_option(function: Any) -> Any:
    return click.option(
        "--state",
        metavar="FOLDER",
        default=DEFAULT_STATE,
        show_default=True,
        shell_complete=complete_path,
        help="Where jobs, files and keys are kept.",
    )(function)


@click.group(
    "orchestrator",
    cls=_Commands,
    help=_HELP,
    no_args_is_help=False,
    invoke_without_command=True,
    codes=(OK, USER_CODE, USAGE, CANCELED),
)
@click.option(
    "--listen", metavar="HOST:PORT", default="127.0.0.1:8080", show_default=True, help="Where workers connect (gRPC)."
)
@click.option(
    "--http", metavar="HOST:PORT", default="127.0.0.1:8081", show_default=True, help="Where jobs and files go (HTTP)."
)
@click.option("--url", metavar="URL", default="", help="How workers and callers reach the HTTP port, where it differs.")
@_state_option
@click.option(
    "--worker",
    "workers",
    metavar="PROJECT",
    multiple=True,
    shell_complete=complete_path,
    help="Start a worker for this project, and again when it fails; repeatable.",
)
@click.option(
    "--devices",
    metavar="DEVICES",
    shell_complete=complete_place,
    help="The devices of each `--worker`, as `auto`, `cpu:2` or `0,1`.",
)
@click.option(
    "--model",
    "models",
    metavar="REF=FOLDER",
    multiple=True,
    help="Have workers fetch the model of this ref from a folder here; repeatable.",
)
@click.option(
    "--store-limit",
    metavar="BYTES",
    help="What files may take of the disk, as 100G.  [default: what there is, less 512 MiB]",
)
@click.option("--auth", is_flag=True, help="Let only workers in that show a token of `orchestrator token`.")
@click.option("--tls-cert", metavar="PEM", shell_complete=complete_path, help="The certificate of both ports.")
@click.option("--tls-key", metavar="PEM", shell_complete=complete_path, help="Its key.")
@click.option("--json", "as_json", is_flag=True, help="Print what happens as JSON lines on stdout.")
@click.pass_context
def command(
    ctx: click.Context,
    listen: str,
    http: str,
    url: str,
    state: str,
    workers: tuple[str, ...],
    devices: str | None,
    models: tuple[str, ...],
    store_limit: str | None,
    auth: bool,
    tls_cert: str | None,
    tls_key: str | None,
    as_json: bool,
) -> int:
    """Run a control plane on this host."""
    if ctx.invoked_subcommand is not None:
        return OK
    _refuse_missing()
    settings = read_settings()
    from gen_worker.orchestrator.app import Options, StartError, run
    from gen_worker.orchestrator.files import FileLimits
    from gen_worker.orchestrator.telling import Lines

    token = settings.orchestrator_token
    _check_address("--listen", listen)
    _check_address("--http", http)
    if listen == http and not listen.endswith(":0"):
        raise Failure(f"`--listen` and `--http` are both `{http}`", "workers and callers come to a port each")
    _check_url(url)
    _check_devices(devices, workers)
    _refuse_strangers(listen, http, auth=auth, token=bool(token))
    folders = _folders(models)
    options = Options(
        state=Path(state),
        listen=listen,
        http=http,
        url=url,
        models=folders,
        needs=_needs(workers, folders),
        workers=tuple(Path(worker) for worker in workers),
        worker_arguments=() if devices is None else ("--devices", devices),
        tls=_tls(tls_cert, tls_key),
        auth=auth,
        token=token,
        max_queued=settings.max_queued,
        limits=FileLimits(quota_bytes=_size("--store-limit", store_limit)),
    )
    lines = Lines(sys.stdout.fileno() if as_json else sys.stderr.fileno())
    try:
        return run(options, _as_json(lines) if as_json else _as_text(lines, options))
    except StartError as error:
        lines.close()
        raise Failure(str(error), error.hint) from None
    finally:
        lines.close()


@command.command(
    "token",
    cls=_Command,
    codes=(OK, USAGE),
    short_help="Print a worker's token, for `--auth`.",
    help="Print the token with which a worker connects where `--auth` is given; it goes into WORKER_JWT.",
)
@click.option("--worker-id", metavar="ID", required=True, help="The worker's name; it may use no other one.")
@click.option("--release-id", metavar="ID", default="", help="The release that the worker runs.")
@click.option(
    "--hours",
    metavar="HOURS",
    type=Amount("hours", 0.01, 24.0 * 366),
    default=4.0,
    show_default=True,
    help="Until it has connected: a connected worker gets new ones.",
)
@_state_option
@click.pass_context
def token(ctx: click.Context, worker_id: str, release_id: str, hours: float, state: str) -> int:
    """Print a worker's token."""
    from gen_worker.orchestrator.tokens import TokenError, Tokens

    if ctx.parent is not None and ctx.get_parameter_source("state") is click.core.ParameterSource.DEFAULT:
        state = ctx.parent.params["state"]  # `orchestrator --state FOLDER token`
    if not Path(state).is_dir():
        hint = "tokens are made where the control plane keeps its state, as only its own key opens it: `--state FOLDER`"
        raise Failure(f"no control plane keeps its state in `{state}`", hint)

    try:
        click.echo(Tokens.create(Path(state)).worker_token(worker_id, release_id, hours * 3600.0))
    except TokenError as error:
        raise Failure(str(error)) from None
    return OK


# --- what is told -----------------------------------------------------------------------------------------------------


def _as_json(lines: "Lines") -> "Said":
    return lambda event, facts: lines.tell(json.dumps({"event": event, **facts}))


def _as_text(lines: "Lines", options: "Options") -> "Said":
    def said(event: str, facts: Mapping[str, object]) -> None:
        for line in _told(event, facts, options):
            lines.tell(printable(line))

    return said


def _told(event: str, facts: Mapping[str, Any], options: "Options") -> list[str]:
    match event:
        case "reading":
            return [f"reading `{facts['ref']}` from `{facts['folder']}`"]
        case "listening":
            token = "" if options.token is None else ' -H "Authorization: Bearer $GEN_WORKER_ORCHESTRATOR_TOKEN"'
            return [
                f"workers connect to {facts['workers']}",
                f"jobs go to {facts['http']}, as: curl {facts['http']}/v1/run/FUNCTION -d '{{}}'{token}",
                f"its state is in {facts['state']}",
            ]
        case "worker":
            return [f"[{facts['worker']}] {facts['line']}"]
        case "worker_connected":
            count = facts["functions"]
            return [f"worker `{facts['worker']}` connected, with {count} function{'' if count == 1 else 's'}"]
        case "worker_draining":
            return [f"worker `{facts['worker']}` drains{_with(facts['jobs'])}"]
        case "worker_left":
            waits = ", for which it is awaited" if facts["jobs"] else ""
            return [f"worker `{facts['worker']}` left{', drained' * facts['drained']}{_with(facts['jobs'])}{waits}"]
        case "ending":
            workers = {0: "", 1: ", once its worker has ended its jobs"}.get(
                facts["workers"], ", once its workers have ended their jobs"
            )
            return [f"ending{workers}; press Ctrl-C again to end at once" if workers else "ending"]
        case "warning":
            return [f"warning: {facts['message']}"]
        case "ready" | "stopped":
            return [event]
    return []


def _with(jobs: int) -> str:
    return f" with {jobs} job{'' if jobs == 1 else 's'}" if jobs else ""


# --- what is given ----------------------------------------------------------------------------------------------------


def _refuse_missing() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        named = ", ".join(f"`{name}`" for name in missing)
        raise Failure(f"`orchestrator` needs {named}, not installed", installed_by("http"))


def _check_address(option: str, address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise Failure(f"`{option}` takes a host and a port, not `{address}`", "as `127.0.0.1:8081`; port 0 is any")


def _check_url(url: str) -> None:
    if url:
        try:
            VARIABLES["cozy_hub_url"].parse(url)
        except ValueError as error:
            raise Failure(f"`--url` takes {error}, not `{url}`", "as `https://plane.example:8081`") from None


def _check_devices(devices: str | None, workers: tuple[str, ...]) -> None:
    if devices is None:
        return
    if not workers:
        raise Failure("`--devices` without `--worker`", "workers that are started elsewhere choose their own")
    try:
        count = int(devices.removeprefix("cpu:")) if devices.startswith("cpu:") and "+" not in devices else 1
    except ValueError:
        count = 0
    if not 1 <= count <= 256:
        raise Failure(f"`cpu:N` takes 1 to 256 slots, not `{devices[4:]}`")


def _refuse_strangers(listen: str, http: str, *, auth: bool, token: bool) -> None:
    """Raise `Failure` where somebody on another machine could come in without showing anything."""
    if not auth and not _is_here(listen):
        raise Failure(
            f"workers could connect to `{listen}` from other machines", "add `--auth`, or listen on 127.0.0.1"
        )
    if not token and not _is_here(http):
        hint = "set GEN_WORKER_ORCHESTRATOR_TOKEN to a secret that callers must show, or listen on 127.0.0.1"
        raise Failure(f"`{http}` can be reached from other machines", hint)


def _is_here(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _size(option: str, text: str | None) -> int:
    try:
        return 0 if text is None else int(VARIABLES["cache_bytes"].parse(text))
    except ValueError as error:
        raise Failure(f"`{option}` takes {error}, not `{text}`") from None


def _folders(models: tuple[str, ...]) -> dict[str, Path]:
    found = {}
    for model in models:
        ref, equals, folder = model.partition("=")
        if not equals or not ref or not folder:
            raise Failure(
                f"`--model` takes a ref and a folder, not `{model}`", "as `--model acme/tiny-sdxl=models/tiny`"
            )
        found[ref] = Path(folder)
    return found


def _needs(workers: tuple[str, ...], models: Mapping[str, Path]) -> dict[str, tuple[str, ...]]:
    """Return which models of this platform the projects' functions run with; raise `Failure` for what is none."""
    needs: dict[str, tuple[str, ...]] = {}
    for worker in workers:
        if not Path(worker, "pyproject.toml").is_file():
            raise Failure(
                f"no project in `{worker}`", "`--worker` takes a folder whose pyproject.toml names an endpoint"
            )
        project = find_project(worker, None)
        if not models:
            continue
        for function in survey_of(project).functions:
            wanted = [slot.wanted for slot in function.slots]
            ours = [each.ref for each in wanted if each.ref in models or each.provider == "tensorhub"]
            needs[function.name] = tuple(ours)  # what is not offered may be published by a job
    return needs


def _tls(certificate: str | None, key: str | None) -> tuple[Path, Path] | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise Failure("`--tls-cert` and `--tls-key` go together")
    for path in (certificate, key):
        if not Path(path).is_file():
            raise Failure(f"no such file: `{path}`")
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        text = f"`{certificate}` and `{key}` are no certificate and its key: {reason}"
        raise Failure(text, "both are PEM files, the key without a password") from None
    except OSError as error:
        raise Failure(f"`{certificate}` or `{key}` cannot be read: {(error.strerror or str(error)).lower()}") from None
    return Path(certificate), Path(key)
