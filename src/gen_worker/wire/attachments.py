"""Bodies on the control socket as a client sends and receives them: inline, or in shared memory that is used again."""

import itertools
from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple

from gen_worker.wire.control import Attached, Value
from gen_worker.wire.messages import INLINE_LIMIT
from gen_worker.wire.regions import Mapped, OwnRegion, RegionError, open_region, size_class
from gen_worker.wire.values import Piece, copy_into, pieces, total_length

MAPPED_REGIONS = 16  # of the supervisor's, kept mapped for later bodies
LENT_REGIONS = 32  # that bodies nobody has read yet may hold; the next such body is copied out, or its child would wait
POOL_BYTES = 256 << 20  # of regions kept for later payloads, or one that is bigger; the longest unused go first


class Outgoing(NamedTuple):
    """An encoded payload: what goes into the frame, and the memory that goes with it."""

    body: Value
    region: OwnRegion | None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What to attach to the frame."""
        return () if self.region is None else (self.region.fd,)


class Outbox:
    """Encodes payloads; those over `INLINE_LIMIT` into regions, which are kept and used again. For any thread."""

    def __init__(self) -> None:
        self._idle: list[tuple[OwnRegion, int]] = []  # with their numbers; the last used one last
        self._numbers = itertools.count(1)
        self._closed = False
        self._lock = Lock()

    def pack(self, payload: object) -> Outgoing:
        """Encode a payload; raise `RegionError` when it is too long to travel. It is the caller's to `recycle`."""
        return self.place(pieces(payload))

    def place(self, parts: Sequence[Piece]) -> Outgoing:
        """Join the pieces of an encoded payload as `pack` does: long ones are copied here."""
        length = total_length(parts)
        if length <= INLINE_LIMIT:
            return Outgoing(b"".join(parts), None)
        region, number = self._region(size_class(length))
        outgoing = Outgoing(Attached(length, number), region)
        try:
            copy_into(region.view, parts)
        except BaseException:
            self.recycle(outgoing)
            raise
        return outgoing

    def _region(self, size: int) -> tuple[OwnRegion, int]:
        with self._lock:
            for kept in reversed(self._idle):
                if kept[0].size == size:
                    self._idle.remove(kept)
                    return kept
        return OwnRegion.create(size, shared_with_readers_only=True), next(self._numbers)

    def recycle(self, outgoing: Outgoing) -> None:
        """Take the memory back: its job has ended, or never began."""
        body, region = outgoing
        if region is None or not isinstance(body, Attached):
            return
        with self._lock:
            self._idle.append((region, body.region))
            self._shrink()

    def _shrink(self) -> None:
        kept = 0 if self._closed else 1
        while len(self._idle) > kept and (self._closed or sum(region.size for region, _ in self._idle) > POOL_BYTES):
            self._idle.pop(0)[0].close()

    def close(self) -> None:
        """Keep no memory from now on; what is in use is given back to the system with its `recycle`."""
        with self._lock:
            self._closed = True
            self._shrink()


class Inbox:
    """Opens bodies that the supervisor sent, and tells which of its regions it may write to again."""

    def __init__(self) -> None:
        self._mapped: dict[int, Mapped] = {}
        self.lent: set[int] = set()  # regions that the supervisor leaves as they are for us

    def open(self, body: Value, descriptors: list[int]) -> bytes | memoryview:
        """Return the body, where it can be not copied; takes from `descriptors` what it uses.

        The supervisor leaves a region as it is for as long as something of it is looked at.
        Raises `RegionError` for a region that cannot be used.
        """
        if isinstance(body, bytes):
            return body
        mapped = self._map(body, descriptors)
        if body.region == 0:
            with mapped:  # the view keeps the memory beyond this
                return mapped.body(body.length)
        self.lent.add(body.region)
        view = mapped.body(body.length)
        return view if len(self.lent) <= LENT_REGIONS else bytes(view)

    def _map(self, body: Attached, descriptors: list[int]) -> Mapped:
        known = self._mapped.get(body.region)
        if known is not None:
            return known
        if not descriptors:
            raise RegionError(f"region {body.region} came without its memory")
        mapped = open_region(descriptors.pop(0), body.length, writable=False)
        if body.region:
            self._mapped[body.region] = mapped
            self._forget_oldest()
        return mapped

    def _forget_oldest(self) -> None:
        """Unmap regions of children that may be long gone; one that comes again comes with its memory."""
        for number in list(self._mapped)[:-MAPPED_REGIONS]:
            if number not in self.lent:
                self._mapped.pop(number).close()

    def released(self) -> list[int]:
        """Return the regions that nobody here looks at any more, each once."""
        done = [number for number in self.lent if not self._mapped[number].lent]
        self.lent.difference_update(done)
        return done

    def close(self) -> None:
        """Unmap everything that no value looks at; the rest goes with its last view."""
        for mapped in self._mapped.values():
            mapped.close()
        self._mapped.clear()
        self.lent.clear()
