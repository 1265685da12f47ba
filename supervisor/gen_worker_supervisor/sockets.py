"""Bind the sockets a supervisor listens on: never another server's, never through a link, however long the path."""

import asyncio
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from gen_worker_supervisor.poller import Poller

BACKLOG = 512  # with 8, clients that connect at once were refused by the thousand
_PEER = struct.Struct("3i")


RETRY_S = 0.1


class Acceptor:
    """Hands over the clients of a listening socket; while no descriptor is left, it rests instead of spinning."""

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        on_client: Callable[[socket.socket], object],
        on_problem: Callable[[str], None],
    ) -> None:
        self._sock = sock
        self._loop = loop
        self._poller = poller
        self._on_client = on_client
        self._on_problem = on_problem
        self._closed = False
        self._rests = False
        sock.setblocking(False)
        poller.watch(sock.fileno(), self._accept)

    def _accept(self, _: int) -> None:
        try:
            client, _ = self._sock.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if not self._rests:  # said once, not with every try
                self._on_problem(f"cannot accept: {error.strerror}")
            self._rests = True
            self._poller.forget(self._sock.fileno())
            self._loop.call_later(RETRY_S, self._resume)
            return
        self._rests = False
        client.setblocking(False)
        self._on_client(client)

    def _resume(self) -> None:
        if not self._closed:
            self._poller.watch(self._sock.fileno(), self._accept)

    def close(self) -> None:
        """Accept nobody any more and close the socket."""
        self._closed = True
        self._poller.forget(self._sock.fileno())
        self._sock.close()


class SocketInUseError(Exception):
    """Another process listens there, or something that is no socket lies there."""


def bind_unix(path: Path, kind: socket.SocketKind) -> socket.socket:
    """Return a listening Unix socket that only this user can open; a stale socket file is replaced.

    Raises `SocketInUseError` when a live server owns the path, naming its pid, and `OSError` as `bind` does.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # two supervisors that both find a stale file must not both replace it
        address = f"/proc/self/fd/{folder}/{path.name}"  # short, whatever the length of the path
        _remove_if_stale(path, address, kind)
        sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
        old = os.umask(0o177)
        try:
            sock.bind(address)
            sock.listen(BACKLOG)  # at once: who probes it must find it alive, and clients may wait for us
        except OSError:
            sock.close()
            raise
        finally:
            os.umask(old)
        return sock
    finally:
        os.close(folder)


def _remove_if_stale(path: Path, address: str, kind: socket.SocketKind) -> None:
    try:
        found = os.lstat(address)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise SocketInUseError(f"`{path}` exists and is not a socket")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(address)
        except OSError as error:
            if error.errno != errno.ECONNREFUSED:
                raise SocketInUseError(f"`{path}` is in use: {error.strerror or error}") from error
        else:
            pid, _, _ = _PEER.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
            raise SocketInUseError(f"`{path}` is in use by pid {pid}")
    os.unlink(address)
