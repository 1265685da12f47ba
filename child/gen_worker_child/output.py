"""The child's side of bodies: where an output over the inline limit is written, and where a big input is read from."""

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from gen_worker.wire.messages import INLINE_LIMIT, REGION_LIMIT, Body, Grant, Need, Region, Release, Unmap
from gen_worker.wire.regions import Mapped, RegionError, open_region
from gen_worker.wire.values import Piece, copy_into, keeps_views, total_length

KEPT_MAPPED_BYTES = 64 << 20

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

    def obey(self, order: Grant | Release | Unmap, descriptors: Sequence[int]) -> None:
        """Do what a frame about a region says."""
        match order:
            case Grant():
                self.granted(order, descriptors[0])
            case Release(index):
                self.released(index)
            case Unmap(index):
                self.unmap(index)

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

    def unmap(self, index: int) -> None:
        """Let go of a region that a reader is done with: it will not be written to again."""
        with self._lock:
            region = self._all.pop(index, None)
        if region is not None:
            region.close()


class InputMappings:
    """Mappings of regions that payloads came in, kept for a while: to map one anew costs a fault for every page.

    A region is known by its inode, which is not given to another file while the mapping holds it.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[int, Mapped] = OrderedDict()
        self._bytes = 0

    def open(self, fd: int, length: int) -> Mapped:
        """Return a mapping of the region, for reading; takes `fd` over. Raises `RegionError` as `open_region` does."""
        inode = os.fstat(fd).st_ino
        known = self._kept.get(inode)
        if known is not None:
            os.close(fd)
            self._kept.move_to_end(inode)
            return known
        mapped = open_region(fd, length, writable=False)
        self._kept[inode] = mapped
        self._bytes += mapped.size
        while self._bytes > KEPT_MAPPED_BYTES and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.size
            oldest.close()
        return mapped


class InputBody:
    """One job's payload as it came: inline, or in a region."""

    def __init__(self, body: Body, descriptors: Sequence[int], mappings: InputMappings) -> None:
        self.region = body.index if isinstance(body, Region) else None
        self.view: bytes | memoryview
        if isinstance(body, Region):
            if len(descriptors) != 1:
                raise RegionError(f"a region came with {len(descriptors)} descriptors instead of 1")
            self.view = mappings.open(descriptors[0], body.length).body(body.length)
        else:
            self.view = body

    def bytes_for(self, payload_type: type) -> bytes | memoryview:
        """Return what to decode; a copy where the decoded value would go on pointing into a region."""
        if self.region is not None and keeps_views(payload_type):
            return bytes(self.view)
        return self.view

    def close(self) -> None:
        """Look at the region no more."""
        self.view = b""
