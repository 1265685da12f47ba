"""Films from and to files. Needs PyAV and numpy only when it is called.

What is read may be anybody's: only containers that hold their frames themselves are opened (a playlist could name any
file or address), decoders are told the largest frame before they make one, and nothing is read ahead.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from gen_worker.api.errors import ValidationError
from gen_worker.api.requirements import require

MAX_FRAME_PIXELS = 1 << 25  # 8K; a decoder may keep 16 of them
MAX_FRAMES = 36_000  # 20 minutes at 30 frames a second
MAX_SECONDS = 1200.0
MAX_FILM_PIXELS = 1 << 29  # of all frames together: 1.6 GB; 8 seconds of 1080p, or 43 of 480p, at 30 frames a second
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,flv,ogg,ivf,h264,hevc"
_STREAMS = 64  # of a file that is looked at; of more, the rest is without limits while that is done
_CODECS = {  # the encoder, its layout of pixels, and what its files are good for
    "mp4": ("libx264", "yuv420p", {"crf": "18", "movflags": "+faststart"}),
    "mov": ("libx264", "yuv420p", {"crf": "18", "movflags": "+faststart"}),
    "mkv": ("libx264", "yuv420p", {"crf": "18"}),
    "webm": ("libvpx-vp9", "yuv420p", {"crf": "24", "b": "0", "row-mt": "1", "deadline": "realtime", "cpu-used": "5"}),
    "gif": ("gif", "rgb8", {}),
}
_MUXERS = {"mkv": "matroska"}


# --- reading ----------------------------------------------------------------------------------------------------------


class Film:
    """The frames of a film one after the other, (height, width, 3) arrays of uint8; decoded as they are asked for.

    Closes its file after the last frame, when the `with` block ends that it may stand in, or with `close()`.
    """

    def __init__(self, path: Path, name: str, *, max_frame_pixels: int, max_frames: int, max_seconds: float) -> None:
        import av

        self._name, self._max_frames, self._max_seconds = name, max_frames, max_seconds
        self._failure: type[Exception] = av.FFmpegError
        options = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS}
        try:
            probing = [{"max_pixels": str(max_frame_pixels)}] * _STREAMS  # to look at a file decodes its first frames
            self._container = av.open(
                f"file:{path}", options=options, stream_options=probing, metadata_errors="replace"
            )
        except (self._failure, ValueError) as error:
            raise ValidationError(f"`{name}` is no film: {_reason(error)}") from None
        try:
            self._begin(max_frame_pixels)
        except BaseException:
            self.close()
            raise

    def _begin(self, max_frame_pixels: int) -> None:
        if not self._container.streams.video:
            raise ValidationError(f"`{self._name}` is no film: it has no pictures")
        self._stream = self._container.streams.video[0]
        codec = self._stream.codec_context
        if codec is None:
            raise ValidationError(f"`{self._name}` cannot be read as a film: its codec is unknown")
        self.width: int = codec.width
        """Of each frame, in pixels."""

        self.height: int = codec.height
        """Of each frame, in pixels."""

        self.fps: float = float(self._stream.average_rate or self._stream.guessed_rate or 0) or 25.0
        """Frames a second, on average."""

        if self.width * self.height > max_frame_pixels:
            size = f"{self.width} x {self.height} pixels"
            raise ValidationError(
                f"`{self._name}` has frames of {size}, the limit is {max_frame_pixels}: `max_frame_pixels=`"
            )
        told = self._container.duration  # in microseconds; what a header says, so the frames are looked at too
        if told is not None:
            self._check_seconds(told / 1e6)
        codec.options = {"max_pixels": str(max_frame_pixels)}
        self._frames = self._decoded()

    def _check_seconds(self, seconds: float) -> None:
        if seconds > self._max_seconds:
            took = f"{seconds:.1f} seconds, the limit is {self._max_seconds:g}"
            raise ValidationError(f"`{self._name}` is a film of {took}: `max_seconds=`")

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            frame = next(self._frames)
        except (self._failure, ValueError, MemoryError) as error:
            self.close()
            raise ValidationError(f"`{self._name}` cannot be read as a film: {_reason(error)}") from None
        except BaseException:
            self.close()
            raise
        return frame

    def _decoded(self) -> Iterator[Any]:
        count = 0
        for packet in self._container.demux(self._stream):
            if packet.is_corrupt:
                raise ValidationError(f"`{self._name}` cannot be read as a film: it ends too soon, or is damaged")
            for frame in packet.decode():
                count += 1
                if count > self._max_frames:
                    limit = f"the limit is {self._max_frames}: `max_frames=`"
                    raise ValidationError(f"`{self._name}` has over {count - 1} frames, {limit}")
                if frame.time is not None:
                    self._check_seconds(frame.time - float(self._stream.start_time or 0) * self._stream.time_base)
                if not self.width or not self.height:
                    self.width, self.height = frame.width, frame.height
                yield frame.to_ndarray(format="rgb24", width=self.width, height=self.height)
        if not count:
            raise ValidationError(f"`{self._name}` is a film without frames")

    def __enter__(self) -> "Film":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; there are no frames after that."""
        self._frames = iter(())
        self._container.close()


