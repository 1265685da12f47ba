"""Bodies on the control socket as a client sends and receives them: inline, or in shared memory that is used again."""

from collections.abc import Callable
from typing import Any, NamedTuple

from gen_worker.wire.control import Attached, Value
from gen_worker.wire.messages import INLINE_LIMIT
from gen_worker.wire.regions import Mapped, OwnRegion, RegionError, open_region, size_class
from gen_worker.wire.values import copy_into, pieces, total_length

MAPPED_REGIONS = 16  # of the supervisor's, kept mapped for later bodies
POOL_BYTES = 256 << 20  # of regions kept for later payloads; one that does not fit in gets a region for itself


class Outgoing(NamedTuple):
    """An encoded payload: what goes into the frame, and the memory that goes with it."""

    body: Value
    region: OwnRegion | None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What to attach to the frame."""
        return () if self.region is None else (self.region.fd,)


class Outbox:
    """Encodes payloads; those over `INLINE_LIMIT` into regions, which are kept and used again."""

    def __init__(self) -> None:
        self._numbers: dict[OwnRegion, int] = {}
        self._idle: list[OwnRegion] = []

    def pack(self, payload: object) -> Outgoing:
        """Encode a payload; raise `RegionError` when it is too long to travel."""
        parts = pieces(payload)
        length = total_length(parts)
        if length <= INLINE_LIMIT:
            return Outgoing(b"".join(parts), None)
        region = self._region(size_class(length))
        copy_into(region.view, parts)
        return Outgoing(Attached(length, self._numbers.get(region, 0)), region)

    def _region(self, size: int) -> OwnRegion:
        for region in self._idle:
            if region.size == size:
                self._idle.remove(region)
                return region
        region = OwnRegion.create(size, shared_with_readers_only=True)
        if sum(known.size for known in self._numbers) + size <= POOL_BYTES:
            self._numbers[region] = len(self._numbers) + 1
        return region

    def recycle(self, outgoing: Outgoing) -> None:
        """Take the memory back: its job has ended, or never began."""
        if outgoing.region is None:
            return
        if outgoing.region in self._numbers:
            self._idle.append(outgoing.region)
        else:
            outgoing.region.close()

    def close(self) -> None:
        """Give all kept memory back to the system."""
        for region in self._numbers:
            region.close()
        self._numbers.clear()
        self._idle.clear()


class Inbox:
    """Opens bodies that the supervisor sent, and tells which of its regions it may write to again."""

    def __init__(self) -> None:
        self._mapped: dict[int, Mapped] = {}
        self._read: list[int] = []
        self._lent: list[int] = []

    def unpack(self, body: Value, descriptors: list[int], decode: Callable[[Any], Any], *, views: bool) -> Any:
        """Return `decode` of the body; takes from `descriptors` what it uses. `views`: the value points into the body.

        Raises what `decode` raises, `RegionError` for a region that cannot be used.
        """
        if isinstance(body, bytes):
            return decode(body)
        mapped = self._map(body, descriptors)
        if body.region == 0:
            with mapped:  # views keep the memory beyond this
                return decode(mapped.body(body.length))
        (self._lent if views else self._read).append(body.region)
        return decode(mapped.body(body.length))

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
            if number not in self._read and not self._mapped[number].lent:
                self._mapped.pop(number).close()

    def released(self) -> list[int]:
        """Return the regions that nobody here looks at any more, each once."""
        done, self._read = self._read, []
        if self._lent:
            done += [number for number in self._lent if not self._mapped[number].lent]
            self._lent = [number for number in self._lent if self._mapped[number].lent]
        return done

    def close(self) -> None:
        """Unmap everything that no value looks at; the rest goes with its last view."""
        for mapped in self._mapped.values():
            mapped.close()
        self._mapped.clear()
        self._read.clear()
        self._lent.clear()
