"""Follow the supervisor's log: a thread of its own that waits for lines and hands them on, many at once.

Knows nothing of what is drawn.
"""

import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from gen_worker.client.blocking import Client
from gen_worker.log_files import Line, decode
from gen_worker.rundir import SeveralSupervisors, SupervisorUnreachable

FIRST = 500  # lines from before it began
_WAIT_S = 30.0
_RETRY_S = 1.0
_LEAVE_S = 0.2  # for a thread that may be connecting: nobody who draws waits for it longer

Take: TypeAlias = Callable[[Sequence[Line | str]], object]
"""Is handed lines, and in words what there is to know of those that are not there."""


class Tail:
    """Hands lines to `take`, in its own thread; of one device, or of one job, or all. Begins at once."""

    def __init__(self, address: str | None, take: Take, *, device: str = "", request_id: str = "") -> None:
        self._address = address
        self._take = take
        self._device = device
        self._request_id = request_id
        self._client: Client | None = None
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gen-worker-tail", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more lines."""
        self._ends.set()
        client = self._client
        if client is not None:
            client.close()
        self._thread.join(_LEAVE_S)

    def _run(self) -> None:
        after = -FIRST
        while not self._ends.is_set():
            try:
                with Client(self._address, name="gen-worker top") as client:
                    self._client = client
                    while not self._ends.is_set():
                        after = self._read(client, after)
            except (SupervisorUnreachable, SeveralSupervisors, OSError) as error:
                if not self._ends.is_set():
                    self._take([f"-- {error}"])
                    after = 0  # the next supervisor has other lines
                    self._ends.wait(_RETRY_S)

    def _read(self, client: Client, after: int) -> int:
        read = client.read(after, wait_s=_WAIT_S, device=self._device, request_id=self._request_id)
        assert isinstance(read.lines, bytes)  # the conversation opened it
        left_out = [f"-- {read.left_out} lines are not remembered any more"] if read.left_out and after > 0 else []
        if lines := [_told(line) for line in read.lines.splitlines()]:
            self._take([*left_out, *lines])
        return read.last


def _told(line: bytes) -> Line | str:
    try:
        return decode(line)
    except msgspec.DecodeError:  # of another version
        return line.decode(errors="replace")
