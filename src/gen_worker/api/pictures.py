"""Pictures from and to the bytes of files. Needs Pillow only when it is called.

What is read may be anybody's: only formats whose decoders run nothing else are tried, the size is checked before
pixels are made, and whatever a decoder says of a damaged file is the caller's mistake.
"""

import io
import re
import struct
import warnings
from pathlib import Path
from typing import Any

from gen_worker.api.errors import ValidationError

MAX_PIXELS = 100_000_000  # 300 MB in RGB; the largest cameras of phones have 200 million, most 12 to 50
_READ = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")  # EPS, for one, would start another program
_WRITTEN = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
_MODES = {
    "JPEG": {"L", "RGB", "CMYK"},
    "PNG": {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"},
    "WEBP": {"L", "RGB", "RGBA"},
}
_DAMAGED = (  # what Pillow's decoders were seen to raise for damaged files
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)
_PILLOW = re.compile(r"PIL\.")


def decode_picture(path: Path, name: str, mode: str, max_pixels: int) -> Any:
    """Return the first picture of a file as a PIL image in this mode; raise ValidationError for a bad or a big one.

    16 bits for each channel become 8 where the mode has 8.
    """
    from PIL import Image

    _check_mode(mode)
    _quiet_pillow()
    try:
        with Image.open(path, formats=_readable(Image)) as image:
            _check_size(image.size, name, max_pixels)
            image.load()
            _check_size(image.size, name, max_pixels)  # some formats tell only now
            return image.copy() if image.mode == mode else in_mode(image, mode)
    except Image.DecompressionBombError:
        raise ValidationError(f"`{name}` has more pixels than `max_pixels=` allows: {max_pixels}") from None
    except Image.UnidentifiedImageError:
        raise ValidationError(f"`{name}` is no image") from None
    except _DAMAGED as error:
        raise ValidationError(f"`{name}` cannot be read as an image: {error}") from error


def _check_mode(mode: str) -> None:
    """Raise ValueError for a mode that there is not: that is the author's mistake, not the caller's."""
    from PIL import ImageMode

    try:
        ImageMode.getmode(mode)
    except KeyError:
        raise ValueError(f"Pillow has no mode `{mode}`") from None


def _readable(image_module: Any) -> list[str]:
    """Return the formats that are tried; Pillow refuses to be asked for one that it was built without."""
    image_module.init()
    return [format for format in _READ if format in image_module.OPEN]


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ValidationError(f"`{name}` has {width} x {height} pixels, the limit is {max_pixels}: `max_pixels=`")


def _quiet_pillow() -> None:
    """Have what Pillow warns of in files go unheard: of sizes, which are checked here, and of odd metadata.

    Not with `catch_warnings`, which is not safe where threads read at once.
    """
    wanted = ("ignore", None, Warning, _PILLOW, 0)
    if wanted not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)


def in_mode(image: Any, mode: str) -> Any:
    """Return a PIL image in another mode; Pillow alone would cut 16 bits off at 255 instead of scaling them."""
    if image.mode.startswith("I") and mode not in ("I", "F") and not mode.startswith("I;"):
        image = image.convert("I").point(lambda value: value * (1 / 256) + 0).convert("L")
    return image.convert(mode)


def picture_format(format: str) -> str:
    """Return Pillow's name of a picture format; raise ValueError for one that is not offered."""
    try:
        return _WRITTEN[format.lower()]
    except KeyError:
        raise ValueError(f"a picture is saved as jpg, jpeg, png or webp, not `{format}`") from None


def encode_picture(image: Any, format: str, **options: Any) -> bytes:
    """Return a PIL image as the bytes of a file; a JPEG loses its transparency."""
    kind = picture_format(format)
    if not hasattr(image, "save") or not hasattr(image, "convert"):
        hint = "`PIL.Image.fromarray` makes one of an array"
        raise TypeError(f"a picture is saved from a PIL image, not from `{type(image).__name__}`: {hint}")
    if image.mode == "I" and kind == "PNG":
        image = image.convert("I;16")
    if image.mode not in _MODES[kind]:
        clear = image.has_transparency_data and kind != "JPEG"
        image = in_mode(image, "RGBA" if clear else "RGB")
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()
