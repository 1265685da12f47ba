"""Read the files that a payload refers to, and write pictures. Needs Pillow or soundfile only when it is called."""

import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gen_worker.api.errors import ValidationError
from gen_worker.api.types import Asset, AssetType, retyped

if TYPE_CHECKING:
    from gen_worker.api.context import RequestContext

__all__ = ["exists", "open", "read_audio", "read_bytes", "read_image", "write_image"]


def read_bytes(asset: Asset) -> bytes:
    """Return the content of an asset; raise ValidationError when it has no file on this machine."""
    return _path(asset).read_bytes()


def open(asset: Asset, mode: str = "rb") -> IO[Any]:
    """Open the file of an asset; raise ValidationError when it has none on this machine."""
    return _path(asset).open(mode)


def exists(asset: Asset) -> bool:
    """Tell whether an asset has a file on this machine; never raise."""
    return bool(asset.local_path) and os.path.exists(asset.local_path or "")


def read_image(asset: Asset, mode: str = "RGB") -> Any:
    """Return an asset as a PIL image in this mode; raise ValidationError for a file that is no picture."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ImportError("reading pictures needs Pillow: `pip install 'gen-worker[images]'`") from None
    path = _path(asset)
    try:
        with Image.open(path) as image:
            image.load()
            return image.convert(mode) if image.mode != mode else image.copy()
    except UnidentifiedImageError:
        raise ValidationError(f"`{asset.ref}` is no image") from None
    except (OSError, SyntaxError) as error:  # what decoders say of a file that ends too soon or is damaged
        raise ValidationError(f"`{asset.ref}` cannot be read as an image: {error}") from error


def read_audio(asset: Asset, target_sample_rate: int | None = None, mono: bool = True) -> tuple[Any, int]:
    """Return an asset as float32 samples and their rate; `mono` takes the mean of the channels.

    Raises ValidationError for a file that is no sound.
    """
    try:
        import numpy
        import soundfile
    except ImportError:
        raise ImportError("reading sounds needs soundfile and numpy: `pip install 'gen-worker[audio]'`") from None
    path = _path(asset)
    try:
        samples, rate = soundfile.read(path, dtype="float32")
    except soundfile.LibsndfileError:
        raise ValidationError(f"`{asset.ref}` is no sound") from None
    if mono and samples.ndim == 2:
        samples = samples.mean(axis=1)
    if target_sample_rate is not None and target_sample_rate != rate:
        samples, rate = resample(samples, rate, target_sample_rate), target_sample_rate
    return samples.astype(numpy.float32, copy=False), rate


def resample(samples: Any, rate: int, target: int) -> Any:
    """Return samples at another rate: by polyphase filtering where scipy is installed, else by straight lines."""
    import math

    import numpy

    try:
        from scipy.signal import resample_poly
    except ImportError:
        length = max(1, round(len(samples) * target / rate))
        at, known = numpy.arange(length) * (rate / target), numpy.arange(len(samples))
        columns = samples.reshape(len(samples), -1).T
        lines = numpy.stack([numpy.interp(at, known, column) for column in columns], axis=-1)
        return lines.reshape(length, *samples.shape[1:])
    common = math.gcd(rate, target)
    return resample_poly(samples, target // common, rate // common, axis=0)


def write_image(
    ctx: "RequestContext",
    ref: str,
    image: Any,
    *,
    format: str = "webp",
    quality: int = 90,
    as_type: type[AssetType] | None = None,
    **encode_kwargs: Any,
) -> Asset:
    """Encode a PIL image, keep it with `ctx.save_bytes`, and return its asset, as `as_type` if that is given."""
    from gen_worker.api.media import encode_image, picture_format

    options = {} if picture_format(format) == "PNG" else {"quality": quality}
    asset = ctx.save_bytes(ref, encode_image(image, format, **options, **encode_kwargs))
    return retyped(asset, as_type) if as_type else asset


def _path(asset: Asset) -> Path:
    if not asset.local_path:
        raise ValidationError(f"`{asset.ref}` has no file on this machine")
    path = Path(asset.local_path)
    if not path.is_file():
        raise ValidationError(f"`{asset.ref}` has no file on this machine: no `{path}`")
    return path
