"""Bind the sockets a supervisor listens on: never another server's, never through a link, however long the path."""

import errno
import fcntl
import os
import socket
import stat
import struct
from pathlib import Path

BACKLOG = 512  # with 8, clients that connect at once were refused by the thousand
_PEER = struct.Struct("3i")


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
