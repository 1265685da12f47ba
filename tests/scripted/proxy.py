"""A TCP proxy that loses what it forwards: it stalls, cuts and resets."""

import contextlib
import socket
import struct
import threading
from types import TracebackType

CHUNK = 64 << 10
RESET = struct.pack("ii", 1, 0)  # SO_LINGER that makes a close a reset


class Proxy:
    """Forwards connections to `target` (`host:port`); `address` is where it listens."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._pairs: list[_Pair] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._stalled = False
        self._allowance: int | None = None
        self._threads[0].start()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def stall(self) -> None:
        """Forward nothing more, either way, and close nothing: a half-open connection."""
        self._stalled = True
        for pair in self._living():
            pair.flowing.clear()

    def resume(self) -> None:
        """Forward again, what was held back first."""
        self._stalled = False
        for pair in self._living():
            pair.flowing.set()

    def cut_after(self, count: int) -> None:
        """Reset all connections in the middle of what comes once so many more bytes have come from the client."""
        with self._lock:
            self._allowance = count

    def reset(self) -> None:
        """Reset all connections, as a router does that has lost its table."""
        with self._lock:
            self._allowance = None
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.reset()

    def close(self) -> None:
        """Stop listening and end every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        self.reset()
        for thread in self._threads:
            thread.join()

    def spend(self, count: int) -> int:
        """Return how many of these bytes from a client may still pass."""
        with self._lock:
            if self._allowance is None:
                return count
            passed = min(count, self._allowance)
            self._allowance -= passed
            return passed

    def _living(self) -> "list[_Pair]":
        with self._lock:
            return list(self._pairs)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target, 5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            pair = _Pair(self, client, server)
            if self._stalled:
                pair.flowing.clear()
            with self._lock:
                self._pairs.append(pair)
            self._threads += pair.start()


class _Pair:
    """One client's connection and the one that it is forwarded to, which close together."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.flowing = threading.Event()
        self.flowing.set()
        self._proxy = proxy
        self._client = client
        self._server = server
        self._ended = threading.Semaphore(0)

    def start(self) -> list[threading.Thread]:
        ways = ((self._client, self._server, True), (self._server, self._client, False))
        threads = [threading.Thread(target=self._pump, args=way, daemon=True) for way in ways]
        threads.append(threading.Thread(target=self._close, daemon=True))
        for thread in threads:
            thread.start()
        return threads

    def reset(self) -> None:
        for sock in (self._client, self._server):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.shutdown(socket.SHUT_RDWR)
        self.flowing.set()

    def _pump(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while (chunk := source.recv(CHUNK)) and self.flowing.wait():
                passed = self._proxy.spend(len(chunk)) if up else len(chunk)
                sink.sendall(chunk[:passed])
                if passed < len(chunk):
                    self._proxy.reset()
            sink.shutdown(socket.SHUT_WR)
        self._ended.release()

    def _close(self) -> None:
        for _ in range(2):
            self._ended.acquire()
        self._client.close()
        self._server.close()
