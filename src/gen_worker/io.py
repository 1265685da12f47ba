"""Read the files that a payload refers to, and write pictures, sounds and films.

Pillow, soundfile and PyAV are needed only by what is called. A caller's file that is damaged, of another kind or over a
limit is a `ValidationError`, which names the limit's keyword.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gen_worker.api.errors import ValidationError
from gen_worker.api.films import (
    MAX_FILM_PIXELS,
    MAX_FRAME_PIXELS,
    MAX_FRAMES,
    MAX_SECONDS,
    Film,
    encoded_film,
    read_whole,
)
from gen_worker.api.pictures import MAX_PIXELS, decode_picture, encode_picture, picture_format
from gen_worker.api.requirements import require
from gen_worker.api.sounds import MAX_SAMPLES, decode_sound, encode_sound
from gen_worker.api.types import Asset, AssetType, retyped

if TYPE_CHECKING:
    from gen_worker.api.context import RequestContext

__all__ = [
    "Film",
    "exists",
    "iter_video",
    "open",
    "read_audio",
    "read_bytes",
    "read_image",
    "read_video",
    "write_audio",
    "write_image",
    "write_video",
]


def read_bytes(asset: Asset) -> bytes:
    """Return the content of an asset; raise ValidationError when it has no file on this machine."""
    return _path(asset).read_bytes()


def open(asset: Asset, mode: str = "rb") -> IO[Any]:
    """Open the file of an asset; raise ValidationError when it has none on this machine."""
    return _path(asset).open(mode)


def exists(asset: Asset) -> bool:
    """Tell whether an asset has a file on this machine; never raise."""
    try:
        return bool(asset.local_path) and os.path.exists(asset.local_path or "")
    except (ValueError, TypeError, AttributeError):  # no path that the system could look at, or no asset
        return False


# --- reading ----------------------------------------------------------------------------------------------------------


def read_image(asset: Asset, mode: str = "RGB", *, max_pixels: int = MAX_PIXELS) -> Any:
    """Return an asset as a PIL image in this mode: PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF or PPM.

    Of an animation it is the first picture. Sizes are checked before pixels are made. Raises ValidationError for a file
    that is no picture, is damaged, or has more than `max_pixels`.
    """
    require("images", "PIL")
    return decode_picture(_path(asset), asset.ref, mode, max_pixels)


def read_audio(
    asset: Asset, target_sample_rate: int | None = None, mono: bool = True, *, max_samples: int = MAX_SAMPLES
) -> tuple[Any, int]:
    """Return an asset as float32 samples and their rate; `mono` takes the mean of the channels.

    Otherwise samples are shaped (frames, channels) where there are several. Raises ValidationError for a file that is
    no sound, is damaged, or would have more than `max_samples`, counted over the channels that are returned.
    """
    require("audio", "soundfile", "numpy")
    samples, rate = decode_sound(_path(asset), asset.ref, target_sample_rate, mono, max_samples)
    return samples, rate


def iter_video(
    asset: Asset,
    *,
    max_frame_pixels: int = MAX_FRAME_PIXELS,
    max_frames: int = MAX_FRAMES,
    max_seconds: float = MAX_SECONDS,
) -> Film:
    """Return the frames of an asset one after the other, each (height, width, 3) of uint8; it has an `fps`.

    Raises ValidationError for a file that is no film, is damaged, or is over a limit: at once, or at the frame where
    that shows.
    """
    require("video", "av", "numpy")
    limits = {"max_frame_pixels": max_frame_pixels, "max_frames": max_frames}
    return Film(_path(asset), asset.ref, max_seconds=max_seconds, **limits)


def read_video(
    asset: Asset,
    *,
    max_pixels: int = MAX_FILM_PIXELS,
    max_frame_pixels: int = MAX_FRAME_PIXELS,
    max_frames: int = MAX_FRAMES,
    max_seconds: float = MAX_SECONDS,
) -> tuple[Any, float]:
    """Return all frames of an asset, (frames, height, width, 3) of uint8, and how many there are a second.

    `max_pixels` is of all frames together; otherwise as `iter_video`.
    """
    film = iter_video(asset, max_frame_pixels=max_frame_pixels, max_frames=max_frames, max_seconds=max_seconds)
    return read_whole(film, asset.ref, max_pixels), film.fps


# --- writing ----------------------------------------------------------------------------------------------------------


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
    options = {} if picture_format(format) == "PNG" else {"quality": quality}
    asset = ctx.save_bytes(ref, encode_picture(image, format, **options, **encode_kwargs))
    return retyped(asset, as_type) if as_type else asset


def write_audio(
    ctx: "RequestContext",
    ref: str,
    audio: Any,
    *,
    sample_rate: int = 44100,
    format: str = "wav",
    as_type: type[AssetType] | None = None,
) -> Asset:
    """Encode samples, keep them with `ctx.save_bytes`, and return their asset, as `as_type` if that is given.

    They are an array or a tensor, shaped (frames), (frames, channels) or (channels, frames).
    """
    asset = ctx.save_bytes(ref, encode_sound(audio, sample_rate, format))
    return retyped(asset, as_type) if as_type else asset


def write_video(
    ctx: "RequestContext",
    ref: str,
    frames: Iterable[Any],
    *,
    fps: float,
    format: str = "mp4",
    as_type: type[AssetType] | None = None,
) -> Asset:
    """Encode frames, keep the film with `ctx.save_file`, and return its asset, as `as_type` if that is given.

    Frames may come from a generator; each is an array or a tensor of (height, width, 3) or (height, width), of uint8 or
    of floats from 0 to 1, or a PIL image. Formats are mp4, mov, mkv, webm and gif; there is no sound.
    """
    with encoded_film(frames, fps=fps, format=format) as path:
        asset = ctx.save_file(ref, path)
    return retyped(asset, as_type) if as_type else asset


def _path(asset: Asset) -> Path:
    if not asset.local_path:
        raise ValidationError(f"`{asset.ref}` has no file on this machine")
    path = Path(asset.local_path)
    if not path.is_file():
        raise ValidationError(f"`{asset.ref}` has no file on this machine: no `{path}`")
    return path
