"""Where the supervisor keeps payloads and outputs: inline bytes, or regions whose bytes it never has to read.

An input region belongs to one child generation and is written by the supervisor only; an output region is granted to
one child generation and written by it only. Regions are reused, as the pages of a fresh one cost more than the copy.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from gen_worker.wire.messages import REGION_LIMIT, Region, Release, Unmap
from gen_worker.wire.regions import OwnRegion, RegionError, check_region, open_region, size_class
from gen_worker_supervisor.core.blame import digest

LENT_LIMIT = 4 * REGION_LIMIT  # what readers may hold of one child's outputs before its next ones wait
LENT = 2048  # a child of 64 streams has up to 1,400 items on their way
GRANT_LIMIT = 2 * LENT_LIMIT  # output regions of one child; more than it could ever need at once
GRANTS = 2 * LENT
KEPT_FREE = 4  # input regions kept for reuse by one child
KEPT_FREE_BYTES = 64 << 20  # of output regions that one child keeps for reuse, and one more of any size


class InlinePayload:
    """A payload the supervisor holds as bytes."""

    __slots__ = ("_digest", "data", "length")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.length = len(data)
        self._digest = b""

    def digest(self) -> bytes:
        """Return what tells this payload from others; once it was asked for, also after its end."""
        self._digest = self._digest or digest(self.data)
        return self._digest

    def close(self) -> None:
        """Let go of the bytes: what knows of the job for some time yet shall not keep them."""
        self.data = b""


class RegionPayload:
    """A payload in a client's own sealed memfd, which goes to a child as it is."""

    __slots__ = ("_digest", "fd", "length")

    def __init__(self, fd: int, length: int) -> None:
        """Take `fd` over; raise `RegionError`, and close it, when it is not sealed or too short."""
        check_region(fd, length)
        self.fd = fd
        self.length = length
        self._digest = b""

    def digest(self) -> bytes:
        """Return what tells this payload from others; once it was asked for, also after its end."""
        if not self._digest:
            with open_region(os.dup(self.fd), self.length, writable=False) as region:
                self._digest = digest(region.body(self.length))
        return self._digest

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


Payload: TypeAlias = InlinePayload | RegionPayload


class InputRegions:
    """The regions in which one child gets its big payloads."""

    def __init__(self) -> None:
        self._index = 0
        self._used: dict[int, OwnRegion | None] = {}  # None: a client's region, which is not ours to reuse
        self._free: list[OwnRegion] = []

    def place(self, payload: Payload) -> tuple[Region, int]:
        """Put a payload into a region; return its name and the descriptor to send along, which stays ours.

        A payload that a client sent in a region goes to the child as it is.
        """
        if isinstance(payload, RegionPayload):
            return Region(self._name(None), payload.length), payload.fd
        data = payload.data
        fitting = [region for region in self._free if region.size >= len(data)]
        if fitting:
            region = min(fitting, key=lambda candidate: candidate.size)
            self._free.remove(region)
        else:
            region = OwnRegion.create(size_class(len(data)), shared_with_readers_only=True)
        region.view[: len(data)] = data
        return Region(self._name(region), len(data)), region.fd

    def _name(self, region: OwnRegion | None) -> int:
        self._index += 1
        self._used[self._index] = region
        return self._index

    def released(self, index: int) -> None:
        """The child has read the region."""
        region = self._used.pop(index, None)
        if region is None:
            return
        if len(self._free) < KEPT_FREE:
            self._free.append(region)
        else:
            region.close()

    def close(self) -> None:
        """Close every region."""
        for region in [*self._free, *self._used.values()]:
            if region is not None:
                region.close()
        self._free.clear()
        self._used.clear()


@dataclass(slots=True, eq=False)
class Output:
    """An output in a region, until each of its readers has called `release`; the first one has it from the start."""

    owner: "OutputRegions"
    index: int
    length: int
    region: OwnRegion
    readers: int = 1

    @property
    def name(self) -> int:
        """What tells this region from every other of the same supervisor."""
        return self.owner.generation << 32 | self.index

    @property
    def fd(self) -> int:
        """The region's descriptor, open until `release`."""
        return self.region.fd

    def view(self) -> memoryview:
        """Return the bytes, not copied; good until `release`."""
        return self.region.body(self.length)

    def hold(self) -> None:
        """Count one more reader."""
        self.readers += 1

    def is_one_line(self) -> bool:
        """Whether the bytes have no line feed."""
        return not self.region.holds(b"\n", self.length)

    def release(self) -> None:
        """One reader is done; after the last the child may write to the region again."""
        self.readers -= 1
        if self.readers == 0:
            self.owner.done_with(self)


OutputBody: TypeAlias = bytes | Output


class OutputRegions:
    """The regions one child writes its big outputs to. They outlive the child while somebody still reads one."""

    def __init__(self, generation: int, send: Callable[[Release | Unmap], None]) -> None:
        """Make none yet; `send` tells the child what becomes of a region that was read."""
        self.generation = generation
        self._send: Callable[[Release | Unmap], None] | None = send  # None: the child is dead
        self._regions: dict[int, OwnRegion] = {}
        self._lent: dict[int, Output] = {}
        self._lent_bytes = 0
        self._index = 0
        self._bytes = 0

    def grant(self, size: int) -> tuple[int, OwnRegion] | None:
        """Make a region for an output of `size` bytes; None when the child asks for more than it may hold.

        Raises `RegionError` while there is no memory, or readers hold so many outputs that the next one has to wait.
        """
        if not 0 < size <= REGION_LIMIT or self._bytes + size > GRANT_LIMIT or len(self._regions) >= GRANTS:
            return None
        if self._lent_bytes + size > LENT_LIMIT or len(self._lent) >= LENT:
            raise RegionError(f"{len(self._lent)} outputs before it are still being read")
        region = OwnRegion.create(size_class(size), shared_with_readers_only=False)
        self._index += 1
        self._bytes += region.size
        self._regions[self._index] = region
        return self._index, region

    def lend(self, body: Region) -> bool:
        """Keep the region a child named from being written to again; False when the child may not name it."""
        region = self._regions.get(body.index)
        if region is None or body.index in self._lent or not 0 <= body.length <= region.size:
            return False
        self._lent[body.index] = Output(self, body.index, body.length, region)
        self._lent_bytes += region.size
        return True

    def lent(self, index: int) -> Output:
        """Return the output that lies in a lent region."""
        return self._lent[index]

    def done_with(self, output: Output) -> None:
        """The reader of an output is done."""
        if self._lent.pop(output.index, None) is None:
            return
        size = output.region.size
        self._lent_bytes -= size
        idle_bytes = self._bytes - self._lent_bytes - size  # of the others; the child may be writing to some of them
        if self._send is not None and idle_bytes < KEPT_FREE_BYTES:
            self._send(Release(output.index))
            return
        self._regions.pop(output.index).close()
        self._bytes -= size
        if self._send is not None:
            self._send(Unmap(output.index))

    def close(self) -> None:
        """The child is dead: close what nobody reads now, and the rest when its reader is done."""
        self._send = None  # it holds the child's process, which holds this
        for index in [index for index in self._regions if index not in self._lent]:
            self._regions.pop(index).close()
