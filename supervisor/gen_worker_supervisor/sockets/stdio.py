"""Requests from standard input, answers to standard output: a socket pair whose other end two threads serve.

So a file, a pipe and a terminal are what a client of the request socket is, with the same bounds, and a reader of
standard output that stops reading holds a thread and never the loop.
"""

import asyncio
import errno
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum

PIECE_BYTES = 64 * 1024
LOOK_AGAIN_S = 0.5  # how often a server in the background of its terminal looks whether it is in the foreground now


class End(Enum):
    """How the traffic on the standard streams ended."""

    NOTHING_ASKED = "nothing was asked"
    ANSWERED = "everything that was asked is answered"
    UNREAD = "nobody reads the answers"


class StandardStreams:
    """Pumps descriptor 0 into a socket and what comes back into descriptor 1, until both have ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_end: Callable[[End], None]) -> None:
        self._loop = loop
        self._on_end = on_end
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self._asked = False
        self._threads = [
            threading.Thread(target=target, name=f"gen-worker-{target.__name__.strip('_')}", daemon=True)
            for target in (self._read, self._write)
        ]

    def start(self) -> socket.socket:
        """Begin, and return the end that stands for the client."""
        for thread in self._threads:
            thread.start()
        return self._theirs

    def _read(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTIN])  # in the background, reading fails and stops nobody
        with suppress(OSError):  # the connection is closed: nobody wants more
            for data in pieces(0):
                self._asked = True
                self._ours.sendall(data)
            self._ours.shutdown(socket.SHUT_WR)

    def _write(self) -> None:
        end = End.ANSWERED
        with suppress(ConnectionResetError):  # the server ends
            while data := self._ours.recv(PIECE_BYTES):
                try:
                    _write_all(1, data)
                except OSError:
                    self._ours.shutdown(socket.SHUT_RDWR)
                    end = End.UNREAD
                    break
        if not self._asked:
            end = End.NOTHING_ASKED
        with suppress(RuntimeError):  # the loop is closed: the server has ended anyhow
            self._loop.call_soon_threadsafe(self._on_end, end)

    def close(self, timeout_s: float = 1.0) -> None:
        """Write the answers that are still on their way, for as long as their reader takes them."""
        self._threads[1].join(timeout_s)
        if not self._threads[1].is_alive():
            self._ours.close()


def pieces(fd: int) -> Iterator[bytes]:
    """Return what comes from a descriptor, until its end; from a terminal only while this process may read there."""
    terminal = os.isatty(fd)
    ready = select.poll()
    ready.register(fd, select.POLLIN)
    with suppress(OSError):  # not readable at all, or not the terminal of this session any more: as good as its end
        while True:
            if terminal:
                _wait_for_foreground(fd)
            ready.poll()
            if terminal and not _in_foreground(fd):
                continue
            try:
                data = os.read(fd, PIECE_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                if terminal and error.errno == errno.EIO and not _in_foreground(fd):
                    continue  # sent to the background just now
                raise
            if not data:
                return
            yield data


def _wait_for_foreground(fd: int) -> None:
    pause = threading.Event()
    while not _in_foreground(fd):
        pause.wait(LOOK_AGAIN_S)


def _in_foreground(fd: int) -> bool:
    return os.tcgetpgrp(fd) == os.getpgrp()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            ready = select.poll()
            ready.register(fd, select.POLLOUT)
            ready.poll()
