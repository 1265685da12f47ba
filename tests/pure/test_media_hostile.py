"""Pictures, sounds and films from anybody: what is damaged or too large is the caller's mistake, and costs little."""

import io as bytes_io
import random
import resource
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gen_worker import io
from gen_worker.api import Asset
from gen_worker.api.errors import ValidationError

MORE_MEMORY_BYTES = 256 << 20
Make = Callable[[], bytes]
Read = Callable[[Asset], Any]


def asset(folder: Path, name: str, content: bytes) -> Asset:
    file = folder / name
    file.write_bytes(content)
    return Asset(name, local_path=str(file))


# --- files ------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *more: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IEND", b"")


def zip_bomb() -> bytes:
    """Return a PNG of one pixel whose pixels and whose text unpack to 64 MB each."""
    packed = zlib.compress(bytes(64 << 20), 9)
    return png(1, 1, chunk(b"zTXt", b"a\0\0" + packed), chunk(b"IDAT", packed))


def picture(format: str, mode: str = "RGB", size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    from PIL import Image

    noise = Image.effect_noise(size, 80).convert("RGB")
    buffer = bytes_io.BytesIO()
    (noise if mode == "RGB" else noise.convert(mode)).save(buffer, format, **options)
    return buffer.getvalue()


def gif(frames: int) -> bytes:
    from PIL import Image

    first, *rest = [Image.new("RGB", (32, 32), (number, 0, 0)) for number in range(1, frames + 1)]
    buffer = bytes_io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest)
    return buffer.getvalue()


def sound(format: str = "WAV", frames: int = 8000, channels: int = 1, rate: int = 8000) -> bytes:
    import numpy
    import soundfile

    buffer = bytes_io.BytesIO()
    samples = numpy.random.default_rng(0).uniform(-0.5, 0.5, (frames, channels))
    soundfile.write(buffer, samples, rate, format=format)
    return buffer.getvalue()


def film(format: str = "mp4", frames: int = 12, size: tuple[int, int] = (64, 48)) -> bytes:
    import tempfile

    import numpy

    from gen_worker.api.films import encode_film

    noise = numpy.random.default_rng(0).integers(0, 255, (frames, size[1], size[0], 3), dtype=numpy.uint8)
    with tempfile.TemporaryDirectory() as folder:
        encode_film(Path(folder, "film"), noise, fps=12, format=format)
        return Path(folder, "film").read_bytes()


