"""Pictures and sounds as bytes. Needs Pillow or soundfile only when it is called."""

import io
from typing import Any

from gen_worker.api.errors import ValidationError

_PICTURE_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}


def picture_format(format: str) -> str:
    """Return Pillow's name of a picture format; raise ValueError for one that is not offered."""
    try:
        return _PICTURE_FORMATS[format.lower()]
    except KeyError:
        raise ValueError(f"a picture is saved as jpg, jpeg, png or webp, not `{format}`") from None


def encode_image(image: Any, format: str, **options: Any) -> bytes:
    """Return a PIL image as the bytes of a file; a JPEG loses its transparency."""
    pillow_format = picture_format(format)
    if pillow_format == "JPEG" and image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, format=pillow_format, **options)
    return buffer.getvalue()


def encode_audio(audio: Any, sample_rate: int, format: str) -> bytes:
    """Return samples, shaped (frames), (frames, channels) or (channels, frames), as the bytes of a file."""
    try:
        import soundfile
    except ImportError:
        raise ValidationError("saving samples needs soundfile: `pip install 'gen-worker[audio]'`") from None
    samples = _array(audio)
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sample_rate, format=format.upper())
    return buffer.getvalue()


def _array(audio: Any) -> Any:
    """Return a numpy array of what may be a tensor on any device, of any floating type."""
    import numpy

    if hasattr(audio, "detach"):
        audio = audio.detach().cpu()
        if audio.is_floating_point():
            audio = audio.float()
        audio = audio.numpy()
    return numpy.asarray(audio)
