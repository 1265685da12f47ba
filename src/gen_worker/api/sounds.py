"""Sounds from and to the bytes of files. Needs soundfile and numpy only when it is called.

What is read may be anybody's: neither what a file says of its length nor of its rate is believed beyond the limits.
"""

import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gen_worker.api.errors import ValidationError
from gen_worker.extras import installed_by

MAX_SAMPLES = 1 << 27  # 512 MiB as float32: 46 minutes of one channel at 48 kHz
_BLOCK_SAMPLES = 1 << 18
_MAX_RATE = 1_000_000  # a filter that changes the rate is as long as 20 of the higher rate's seconds at worst


def decode_sound(path: Path, name: str, target_sample_rate: int | None, mono: bool, max_samples: int) -> Any:
    """Return the float32 samples of a file and their rate; raise ValidationError for a bad or a long one."""
    import numpy
    import soundfile

    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # by its path soundfile would believe the name's ending
    try:
        with soundfile.SoundFile(descriptor, closefd=False) as file:
            rate = file.samplerate
            _check_rate(rate, name)
            factor = 1.0 if target_sample_rate is None else max(1.0, target_sample_rate / rate)
            samples = numpy.concatenate(list(_blocks(file, name, mono, max_samples / factor)))
    except soundfile.SoundFileError as error:
        raise ValidationError(f"`{name}` is no sound, or is damaged: {error}") from None
    finally:
        os.close(descriptor)
    if target_sample_rate is not None and target_sample_rate != rate:
        samples, rate = resample(samples, rate, target_sample_rate), target_sample_rate
    return samples.astype(numpy.float32, copy=False), rate


def _check_rate(rate: int, name: str) -> None:
    if not 0 < rate <= _MAX_RATE:
        raise ValidationError(f"`{name}` says that it has {rate} samples a second")


def _blocks(file: Any, name: str, mono: bool, most: float) -> Iterator[Any]:
    """Yield the samples of a file, (frames) or (frames, channels), until they are more than `most`."""
    wide = 1 if mono else file.channels
    read, step = 0, max(1, _BLOCK_SAMPLES // file.channels)
    while len(block := file.read(step, dtype="float32", always_2d=True)):
        read += len(block)
        if read * wide > most:
            told = f"it has over {int(most)} samples as it would be returned"
            raise ValidationError(f"`{name}` is too long: {told}, the limit of `max_samples=`")
        yield _narrowed(block, mono)
    if not read:
        raise ValidationError(f"`{name}` is a sound without samples")


def _narrowed(block: Any, mono: bool) -> Any:
    if block.shape[1] == 1:
        return block[:, 0]
    return block.mean(axis=1) if mono else block


def resample(samples: Any, rate: int, target: int) -> Any:
    """Return samples at another rate: by polyphase filtering where scipy is installed, else by straight lines."""
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


def encode_sound(audio: Any, sample_rate: int, format: str) -> bytes:
    """Return samples, shaped (frames), (frames, channels) or (channels, frames), as the bytes of a file."""
    try:
        import soundfile
    except ImportError:
        raise ValidationError(f"saving samples needs soundfile: {installed_by('audio')}") from None
    kind = format.upper()
    if kind not in soundfile.available_formats() or kind == "RAW":
        raise ValueError(f"a sound is saved as wav, flac, ogg or mp3, not as `{format}`")
    buffer = io.BytesIO()
    soundfile.write(buffer, _samples(audio), sample_rate, format=kind)
    return buffer.getvalue()


def _samples(audio: Any) -> Any:
    """Return what may be a tensor on any device, of any floating type, as an array of (frames[, channels])."""
    import numpy

    if hasattr(audio, "detach"):
        audio = audio.detach().cpu()
        audio = (audio.float() if audio.is_floating_point() else audio).numpy()
    samples = numpy.asarray(audio)
    if samples.dtype == numpy.float16:
        samples = samples.astype(numpy.float32)
    if samples.dtype not in (numpy.float32, numpy.float64, numpy.int16, numpy.int32):
        raise ValueError(f"samples are float32, float64, int16 or int32, got {samples.dtype}")
    if samples.ndim not in (1, 2) or not samples.size:
        shape = tuple(samples.shape)
        raise ValueError(f"samples are shaped (frames), (frames, channels) or (channels, frames), got {shape}")
    return samples.T if samples.ndim == 2 and samples.shape[0] < samples.shape[1] else samples
