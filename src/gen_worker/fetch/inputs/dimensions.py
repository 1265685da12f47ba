"""How large a picture is, as the head of its file says: nothing is decoded."""

import struct
from os import SEEK_CUR
from typing import BinaryIO, NamedTuple

_SEGMENTS = 10_000  # of a JPEG or a PNG before its picture begins; cameras write about twenty
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the markers that a JPEG's dimensions follow
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length
_BLOCKS = 1_000_000  # of a GIF: 250 MB, since encoders fill them; 1.5 s of a core
_LEAST_BLOCKS = {0xFE: 0, 0xFF: 2}  # of a GIF's extension; decoders differ in where one with fewer ends


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


def _larger(one: Dimensions, other: Dimensions) -> Dimensions:
    return Dimensions(*map(max, one, other))


def _png(file: BinaryIO) -> Dimensions | None:
    """Return the largest that any head of a PNG says; decoders differ in which they believe."""
    file.seek(8)
    found = Dimensions(0, 0)
    for _ in range(_SEGMENTS):
        (length,) = _take(file, ">I")
        kind = file.read(4)
        after = file.tell() + length + 4
        if kind == b"IDAT":
            return found
        if kind == b"IHDR":
            found = _larger(found, Dimensions(*_take(file, ">II")))
        file.seek(after)
    return None


def _gif(file: BinaryIO) -> Dimensions | None:
    """Return what holds the screen of a GIF and every frame; decoders make the screen as large as the frames."""
    file.seek(6)
    width, height, flags = _take(file, "<HHBxx")
    found = Dimensions(width, height)
    file.seek(_colors_bytes(flags), SEEK_CUR)
    left = _BLOCKS
    while (begin := file.read(1)) not in (b";", b""):
        least = 0
        if begin == b",":
            x, y, width, height, flags = _take(file, "<HHHHB")
            found = _larger(found, Dimensions(x + width, y + height))
            file.seek(_colors_bytes(flags) + 1, SEEK_CUR)
        elif begin == b"!":
            (label,) = _take(file, "B")
            least = _LEAST_BLOCKS.get(label, 1)
        else:
            return None
        count = _skip_blocks(file, left)
        if count < least:
            return None
        left -= count + 1
    return found


def _colors_bytes(flags: int) -> int:
    return 6 << (flags & 7) if flags & 0x80 else 0


def _skip_blocks(file: BinaryIO, most: int) -> int:
    """Go on to after the empty block that ends some blocks of a GIF; return how many those were."""
    for count in range(most):
        (length,) = _take(file, "B")
        if length == 0:
            return count
        file.seek(length, SEEK_CUR)
    raise EOFError("more blocks than a picture has")


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
    found = Dimensions(0, 0)
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
            found = _larger(found, Dimensions(width, height))
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
