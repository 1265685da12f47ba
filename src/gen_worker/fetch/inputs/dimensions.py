"""How large a picture is, as the head of its file says: nothing is decoded."""

import struct
from typing import BinaryIO, NamedTuple

_SEGMENTS = 10_000  # of a JPEG before its picture begins; cameras write about twenty
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the markers that a JPEG's dimensions follow
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length


class Dimensions(NamedTuple):
    """A picture's width and height in pixels."""

    width: int
    height: int


def dimensions(file: BinaryIO, mime_type: str) -> Dimensions | None:
    """Return a picture's dimensions; None for a file that is damaged, or of a kind whose head says nothing of them.

    Known are PNG, JPEG, GIF, WebP and BMP.
    """
    reader = _READERS.get(mime_type)
    if reader is None:
        return None
    file.seek(0)
    try:
        found = reader(file)
    except (struct.error, EOFError):  # it ends too soon
        return None
    return found if found is not None and min(found) > 0 else None


def _take(file: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _png(file: BinaryIO) -> Dimensions | None:
    file.seek(12)
    return Dimensions(*_take(file, ">II")) if file.read(4) == b"IHDR" else None


def _gif(file: BinaryIO) -> Dimensions:
    file.seek(6)
    return Dimensions(*_take(file, "<HH"))


def _bmp(file: BinaryIO) -> Dimensions:
    file.seek(14)
    (head,) = _take(file, "<I")
    width, height = _take(file, "<HH" if head == 12 else "<ii")
    return Dimensions(width, abs(height))  # below 0: from the top down


def _webp(file: BinaryIO) -> Dimensions | None:
    file.seek(12)
    kind = file.read(4)
    if kind == b"VP8X":
        file.seek(24)
        canvas = file.read(6)
        if len(canvas) < 6:
            raise EOFError
        return Dimensions(*(int.from_bytes(each, "little") + 1 for each in (canvas[:3], canvas[3:])))
    if kind == b"VP8L":
        file.seek(21)
        (bits,) = _take(file, "<I")
        return Dimensions((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 ":
        file.seek(26)
        width, height = _take(file, "<HH")
        return Dimensions(width & 0x3FFF, height & 0x3FFF)  # above them are the scales, which decoders leave alone
    return None


def _jpeg(file: BinaryIO) -> Dimensions | None:
    """Return the largest that any frame of a JPEG says; decoders differ in which they believe."""
    file.seek(2)
    found: Dimensions | None = None
    for _ in range(_SEGMENTS):
        marker = _marker(file)
        if marker in (0xD9, 0xDA):  # its end, or the picture begins
            return found
        if marker in _BARE:
            continue
        (length,) = _take(file, ">H")
        if length < 2:
            return None
        after = file.tell() + length - 2
        if marker in _FRAMES:
            _, height, width = _take(file, ">BHH")
            found = Dimensions(width, height) if found is None else Dimensions(*map(max, found, (width, height)))
        file.seek(after)
    return None


def _marker(file: BinaryIO) -> int:
    """Read the next marker; before it there may be any number of bytes of padding."""
    (first,) = _take(file, "B")
    marker = first
    while first == 0xFF and marker == 0xFF:
        (marker,) = _take(file, "B")
    if first != 0xFF:
        raise EOFError("no marker where one must be")
    return marker


_READERS = {
    "image/png": _png,
    "image/jpeg": _jpeg,
    "image/gif": _gif,
    "image/bmp": _bmp,
    "image/webp": _webp,
}