def patched(content: bytes, at: int, layout: str, *values: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into(layout, changed, at, *values)
    return bytes(changed)


def flac_of_years() -> bytes:
    """Return a FLAC whose head says that it has 2^36 - 1 samples."""
    content = sound("FLAC")
    at = content.index(b"fLaC") + 8 + 13  # the low bits of the sample count in STREAMINFO; RFC 9639, 8.2
    return content[:at] + bytes([content[at] | 0x0F]) + b"\xff" * 4 + content[at + 5 :]


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"

PICTURES: dict[str, Make] = {
    "an empty file": lambda: b"",
    "words": lambda: b"not a picture",
    "a sound": sound,
    "a PNG that ends too soon": lambda: picture("PNG")[:2000],
    "a JPEG that ends too soon": lambda: picture("JPEG")[:700],
    "a WebP that ends too soon": lambda: picture("WEBP")[:400],
    "a GIF that ends in its head": lambda: gif(2)[:12],
    "a TIFF that ends too soon": lambda: picture("TIFF")[:2000],
    "a PNG with a giant head": lambda: png(100_000, 100_000, chunk(b"IDAT", zlib.compress(b""))),
    "a PNG with the largest head": lambda: png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", zlib.compress(b""))),
    "a PNG of no width": lambda: png(0, 10, chunk(b"IDAT", zlib.compress(b""))),
    "a zip bomb": zip_bomb,
    "a BMP with a giant head": lambda: patched(picture("BMP"), 18, "<ii", 60_000, 60_000),
    "a GIF with a giant frame": lambda: patched(gif(1), 6, "<HH", 65535, 65535),
    "a picture over the limit": lambda: png(12_000, 9_000, chunk(b"IDAT", zlib.compress(b""))),
    "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
}
SOUNDS: dict[str, Make] = {
    "an empty file": lambda: b"",
    "words": lambda: b"not a sound",
    "a picture": lambda: picture("PNG"),
    "a WAV that ends in its head": lambda: sound()[:30],
    "a WAV without samples": lambda: sound(frames=0),
    "a WAV of no channels": lambda: patched(sound(), 22, "<H", 0),
    "a FLAC that ends in its head": lambda: sound("FLAC")[:20],
    "a FLAC of noise": lambda: sound("FLAC")[:200] + random.Random(0).randbytes(8000),
    "an Ogg that ends in its head": lambda: sound("OGG")[:60],
}
FILMS: dict[str, Make] = {
    "an empty file": lambda: b"",
    "words": lambda: b"not a film",
    "a sound": sound,
    "an MP4 that ends too soon": lambda: film()[: len(film()) // 2],
    "an MP4 that ends in its head": lambda: film()[:300],
    "an MP4 without its head": lambda: film().replace(b"moov", b"junk"),
    "a film of giants": lambda: patched(film("gif", 2), 6, "<HH", 65535, 65535),
    "a playlist": lambda: PLAYLIST,
    "a list of files": lambda: b"ffconcat version 1.0\nfile /etc/passwd\n",
}


def cases(readers: list[tuple[str, dict[str, Make], Read, str]]) -> list[Any]:
    return [
        pytest.param(make, read, ending, id=f"{what}: {name}", marks=pytest.mark.needs(*needs))
        for what, makes, read, ending in readers
        for needs in [{"picture": ("PIL", "soundfile"), "sound": ("soundfile", "PIL")}.get(what, ("av", "soundfile"))]
        for name, make in makes.items()
    ]


TABLE = cases(
    [
        ("picture", PICTURES, io.read_image, ".png"),
        ("sound", SOUNDS, io.read_audio, ".raw"),
        ("film", FILMS, io.read_video, ".mp4"),
    ]
)


@pytest.mark.parametrize(("make", "read", "ending"), TABLE)
def test_a_hostile_file_is_the_callers_mistake_and_costs_little(
    make: Make, read: Read, ending: str, tmp_path: Path
) -> None:
    given = asset(tmp_path, f"given{ending}", make())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    with pytest.raises(ValidationError, match=f"^`given{ending}`"):
        read(given)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before < MORE_MEMORY_BYTES


@pytest.mark.needs("PIL", "soundfile", "av")
@pytest.mark.parametrize(
    ("make", "read"),
    [
        (lambda: picture("PNG"), io.read_image),
        (lambda: picture("JPEG"), io.read_image),
        (lambda: picture("TIFF", compression="tiff_deflate"), io.read_image),
        (lambda: picture("WEBP"), io.read_image),
        (lambda: gif(3), io.read_image),
        (lambda: sound("FLAC", 2000), io.read_audio),
        (lambda: sound("OGG", 2000), io.read_audio),
        (lambda: film("mp4", 4), io.read_video),
        (lambda: film("webm", 4), io.read_video),
    ],
)
def test_a_file_with_flipped_bytes_is_read_or_refused(make: Make, read: Read, tmp_path: Path) -> None:
    whole, chance = make(), random.Random(7)
    for _ in range(30):
        content = bytearray(whole)
        for _ in range(chance.choice((1, 4, 40))):
            content[chance.randrange(min(len(content), chance.choice((64, 400, len(content)))))] = chance.randrange(256)
        with suppress(ValidationError):
            read(asset(tmp_path, "given", bytes(content)))


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.needs("PIL")
def test_a_picture_over_its_limit_is_told_its_size(tmp_path: Path) -> None:
    told = "`a.png` has 64 x 48 pixels, the limit is 3071: `max_pixels=`"
    given = asset(tmp_path, "a.png", picture("PNG"))
    with pytest.raises(ValidationError, match=told):
        io.read_image(given, max_pixels=3071)
    assert io.read_image(given, max_pixels=3072).size == (64, 48)


@pytest.mark.needs("soundfile")
def test_a_sound_over_its_limit_is_refused_however_it_grows(tmp_path: Path) -> None:
    given = asset(tmp_path, "a.wav", sound(frames=1000, channels=2))
    limits: list[Any] = [{"mono": False, "max_samples": 1999}, {"max_samples": 999}, {"target_sample_rate": 80_000}]
    for options in limits:
        with pytest.raises(ValidationError, match=r"`a.wav` is too long: .* `max_samples=`"):
            io.read_audio(given, **({"max_samples": 9_999} | options))
    assert io.read_audio(given, max_samples=1000)[0].shape == (1000,)
    assert io.read_audio(given, mono=False, max_samples=2000)[0].shape == (1000, 2)


@pytest.mark.needs("soundfile")
def test_what_a_file_says_of_its_length_and_rate_is_not_believed(tmp_path: Path) -> None:
    with suppress(ValidationError):  # as the decoder sees it: too short, or damaged
        assert len(io.read_audio(asset(tmp_path, "years.flac", flac_of_years()))[0]) == 8000
    slow = asset(tmp_path, "slow.wav", patched(sound(), 24, "<I", 1))
    with pytest.raises(ValidationError, match="is too long"):
        io.read_audio(slow, 48_000)
    quick = asset(tmp_path, "quick.wav", patched(sound(), 24, "<I", 2**31 - 1))
    with pytest.raises(ValidationError, match="says that it has 2147483647 samples a second"):
        io.read_audio(quick, 48_000)


@pytest.mark.needs("av")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_frames": 11}, "`a.mp4` has over 11 frames, the limit is 11: `max_frames=`"),
        ({"max_seconds": 0.5}, r"`a.mp4` is a film of 1.0 seconds, the limit is 0.5: `max_seconds=`"),
        ({"max_frame_pixels": 3071}, "`a.mp4` has frames of 64 x 48 pixels, the limit is 3071: `max_frame_pixels=`"),
        ({"max_pixels": 9215}, r"`a.mp4` has over 2 frames of 64 x 48 pixels, .* 9215: `max_pixels=`"),
    ],
)
def test_a_film_over_a_limit_is_told_which(options: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=told):
        io.read_video(asset(tmp_path, "a.mp4", film()), **options)


@pytest.mark.needs("av")
def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    inner = asset(tmp_path, "inner.mp4", film())
    listing = f"ffconcat version 1.0\nfile {Path(inner).name}\n".encode()
    with pytest.raises(ValidationError, match="is no film"):
        io.read_video(asset(tmp_path, "list.ffconcat", listing))
