"""What a handler is given besides its payload: its request, and the way back to whoever asked.

The runtime makes one per job, so making one does no work that can wait until a member is used.
"""

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from gen_worker.api.errors import CanceledError, OutputTooLargeError
from gen_worker.api.types import Asset, AudioAsset, ImageAsset, VideoAsset, retyped
from gen_worker.extras import installed_by
from gen_worker.filetypes import HEAD_BYTES, mime_type
from gen_worker.outputs import FileTooLargeError, FolderSink, SavedFile, Sink, safe_ref
from gen_worker.wire.messages import EarlierRun, Level

if TYPE_CHECKING:
    import torch

__all__ = ["CancelFlag", "Emitter", "FolderSink", "RequestContext", "SavedFile", "Sink", "safe_ref"]

SAVE_LIMIT_BYTES = 20 << 30
INLINE_LIMIT_BYTES = 4 << 20
_LEVELS = get_args(Level)
DEVICE_VARIABLE = "GEN_WORKER_LOCAL_DEVICE"

Emitter: TypeAlias = Callable[[dict[str, object]], None]


class CancelFlag:
    """Whether a job was asked to end. Setting it is one store: safe from any thread and from a signal handler."""

    __slots__ = ("requested",)

    def __init__(self) -> None:
        self.requested = False

    def set(self) -> None:
        """Ask the job to end."""
        self.requested = True

    def is_set(self) -> bool:
        """Tell whether the job was asked to end."""
        return self.requested


