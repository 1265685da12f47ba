"""`gen-worker run --attach`: as `run`, but in the server that is warm already."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from gen_worker.cli.advice import advised
from gen_worker.cli.calls import Call
from gen_worker.cli.events import events_on_stderr
from gen_worker.cli.failure import Failure
from gen_worker.cli.payload import payload_of
from gen_worker.cli.results import Results
from gen_worker.cli.selection import Wanted, select
from gen_worker.cli.servers import Server, find_server, schema_in
from gen_worker.rundir import DEFAULT_SOCKET
from gen_worker.settings import Settings


class _Listed(NamedTuple):
    """A function as its server describes it, to choose by."""

    name: str
    class_name: str
    python_name: str


def run_attached(
    words: Sequence[str], start: dict[str, Any] | None, wanted: Wanted, settings: Settings, results: Results
) -> int:
    """Send one request to the server at the default socket and write what it gives as events; return the exit code."""
    try:
        server = find_server(DEFAULT_SOCKET, settings)
    except Failure as failure:
        raise Failure(str(failure), "`gen-worker serve` starts one; without `--attach` none is needed") from None
    name = _chosen(server, wanted)
    schema = schema_in(server.function(name))
    payload = payload_of(words, schema, start=start)
    call = Call(server, name, events_on_stderr(settings), results.event, name="run")
    with advised(payload, schema):
        return call.run(payload, stream=True)


def _chosen(server: Server, wanted: Wanted) -> str:
    if server.functions is None:
        if wanted.method is None:
            raise Failure("which function? The file beside the server's socket cannot be read", "name it: `--method`")
        return wanted.method
    listed = [
        _Listed(str(each.get("name")), str(each.get("class") or ""), str(each.get("method") or each.get("name")))
        for each in server.functions
    ]
    return select(listed, wanted).name
