"""A client that asks all the time while a test does its worst, and notes how it was served."""

import threading
import time
from contextlib import suppress

from tests.served import Connection, Server, until


class Witness:
    """Sends `echo` over and over; `field` is the payload's text field, and the answer's `text` must be the same."""

    def __init__(self, server: Server, *, field: str = "text", pause_s: float = 0.002, name: str = "witness") -> None:
        """Connect, once the server lets anyone in."""
        connection = until(lambda: known(server), what="a connection for the witness")
        assert connection is not None
        self.took_s: list[float] = []
        self.wrong: list[object] = []
        self._field = field
        self._pause_s = pause_s
        self._name = name
        self._connection = connection
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Witness":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._connection.close()

    def until_served(self, times: int = 10) -> None:
        """Wait for so many answers more, or a wrong one."""
        wanted = len(self.took_s) + times
        until(lambda: len(self.took_s) >= wanted or self.wrong, what="answers for the witness")

    def p99_s(self) -> float:
        """Return how long 99 of 100 answers took at most."""
        return sorted(self.took_s)[int(0.99 * (len(self.took_s) - 1))]

    def _ask(self) -> None:
        while not self._stop.wait(self._pause_s):
            asked, began = f"{len(self.took_s)}", time.monotonic()
            request: dict[str, object] = {
                "function": "echo",
                "request_id": f"{self._name}-{asked}",
                "payload": {self._field: asked},
            }
            self._connection.line(request)
            frame = self._connection.read()
            if frame is None or not frame["ok"] or frame["events"][-1]["value"]["text"] != asked:
                self.wrong.append(frame)
                return
            self.took_s.append(time.monotonic() - began)


def known(server: Server) -> Connection | None:
    """Return a connection that has been answered, None while its address is shut out for others' guesses."""
    connection = server.connect()
    connection.send("echo")
    with suppress(ConnectionResetError):
        if (frame := connection.read()) is not None and frame["ok"]:
            return connection
    connection.close()
    return None
