"""How large a picture is stands in its head: nobody decodes it to know."""

import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.fetch.inputs.dimensions import Dimensions, dimensions
from gen_worker.filetypes import mime_type

KINDS = ["image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp"]
SIZES = [(1, 1), (7, 3), (640, 480), (3, 5000)]


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def frame(width: int, height: int, marker: int = 0xC0) -> bytes:
    return segment(marker, struct.pack(">BHHB", 8, height, width, 3) + bytes(9))


SCAN = segment(0xDA, bytes(10))


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def head(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


def picture(x: int, y: int, width: int, height: int, *, colors: bool = False) -> bytes:
    table = bytes(12) if colors else b""
    return b"," + struct.pack("<HHHHB", x, y, width, height, 0x81 if colors else 0) + table + b"\2\1\0\0"


PNG = b"\x89PNG\r\n\x1a\n"
GIF = b"GIF89a" + struct.pack("<HHBxx", 1, 1, 0)
DELAY = b"!\xf9\4" + bytes(4) + b"\0"
LOOP = b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0"


@pytest.mark.needs("PIL")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": b"Exif\0\0" + bytes(20_000)}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),
    ],
)
def test_the_dimensions_are_those_that_a_decoder_finds(
    form: str, options: dict[str, object], size: tuple[int, int]
) -> None:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, form, **options)
    kind = mime_type(file.getvalue()[:16])
    assert kind is not None
    assert dimensions(file, kind) == size


def test_of_several_frames_the_largest_counts() -> None:
    data = b"\xff\xd8" + frame(10, 10) + frame(9, 9000, 0xC2) + SCAN
    assert dimensions(io.BytesIO(data), "image/jpeg") == (10, 9000)


def test_of_several_heads_of_a_png_the_largest_counts() -> None:
    data = PNG + head(1, 9000) + chunk(b"gAMA", bytes(4)) + head(8000, 1) + head(1, 1) + chunk(b"IDAT")
    assert dimensions(io.BytesIO(data), "image/png") == (8000, 9000)


@pytest.mark.parametrize(
    "data",
    [
        GIF + picture(0, 0, 8000, 9000) + b";",
        GIF + DELAY + picture(0, 0, 1, 1, colors=True) + LOOP + b"!\xfe\0" + picture(7999, 0, 1, 9000) + b";",
        GIF[:10] + b"\x80\0\0" + bytes(6) + picture(0, 8990, 8000, 10),
    ],
)
def test_a_gif_is_as_large_as_its_frames_reach(data: bytes) -> None:
    assert dimensions(io.BytesIO(data), "image/gif") == (8000, 9000)


def test_padding_between_segments_hides_nothing() -> None:
    data = b"\xff\xd8" + b"\xff" * 50 + segment(0xE1, bytes(300)) + b"\xff\xff" + frame(10, 20) + SCAN
    assert dimensions(io.BytesIO(data), "image/jpeg") == (10, 20)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8",
        b"\xff\xd8" + SCAN,
        b"\xff\xd8" + frame(10, 10),
        b"\xff\xd8" + segment(0xE0, b"") * 20_000 + frame(10, 10) + SCAN,
        b"\xff\xd8\xff\xe0\0\0" + frame(10, 10) + SCAN,
        b"\xff\xd8" + frame(10, 0) + SCAN,
        b"\xff\xd8 no marker",
    ],
)
def test_a_picture_that_does_not_say_it_has_no_dimensions(data: bytes) -> None:
    assert dimensions(io.BytesIO(data), "image/jpeg") is None


@pytest.mark.parametrize("data", [PNG, PNG + head(3, 4), PNG + chunk(b"IDAT"), PNG + chunk(b"tEXt") * 20_000])
def test_a_png_that_does_not_say_it_has_no_dimensions(data: bytes) -> None:
    assert dimensions(io.BytesIO(data), "image/png") is None


@pytest.mark.parametrize(
    "rest",
    [
        picture(0, 0, 1, 1)[:-1],
        b"?" + picture(0, 0, 1, 1) + b";",
        b"!\1\0" + picture(0, 0, 1, 1) + b";",
        b"!\xff\x0bNETSCAPE2.0\0" + picture(0, 0, 1, 1) + b";",
    ],
)
def test_a_gif_that_decoders_may_read_differently_has_no_dimensions(rest: bytes) -> None:
    assert dimensions(io.BytesIO(GIF + picture(0, 0, 1, 1) + rest), "image/gif") is None


def test_other_kinds_have_no_dimensions() -> None:
    assert dimensions(io.BytesIO(b"II*\0" + bytes(100)), "image/tiff") is None


@given(kind=st.sampled_from(KINDS), begin=st.sampled_from([b"", b"\xff\xd8", b"RIFF0000WEBPVP8L"]), rest=st.binary())
def test_whatever_the_bytes_are_the_answer_is_dimensions_or_none(kind: str, begin: bytes, rest: bytes) -> None:
    found = dimensions(io.BytesIO(begin + rest), kind)
    assert found is None or (isinstance(found, Dimensions) and min(found) > 0)
