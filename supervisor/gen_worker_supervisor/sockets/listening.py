"""Bind the sockets a supervisor listens on: never another server's, never through a link, however long the path."""

import asyncio
import errno
import fcntl
import ipaddress
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from gen_worker.wire.address import TcpAddress
from gen_worker_supervisor.sockets.poller import Poller

BACKLOG = 512  # with 8, clients that connect at once were refused by the thousand
RETRY_S = 0.1
LOCKED_S = 3.0  # the wait for one that binds in the same folder: it may wait 2 s for an answer of what is there
LOCKED_AT_END_S = 0.5
_LOOK_S = 0.02
KEEPALIVE_S = (20, 5, 2)  # a TCP client whose host has vanished is noticed after 30 s of silence
_PEER = struct.Struct("3i")


class ListenError(Exception):
    """Nothing can listen there; the text is for a person, `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class SocketInUseError(ListenError):
    """Another process listens there, or something that is no socket lies there."""


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
        except (BlockingIOError, ConnectionAbortedError):
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
        """Accept nobody any more and close the socket; closing twice is allowed."""
        if self._closed:
            return
        self._closed = True
        self._poller.forget(self._sock.fileno())
        self._sock.close()


# --- Unix -------------------------------------------------------------------------------------------------------------


def bind_unix(path: Path, kind: socket.SocketKind) -> socket.socket:
    """Return a listening Unix socket that only this user can open; a stale socket file is replaced.

    Raises `SocketInUseError` when a live server owns the path, naming its pid, `ListenError` when somebody keeps its
    folder locked, and `OSError` as `bind` does. Blocks for some seconds at most.
    """
    try:
        return _bound_unix(path, kind)
    except _LockedError as error:
        hint = "end that process (`lslocks` names it), or choose a path in another folder"
        raise ListenError(f"cannot listen on `{path}`: {error.strerror}", hint) from None


def _bound_unix(path: Path, kind: socket.SocketKind) -> socket.socket:
    with _locked(path, LOCKED_S) as folder:  # two that both find a stale file must not both replace it
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


class _LockedError(OSError):
    """Somebody keeps a folder locked."""


@contextmanager
def _locked(file: Path, within_s: float) -> Iterator[int]:
    """Lock a file's folder, which anybody may who can read it; raise `_LockedError` where another keeps it."""
    descriptor = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + within_s
        while not _locks(descriptor):
            if time.monotonic() > deadline:
                raise _LockedError(errno.EWOULDBLOCK, f"another process keeps `{file.parent}` locked", str(file))
            time.sleep(_LOOK_S)
        yield descriptor
    finally:
        os.close(descriptor)


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_if_stale(path: Path, address: str, kind: socket.SocketKind) -> None:
    try:
        found = os.lstat(address)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        what = "is a folder" if stat.S_ISDIR(found.st_mode) else "exists and is not a socket"
        raise SocketInUseError(f"`{path}` {what}", "choose another path; nothing but a socket is replaced")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(address)
        except OSError as error:
            if error.errno != errno.ECONNREFUSED:
                reason = (error.strerror or str(error)).lower()
                raise SocketInUseError(f"`{path}` is in use: {reason}", "choose another path") from error
        else:
            pid = peer(probe)[0]
            raise SocketInUseError(f"`{path}` is in use by pid {pid}", "end that process, or choose another path")
    os.unlink(address)


def peer(sock: socket.socket) -> tuple[int, int]:
    """Return the pid and the uid of whoever is at the other end of a Unix socket, or listens there."""
    pid, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid


@dataclass(frozen=True, slots=True)
class OwnFile:
    """A file or socket that this process has made, told from one that another puts in its place later."""

    path: Path
    device: int
    inode: int

    @classmethod
    def at(cls, path: Path) -> "OwnFile":
        """Return the one that lies at this path now."""
        found = os.lstat(path)
        return cls(path, found.st_dev, found.st_ino)

    def remove(self) -> None:
        """Remove it, if it is still there; raise `OSError` where that is not possible."""
        with suppress(FileNotFoundError), _locked(self.path, LOCKED_AT_END_S):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                self.path.unlink()


# --- TCP --------------------------------------------------------------------------------------------------------------


def bind_tcp(address: TcpAddress, *, guarded: bool) -> tuple[socket.socket, TcpAddress]:
    """Return a listening TCP socket and where it listens: at the first of the host's addresses that can be had.

    Raises `ListenError` when it cannot listen there, and, unless clients are `guarded` by a token, when one of the
    host's addresses can be reached from elsewhere. Blocks while the name is looked up.
    """
    found = _resolve(address)
    elsewhere = [place[0] for _, place in found if not ipaddress.ip_address(place[0]).is_loopback]
    if elsewhere and not guarded:
        raise ListenError(
            f"`{address}` can be reached from other machines ({elsewhere[0]})",
            "set GEN_WORKER_TOKEN to a secret that clients must show, or listen on 127.0.0.1",
        )
    problem: OSError | None = None
    for family, place in found:
        try:
            sock = _listen(family, place)
        except OSError as error:
            problem = problem or error
        else:
            host, port, *_ = sock.getsockname()
            return sock, TcpAddress(host, port)
    assert problem is not None
    raise _told(problem, address)


_Place: TypeAlias = tuple[Any, ...]  # what `bind` takes: (host, port), and two numbers more for IPv6


def _resolve(address: TcpAddress) -> list[tuple[int, _Place]]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ListenError(
            f"cannot listen on `{address}`: {reason}", "name an address of this machine, as 127.0.0.1"
        ) from None
    return [(family, place) for family, _, _, _, place in found]


def _listen(family: int, place: _Place) -> socket.socket:
    try:
        return _bound(family, place, shared=False)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
    return _bound(family, place, shared=True)  # connections that still close do not count


def _bound(family: int, place: _Place, *, shared: bool) -> socket.socket:
    """Return a socket that listens there.

    Of two that bind a free port at once with `SO_REUSEADDR` set, both may, and then both may fail to listen; without
    it exactly one binds. It is set afterwards for the connections, which inherit it.
    """
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, shared)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(place)
        sock.listen(BACKLOG)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError:
        sock.close()
        raise
    return sock


def _told(error: OSError, address: TcpAddress) -> ListenError:
    match error.errno:
        case errno.EADDRINUSE:
            return SocketInUseError(
                f"port {address.port} of `{address.host}` is in use",
                "end the process that listens there, or choose another port; 0 takes any that is free",
            )
        case errno.EADDRNOTAVAIL:
            return ListenError(
                f"`{address.host}` is no address of this machine", "127.0.0.1 always is; 0.0.0.0 stands for all"
            )
        case errno.EACCES:
            return ListenError(f"port {address.port} is not for this user", "choose a port from 1024 on")
    return ListenError(f"cannot listen on `{address}`: {(error.strerror or str(error)).lower()}")


def tune_tcp(sock: socket.socket) -> None:
    """Have a connection send at once, and notice a client whose host has vanished."""
    idle, interval, probes = KEEPALIVE_S
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)
