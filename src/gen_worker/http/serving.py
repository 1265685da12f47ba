"""The server as this process runs it: one socket, one view of the supervisor, connections with limits."""

import asyncio
import resource
import socket

import uvicorn

from gen_worker.http.app import app_of
from gen_worker.http.connections import QUEUED, Connection, LoopServer, most_connections
from gen_worker.http.view import View

CONNECTIONS = 256  # one more takes the place of the one that has been idle for the longest
SPARE = 32  # descriptors for everything but connections
HEAD_BYTES = 16 << 10  # of a request
KEPT_S = 15  # an idle connection


class Brief(Connection):
    """A connection of one who asks and goes: probes find room soon after somebody has taken all of it."""

    head_s = 5.0
    quiet_s = 10.0


def serve(listening: int, control: str) -> None:
    """Serve on an inherited socket until this process is ended; `control` is the supervisor's control socket."""
    with socket.socket(fileno=listening) as sock:
        asyncio.run(_serve(sock, control))


async def _serve(listening: socket.socket, control: str) -> None:
    view = View(control)
    config = uvicorn.Config(
        app_of(view),
        http=Brief,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # whoever sends garbage is told so, and nobody else: else the log would be theirs to fill
        access_log=False,
        server_header=False,
        limit_concurrency=most_connections(CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE),
        backlog=QUEUED,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_keep_alive=KEPT_S,
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(view.follow())
        await view.begun()  # until then who asks waits in the socket's queue: nobody is told that all is silent
        tasks.create_task(LoopServer(config).serve(sockets=[listening]))