class RequestContext:
    """One request, as its handler sees it."""

    __slots__ = (
        "_cancel",
        "_earlier",
        "_emitter",
        "_ends_at",
        "_inline_file_bytes",
        "_invoker_id",
        "_job_id",
        "_models",
        "_owner",
        "_request_id",
        "_sink",
        "_told",
        "_traceparent",
        "_warned",
    )

    def __init__(
        self,
        *,
        request_id: str,
        emitter: Emitter | None = None,
        sink: Sink | None = None,
        cancel: CancelFlag | None = None,
        timeout_s: float | None = None,
        timeout_ms: float | None = None,
        models: Mapping[str, str] | None = None,
        owner: str = "",
        job_id: str = "",
        invoker_id: str = "",
        local_output_dir: str | os.PathLike[str] | None = None,
        execution_hints: Mapping[str, object] | None = None,
        inline_file_bytes: int = 0,
        traceparent: str = "",
        file_api_base_url: str = "",
        worker_capability_token: str = "",
        source_info: Mapping[str, Any] | None = None,
        destination_info: Mapping[str, Any] | None = None,
        compute: object | None = None,
        hf_token: str = "",
    ) -> None:
        """A `timeout_ms` of 0 is none; what producers have, `file_api_base_url` and the token are not for this one."""
        if timeout_ms is not None:
            timeout_s = timeout_ms / 1000 or None
        self._request_id = request_id
        self._emitter = emitter
        self._sink = FolderSink(local_output_dir) if local_output_dir else sink
        if execution_hints is not None and not local_output_dir and _asks_inline(execution_hints):
            inline_file_bytes = INLINE_LIMIT_BYTES
        self._inline_file_bytes = inline_file_bytes
        self._cancel = cancel
        self._ends_at = None if timeout_s is None else time.monotonic() + timeout_s
        self._models = models
        self._owner = owner
        self._job_id = job_id
        self._invoker_id = invoker_id
        self._traceparent = traceparent
        self._earlier: EarlierRun | None = None
        self._told = False
        self._warned = False

    # --- the request --------------------------------------------------------------------------------------------------

    @property
    def request_id(self) -> str:
        """The name of this request."""
        return self._request_id

    @property
    def models(self) -> dict[str, str]:
        """The ref of the model in each slot; a fresh copy at each read."""
        return dict(self._models) if self._models else {}

    @property
    def deadline(self) -> float | None:
        """When this request must have ended, as unix time; None when it may take for ever."""
        return None if self._ends_at is None else time.time() + self._ends_at - time.monotonic()

    def time_remaining(self) -> float | None:
        """Return the seconds to the deadline, at least 0; None without a deadline."""
        return None if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether the request was asked to end."""
        return self._cancel is not None and self._cancel.requested

    def raise_if_cancelled(self, message: str = "request cancelled") -> None:
        """Raise `CanceledError` once the request was asked to end; call it wherever stopping is cheap."""
        if self._cancel is not None and self._cancel.requested:
            raise CanceledError(message)

    # --- the device ---------------------------------------------------------------------------------------------------

    @property
    def device(self) -> "torch.device":
        """The device that this request runs on; raise RuntimeError where torch is not installed."""
        torch = _torch()
        wanted = os.environ.get(DEVICE_VARIABLE, "").strip()
        if wanted == "cpu" or (not wanted and not torch.cuda.is_available()):
            return torch.device("cpu")
        if wanted and wanted.partition(":")[0] != "cuda":
            raise RuntimeError(f"`{DEVICE_VARIABLE}` must be `cpu`, `cuda` or `cuda:N`, not `{wanted}`")
        if not torch.cuda.is_available():
            raise RuntimeError(
                f"the device of `--device` or `{DEVICE_VARIABLE}` is `{wanted}`, but torch finds no CUDA device"
            )
        return torch.device(wanted) if ":" in wanted else torch.device("cuda", torch.cuda.current_device())

    def generator(self, seed: int | None = None) -> "torch.Generator":
        """Return a new random generator on the device, seeded when a seed is given."""
        generator = _torch().Generator(device=self.device)
        if seed is not None:
            generator.manual_seed(seed)
        return generator

    # --- news ---------------------------------------------------------------------------------------------------------

    def progress(self, progress: float, stage: str | None = None) -> None:
        """Tell the caller how far the request is, from 0 to 1, and what it is doing.

        What is outside is told as the nearer end, and the first time in a request the caller is warned of it.
        """
        self._told = True
        if self._emitter is not None:
            fraction = float(progress)
            if not 0.0 <= fraction <= 1.0 and not self._warned:
                self._warned = True
                self.log(f"`ctx.progress` takes a fraction from 0 to 1, got {progress}", "warning")
            news: dict[str, object] = {"progress": min(fraction, 1.0) if fraction > 0 else 0.0}
            if stage is not None:
                news["stage"] = stage
            self._emit("request.progress", news)

    def _stepped(self, done: int, total: int) -> None:
        """Tell the caller how many steps of a pipeline are done, unless the author tells the progress."""
        if self._emitter is not None and not self._told:
            self._emit("request.progress", {"progress": min(1.0, done / total), "stage": f"step {done}/{total}"})

    def log(self, message: str, level: Level | Literal["warn"] = "info") -> None:
        """Tell the caller something; `warn` is another word for `warning`. Raises ValueError for any other level."""
        known = "warning" if level == "warn" else level
        if known not in _LEVELS:
            raise ValueError(f"`level` is one of {', '.join(f'`{each}`' for each in _LEVELS)}, not {level!r}")
        if self._emitter is not None:
            self._emit("request.log", {"message": str(message), "level": known})

    def _emit(self, type: str, payload: dict[str, object]) -> None:
        if self._emitter is not None:
            event = {"request_id": self._request_id, "type": type, "payload": payload, "timestamp": time.time()}
            self._emitter(event)

    # --- files --------------------------------------------------------------------------------------------------------

    def save_bytes(self, ref: str, data: bytes | bytearray) -> Asset:
        """Keep bytes under a name and return the asset that stands for them."""
        return self._save_bytes(ref, data)

    def _save_bytes(self, ref: str, data: bytes | bytearray, create: bool = False) -> Asset:
        if not isinstance(data, bytes | bytearray):
            raise TypeError(f"`save_bytes` takes bytes or a bytearray, got {type(data).__name__}")
        return self._keep(ref, data=bytes(data), path=None, size=len(data), create=create)

    def save_file(self, ref: str, local_path: str | os.PathLike[str]) -> Asset:
        """Keep a copy of a file under a name and return the asset that stands for it."""
        return self._save_file(ref, local_path)

    def _save_file(self, ref: str, local_path: str | os.PathLike[str], create: bool = False) -> Asset:
        if not os.fspath(local_path):
            raise ValueError("`save_file` needs the path of a file, got an empty one")
        path = Path(local_path)
        if not path.is_file():
            raise FileNotFoundError(f"no file `{path}`")
        return self._keep(ref, data=None, path=path, size=path.stat().st_size, create=create)

    def save_image(
        self,
        image: Any,
        ref: str | None = None,
        *,
        format: str = "webp",
        quality: int = 95,
        lossless: bool = False,
    ) -> ImageAsset:
        """Keep a PIL image as jpg, png or webp."""
        from gen_worker.api.pictures import encode_picture, picture_format

        kind = picture_format(format)
        options: dict[str, object] = {} if kind == "PNG" else {"quality": quality}
        if kind == "WEBP":
            options["lossless"] = lossless
        data = encode_picture(image, format, **options)
        asset = self.save_bytes(self._named(ref, "image", format), data)
        return retyped(asset, ImageAsset, mime_type=f"image/{kind.lower()}")

    def save_audio(
        self, audio: Any, ref: str | None = None, *, sample_rate: int = 44100, format: str = "wav"
    ) -> AudioAsset:
        """Keep samples, an array or a tensor, as a sound file; bytes are kept as they are."""
        data = audio
        if not isinstance(audio, bytes | bytearray):
            from gen_worker.api.sounds import encode_sound

            data = encode_sound(audio, sample_rate, format)
        asset = self.save_bytes(self._named(ref, "audio", format), data)
        return retyped(asset, AudioAsset, mime_type=_kind_of(asset, "audio", format))

    def save_video(
        self,
        video: "bytes | bytearray | str | os.PathLike[str] | Iterable[Any]",
        ref: str | None = None,
        *,
        format: str = "mp4",
        fps: float | None = None,
    ) -> VideoAsset:
        """Keep a film, given as the bytes or the path of a file, or as frames and how many of them are a second.

        Frames are what `gen_worker.io.write_video` takes.
        """
        name = self._named(ref, "video", format)
        if isinstance(video, bytes | bytearray):
            asset = self.save_bytes(name, video)
        elif isinstance(video, str | os.PathLike):
            asset = self.save_file(name, video)
        elif fps is None:
            raise TypeError("`save_video` needs `fps=` for a film that is given as frames")
        else:
            from gen_worker.api.films import encoded_film

            with encoded_film(video, fps=fps, format=format) as path:
                asset = self.save_file(name, path)
        return retyped(asset, VideoAsset, mime_type=_kind_of(asset, "video", format))

    def _named(self, ref: str | None, stem: str, extension: str) -> str:
        """Return the name of a saved file: the default one, or the given one with an extension if it has none."""
        if ref is None:
            folder = re.sub(r"[^\w.-]+", "-", self._request_id).strip(".") or "request"
            return f"outputs/{folder[-128:]}/{stem}.{extension.lower()}"
        name = ref.strip().rstrip("/")
        return name if os.path.splitext(name)[1] or not name else f"{name}.{extension.lower()}"

    def _whither(self) -> dict[str, Any]:
        """Return what a sink is told beside the file: where a producer's go."""
        return {}

    def _keep(self, ref: str, *, data: bytes | None, path: Path | None, size: int, create: bool) -> Asset:
        name = safe_ref(ref)
        if size > SAVE_LIMIT_BYTES:
            raise OutputTooLargeError(size_bytes=size, max_bytes=SAVE_LIMIT_BYTES)
        kind = mime_type(_head(data, path), name)
        if self._inline_file_bytes and size <= self._inline_file_bytes:
            return _inlined(name, path.read_bytes() if path is not None else data or b"", kind)
        if self._sink is None:
            raise RuntimeError(f"`{name}` cannot be saved: give the context a `local_output_dir=` or a `sink=`")
        try:
            saved = self._sink.save(name, data=data, path=path, create=create, **self._whither())
        except FileTooLargeError as error:
            raise OutputTooLargeError(
                size_bytes=error.size_bytes, max_bytes=error.max_bytes, message=str(error)
            ) from None
        return Asset(
            ref=saved.ref or name,
            owner=saved.owner or self._owner or None,
            local_path=saved.local_path or None,
            mime_type=saved.mime_type or kind,
            size_bytes=saved.size_bytes,
            sha256=saved.sha256,
            blake3=saved.blake3 or None,
            media_id=saved.media_id or None,
        )


def _asks_inline(hints: Mapping[str, object]) -> bool:
    return hints.get("output_format") == "inline"


def _inlined(name: str, data: bytes, kind: str | None) -> Asset:
    import hashlib

    digest = hashlib.sha256(data).hexdigest()
    return Asset(ref=name, inline_bytes=data, mime_type=kind, size_bytes=len(data), sha256=digest)


def _head(data: bytes | None, path: Path | None) -> bytes:
    """Return the first bytes of what is saved."""
    if path is None:
        return (data or b"")[:HEAD_BYTES]
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _kind_of(asset: Asset, family: str, format: str) -> str:
    """Return the MIME type of a saved sound or film: what its bytes or its name tell, else its format."""
    told = asset.mime_type or ""
    return told if told.startswith(f"{family}/") else f"{family}/{format.lower()}"


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise RuntimeError(f"torch is not installed: {installed_by('torch')}") from None
    return torch