def _reason(error: BaseException) -> str:
    """Return why, without the path that FFmpeg's errors end with."""
    told = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(told).lower()


def read_whole(film: Film, name: str, max_pixels: int) -> Any:
    """Return all frames of a film as one array, (frames, height, width, 3); raise ValidationError for too many."""
    import numpy

    frames: list[Any] = []
    with film:
        most = max_pixels // max(1, film.width * film.height)
        for frame in film:
            if len(frames) >= most:
                size = f"{film.width} x {film.height} pixels, together more than {max_pixels}"
                raise ValidationError(f"`{name}` has over {most} frames of {size}: `max_pixels=`")
            frames.append(frame)
    return numpy.stack(frames)


# --- writing ----------------------------------------------------------------------------------------------------------


def film_format(format: str) -> str:
    """Return the name of a film's format; raise ValueError for one that is not offered."""
    name = format.lower()
    if name not in _CODECS:
        raise ValueError(f"a film is saved as {', '.join(_CODECS)}, not `{format}`")
    return name


@contextmanager
def encoded_film(frames: Iterable[Any], *, fps: float, format: str) -> Iterator[Path]:
    """Yield the path of a film of frames; it is gone after the block."""
    import tempfile

    require("video", "av", "numpy")
    kind = film_format(format)
    with tempfile.TemporaryDirectory(prefix="gen-worker-film-") as folder:
        path = Path(folder, f"film.{kind}")
        encode_film(path, frames, fps=fps, format=kind)
        yield path


def encode_film(path: Path, frames: Iterable[Any], *, fps: float, format: str) -> None:
    """Write frames to a file, one at a time: they may come from a generator.

    A frame is an array or a tensor of (height, width, 3) or (height, width), of uint8 or of floats from 0 to 1, or a
    PIL image. Odd sizes are made even by repeating the last row or column, which codecs need; a GIF has 256 colours.
    """
    from fractions import Fraction

    import av

    kind = film_format(format)
    if not math.isfinite(fps) or fps <= 0:
        raise ValueError(f"`fps=` is over 0, got {fps}")
    pictures = iter(frames)
    first = next(pictures, None)
    if first is None:
        raise ValueError("a film needs at least one frame")
    codec, layout, options = _CODECS[kind]
    with av.open(str(path), "w", format=_MUXERS.get(kind, kind)) as container:
        start = _even(frame_array(first), kind)
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width = start.shape[:2]
        stream.pix_fmt = layout
        for number, picture in enumerate(chain([start], (_even(frame_array(each), kind) for each in pictures))):
            if picture.shape != start.shape:
                sizes = f"{start.shape[1]} x {start.shape[0]} and {picture.shape[1]} x {picture.shape[0]}"
                raise ValueError(f"frames 0 and {number} of a film differ in size: {sizes}")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def frame_array(frame: Any) -> Any:
    """Return a frame as an array of uint8, (height, width, 3); raise ValueError for what is none."""
    import numpy

    if hasattr(frame, "detach"):
        frame = frame.detach().cpu()
        frame = (frame.float() if frame.is_floating_point() else frame).numpy()
    elif hasattr(frame, "convert"):
        frame = frame.convert("RGB")
    array = numpy.asarray(frame)
    if array.ndim == 2:
        array = numpy.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(f"a frame is shaped (height, width, 3), got {tuple(array.shape)}")
    if array.dtype.kind == "f":
        array = numpy.rint(numpy.nan_to_num(array).clip(0, 1) * 255).astype(numpy.uint8)
    if array.dtype != numpy.uint8:
        raise ValueError(f"a frame is of uint8, or of floats from 0 to 1, got {array.dtype}")
    return numpy.ascontiguousarray(array)


def _even(picture: Any, format: str) -> Any:
    import numpy

    height, width = picture.shape[:2]
    if format == "gif" or not (height % 2 or width % 2):
        return picture
    return numpy.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
