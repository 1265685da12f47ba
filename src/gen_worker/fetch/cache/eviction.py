"""Decide what leaves the disk when room is needed. Pure: takes what is there and the time, removes nothing."""

from collections.abc import Collection, Mapping, Sequence

import msgspec

FRESH_S = 300.0  # what was used so recently is likely to be used again: it goes last of its kind


class Entry(msgspec.Struct, frozen=True):
    """One snapshot on disk."""

    key: str
    refs: tuple[str, ...]
    """The wishes that came to it."""

    blobs: Mapping[str, int]
    """The bytes of each blob that it links to; others may link to the same ones."""

    last_used: float
    in_use: bool = False

    @property
    def size(self) -> int:
        """Bytes of its blobs."""
        return sum(self.blobs.values())


def victims(entries: Sequence[Entry], needed: int, now: float, keep: Collection[str] = ()) -> list[str]:
    """Return the keys of the entries to evict, in that order, so that `needed` bytes become free.

    Empty when all that may be evicted would not be enough: then nothing is to be lost for nothing. What is in use never
    goes; what is kept, by one of its refs, goes after everything else.
    """
    order = sorted(
        (each for each in entries if not each.in_use),
        key=lambda each: (_is_kept(each, keep), now - each.last_used < FRESH_S, each.last_used, each.key),
    )
    links = _links(entries)
    freed, chosen = 0, []
    for entry in order:
        if freed >= needed:
            break
        freed += _release(entry, links)
        chosen.append(entry.key)
    return chosen if freed >= needed else []


def surplus(entries: Sequence[Entry], limit: int, now: float) -> list[str]:
    """Return the keys to evict so that what stays takes no more than this, as far as that may be had."""
    over = total(entries) - limit
    return victims(entries, min(over, evictable(entries)), now) if over > 0 else []


def evictable(entries: Sequence[Entry]) -> int:
    """Return the bytes that would be free if everything were evicted that is not in use."""
    links = _links(entries)
    return sum(_release(entry, links) for entry in entries if not entry.in_use)


def total(entries: Sequence[Entry]) -> int:
    """Return the bytes of all blobs, each counted once."""
    return sum({blob: size for entry in entries for blob, size in entry.blobs.items()}.values())


def excess(used: int, needed: int, limit: int) -> int:
    """Return the bytes to evict so that a cache keeps to its limit; where it must shrink, it shrinks to 90 %."""
    return max(0, used + needed - limit * 9 // 10) if limit and used + needed > limit else 0


def _is_kept(entry: Entry, keep: Collection[str]) -> bool:
    return any(ref in keep for ref in entry.refs)


def _links(entries: Sequence[Entry]) -> dict[str, int]:
    links: dict[str, int] = {}
    for entry in entries:
        for blob in entry.blobs:
            links[blob] = links.get(blob, 0) + 1
    return links


def _release(entry: Entry, links: dict[str, int]) -> int:
    """Take an entry's links away and return the bytes that nobody links to any more."""
    freed = 0
    for blob, size in entry.blobs.items():
        links[blob] -= 1
        freed += size if links[blob] == 0 else 0
    return freed
