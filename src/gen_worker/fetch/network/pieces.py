"""Which pieces of a file are there, and which is to be fetched next. Pure, and not for several threads at once."""

from collections.abc import Mapping
from typing import NamedTuple

PIECE_BYTES = 16 << 20  # what an S3-like origin advises for ranges
NOTHING: Mapping[int, int] = {}


class Piece(NamedTuple):
    """What lacks of a part of a file: from a byte to before another; `end` is None while nobody knows the file's."""

    number: int
    start: int
    end: int | None


class Pieces:
    """The pieces of a file: claimed once each, the first ones first."""

    def __init__(self, size: int | None, piece_bytes: int = PIECE_BYTES, there: Mapping[int, int] = NOTHING) -> None:
        """Take up what is there: by a piece's number, how many bytes from its start on. A size is known then."""
        self.piece_bytes = piece_bytes
        self._size = size
        self._there = dict(there)
        self._finished = {number for number in there if self.piece(number).start == self.piece(number).end}
        self._claimed = set(self._finished)
        self._next = 0  # every piece before it is claimed
        self._whole = 0  # every piece before it is finished
        self._advance()

    @property
    def size(self) -> int | None:
        """Bytes of the file; None while nobody knows."""
        return self._size

    @size.setter
    def size(self, size: int) -> None:
        self._size = size
        self._advance()

    @property
    def count(self) -> int:
        """Pieces of the file; one while nobody knows how long it is."""
        return 1 if self._size is None else -(-self._size // self.piece_bytes)

    @property
    def left(self) -> int:
        """Pieces that nobody has claimed."""
        return self.count - len(self._claimed)

    @property
    def found_bytes(self) -> int:
        """Bytes that were there at the beginning."""
        return sum(self._there.values())

    @property
    def prefix(self) -> int:
        """Bytes from the file's start on that are all there."""
        at = self._whole * self.piece_bytes
        return at if self._size is None else min(at, self._size)

    @property
    def complete(self) -> bool:
        """Whether every piece is there."""
        return self._size is not None and self._whole >= self.count

    def piece(self, number: int) -> Piece:
        """Return a piece by its number."""
        start, there = number * self.piece_bytes, self._there.get(number, 0)
        end = None if self._size is None else min(start + self.piece_bytes, self._size)
        return Piece(number, start + there, end)

    def claim(self) -> Piece | None:
        """Return the first piece that nobody has claimed, if there is one; it is claimed by that."""
        while self._next in self._claimed:
            self._next += 1
        return self._claim(self._next)

    def claim_this(self, number: int) -> Piece | None:
        """Claim a certain piece from its start on, unless somebody has, or there is none, or some of it is there."""
        return None if number in self._there else self._claim(number)

    def _claim(self, number: int) -> Piece | None:
        if number >= self.count or number in self._claimed:
            return None
        self._claimed.add(number)
        return self.piece(number)

    def finish(self, number: int) -> None:
        """A claimed piece is there, every byte of it."""
        self._finished.add(number)
        self._advance()

    def _advance(self) -> None:
        while self._whole in self._finished:
            self._whole += 1
