"""The child's side of bodies: where an output over the inline limit is written, and where a big input is read from."""

import threading
from collections import deque
from collections.abc import Callable, Sequence

from gen_worker.wire.messages import INLINE_LIMIT, REGION_LIMIT, Body, Grant, Need, Region
from gen_worker.wire.regions import Mapped, RegionError, open_region
from gen_worker.wire.values import Piece, copy_into, total_length

Send = Callable[[object], None]
OnBody = Callable[[Body], None]


class OutputRegions:
    """Output regions the supervisor granted to this child, each written to again once its reader released it.

    Bodies that find no free region wait for a grant in the order they came. Safe from any thread.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._all: dict[int, Mapped] = {}
        self._free: list[int] = []
        self._waiting: deque[tuple[int, Sequence[Piece], OnBody]] = deque()

    def place(self, parts: Sequence[Piece], then: OnBody) -> None:
        """Copy the encoded pieces where the supervisor reads them and pass the body to `then`, at once if possible.

        `then` may run in the thread that reports a grant. Raises `RegionError` when the body is over `REGION_LIMIT`.
        """
        length = total_length(parts)
        if length <= INLINE_LIMIT:
            then(b"".join(parts))
            return
        if length > REGION_LIMIT:
            raise RegionError(f"an output of {length} bytes, the limit is {REGION_LIMIT}")
        with self._lock:
            index = self._take(length)
            if index is None:
                self._waiting.append((length, parts, then))
        if index is None:
            self._send(Need(length))
        else:
            self._fill(index, length, parts, then)

    def _take(self, length: int) -> int | None:
        fitting = [index for index in self._free if self._all[index].size >= length]
        if not fitting:
            return None
        index = min(fitting, key=lambda candidate: self._all[candidate].size)
        self._free.remove(index)
        return index

    def _fill(self, index: int, length: int, parts: Sequence[Piece], then: OnBody) -> None:
        copy_into(self._all[index].body(length), parts)
        then(Region(index, length))

    def granted(self, grant: Grant, fd: int) -> None:
        """Add a region that the supervisor made for us; `fd` is taken over."""
        region = open_region(fd, grant.size, writable=True)
        with self._lock:
            self._all[grant.index] = region
        self.released(grant.index)

    def released(self, index: int) -> None:
        """The reader is done with a region: give it to the first body that fits, or keep it free."""
        with self._lock:
            if index not in self._all:
                return
            fitting = next((entry for entry in self._waiting if entry[0] <= self._all[index].size), None)
            if fitting is None:
                self._free.append(index)
                return
            self._waiting.remove(fitting)
        self._fill(index, *fitting)


class InputBody:
    """One job's payload as it came: inline, or a region that is mapped while the job needs it."""

    def __init__(self, body: Body, descriptors: Sequence[int]) -> None:
        self.region = body.index if isinstance(body, Region) else None
        self._mapped: Mapped | None = None
        self.view: bytes | memoryview
        if isinstance(body, Region):
            if len(descriptors) != 1:
                raise RegionError(f"a region came with {len(descriptors)} descriptors instead of 1")
            self._mapped = open_region(descriptors[0], body.length, writable=False)
            self.view = self._mapped.body(body.length)
        else:
            self.view = body

    def close(self) -> None:
        """Unmap the payload."""
        if self._mapped is not None and isinstance(self.view, memoryview):
            self.view.release()
            self._mapped.close()
