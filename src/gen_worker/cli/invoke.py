"""`gen-worker invoke`: call a function of a running server."""

import sys
from typing import Any

import click

from gen_worker.cli.advice import advised
from gen_worker.cli.binary import Folder
from gen_worker.cli.calls import Call
from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_address, complete_fields, complete_function, complete_path
from gen_worker.cli.events import events_on_stderr
from gen_worker.cli.failure import CANCELED, MEANINGS, NO_MODEL, OK, USAGE, USER_CODE, Failure
from gen_worker.cli.numbers import TIMEOUT, Count
from gen_worker.cli.payload import LocalFiles, payload_of
from gen_worker.cli.project import find_project, functions_of, project_options, survey_of
from gen_worker.cli.results import Results, SavedResults
from gen_worker.cli.servers import Server, described, find_server, schema_in
from gen_worker.cli.settings import log_format_option, read_settings
from gen_worker.rundir import DEFAULT_SOCKET
from gen_worker.wire.messages import PRIORITY_LIMIT

_HELP = """Call FUNCTION of a running `gen-worker serve` and print its output.

The payload is given as for `run`: `steps=20`, `text@notes.txt`, `image@cat.png`, `sizes:=[1,2]`, a word for the first
text field; or, as the only argument, as JSON, as `@payload.json`, or as `-` for stdin.

`-o` writes what is binary in the output to files and prints their paths in its place. One value goes to PATH itself,
several go into the folder PATH, named after their fields (`images.0.png`), the items of a stream numbered.

Ctrl-C cancels the request; a second one stops waiting for it.

\b
gen-worker invoke generate "a cat in the snow" steps=20
gen-worker invoke embed '{"texts": ["a cat"]}'
gen-worker invoke chat --stream hello
gen-worker invoke upscale image@cat.png -o big.png
gen-worker invoke generate "a cat" --timeout 60 --socket tcp://box:8000"""


timeout_option = click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=TIMEOUT,
    default=0.0,
    help="Give up after so long, and have the job end by then; 0 waits for ever.  [default: 0]",
)


_MEANINGS = {**MEANINGS, USAGE: f"{MEANINGS[USAGE]}, or no server"}


class _Invoke(Command):
    """A command for which nobody who answers is wrong usage."""

    meanings = _MEANINGS


@click.command("invoke", cls=_Invoke, help=_HELP, codes=(OK, USER_CODE, USAGE, NO_MODEL, CANCELED))
@click.argument("function", metavar="FUNCTION", shell_complete=complete_function)
@click.argument("arguments", nargs=-1, metavar="[FIELD=VALUE]...", shell_complete=complete_fields)
@click.option(
    "--socket",
    "socket_",
    metavar="ADDRESS",
    default=DEFAULT_SOCKET,
    show_default=True,
    shell_complete=complete_address,
    help="Where the server listens: a path, or tcp://host:port.",
)
@click.option("--stream", is_flag=True, help="Print the items of a stream as they are made.")
@timeout_option
@click.option(
    "--priority",
    metavar="NUMBER",
    type=Count(-PRIORITY_LIMIT, PRIORITY_LIMIT),
    default=0,
    help=f"-{PRIORITY_LIMIT} to {PRIORITY_LIMIT}: go before waiting requests of a lower priority.  [default: 0]",
)
@click.option("--tenant", metavar="NAME", default="", help="For whom it is: tenants take turns in the queue.")
@click.option(
    "--traceparent",
    metavar="TRACEPARENT",
    envvar="TRACEPARENT",
    default="",
    help="The caller's span, as W3C Trace Context writes it.",
)
@click.option(
    "--output",
    "-o",
    "path",
    metavar="PATH",
    shell_complete=complete_path,
    help="Write binary values of the output to this file or folder.",
)
@click.option("--force", is_flag=True, help="With `-o`, overwrite files that are there.")
@click.option("--pretty", is_flag=True, help="Indent the JSON.")
@log_format_option
@project_options
def command(
    function: str,
    arguments: tuple[str, ...],
    socket_: str,
    stream: bool,
    timeout_s: float,
    priority: int,
    tenant: str,
    traceparent: str,
    path: str | None,
    force: bool,
    pretty: bool,
    log_format: str | None,
    config: str | None,
    module: str | None,
) -> int:
    """Call a function of a running server."""
    if force and path is None:
        raise Failure("`--force` without `-o`", "`-o PATH` says which file is to be written")
    settings = read_settings(log_format=log_format)
    server = find_server(socket_, settings)
    known = server.function(function)
    if server.functions is None and (config or module):
        survey = survey_of(find_project(config, module))
        known = described(function, functions_of(survey.description))
    schema = schema_in(known)
    payload = payload_of(arguments, schema, files=LocalFiles(inline=server.is_remote))
    results: Results | SavedResults = Results(pretty=pretty)
    if path is not None:
        results = SavedResults(Results(pretty=pretty), _folder(path, force, known, server))
    call = Call(server, function, events_on_stderr(settings), results.value, name="invoke")
    try:
        with advised(payload, schema):
            code = call.run(
                payload, stream=stream, timeout_s=timeout_s, tenant=tenant, priority=priority, traceparent=traceparent
            )
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped waiting; `{call.request_id}` is still ending\n")
        return CANCELED
    if isinstance(results, SavedResults):
        results.refuse_none()
    return code


def _folder(path: str, force: bool, function: dict[str, Any], server: Server) -> Folder:
    schema = schema_in(function, "output_schema")
    streams = bool(function.get("is_generator"))
    folder = Folder(path, force=force, schema=schema, streams=streams, remote=server.is_remote)
    folder.refuse_early()
    return folder
