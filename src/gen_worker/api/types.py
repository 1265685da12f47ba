"""Values that payloads and outputs are made of."""

import enum
import os
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypeVar, cast

import msgspec


class StringEnum(enum.StrEnum):
    """Base of enumerations whose members are strings, on the wire as in Python."""


class Asset(msgspec.Struct, omit_defaults=True):
    """A file: one that a payload refers to, or one that a job saved."""

    ref: str
    owner: str | None = None
    local_path: str | None = None
    mime_type: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    blake3: str | None = None
    media_id: str | None = None
    download_token: str | None = None
    stream_mode: str | None = None
    inline_bytes: bytes | None = None
    url_max_bytes: int | None = None
    url_allowed_mime_types: tuple[str, ...] = ()
    url_max_width: int | None = None
    url_max_height: int | None = None
    url_max_pixels: int | None = None
    url_validation_context: str | None = None

    def __fspath__(self) -> str:
        return _local(self.ref, self.local_path)

    @property
    def tenant_id(self) -> str | None:
        """The owner, as the earlier API calls it."""
        return self.owner

    @tenant_id.setter
    def tenant_id(self, tenant_id: str | None) -> None:
        self.owner = tenant_id

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open the file; binary modes only."""
        if "b" not in mode:
            raise ValueError(f"an asset is bytes: open it with a binary mode, not `{mode}`")
        return cast(BinaryIO, Path(self).open(mode))

    def exists(self) -> bool:
        """Tell whether the file lies on this machine."""
        return bool(self.local_path) and Path(self).exists()

    def read_bytes(self, max_bytes: int | None = None) -> bytes:
        """Return the whole file; raise ValueError when it is longer than `max_bytes`."""
        return _whole(self, self.ref, max_bytes)


class MediaAsset(Asset):
    """A file that a person looks at or listens to."""


class ImageAsset(MediaAsset):
    """A picture."""


class VideoAsset(MediaAsset):
    """A film."""


class AudioAsset(MediaAsset):
    """A sound."""


AssetType = TypeVar("AssetType", bound=Asset)


def retyped(asset: Asset, kind: type[AssetType], **changes: object) -> AssetType:
    """Return the same file as another kind of asset."""
    return kind(**(msgspec.structs.asdict(asset) | changes))


class Tensors(msgspec.Struct, omit_defaults=True):
    """A file of weights."""

    ref: str
    owner: str | None = None
    local_path: str | None = None
    format: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    blake3: str | None = None
    blob_digest: str | None = None
    blob_domain: str | None = None
    blob_path: str | None = None
    snapshot_digest: str | None = None
    download_token: str | None = None
    stream_mode: str | None = None

    def __fspath__(self) -> str:
        return _local(self.ref, self.local_path)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open the file; binary modes only."""
        if "b" not in mode:
            raise ValueError(f"tensors are bytes: open them with a binary mode, not `{mode}`")
        return cast(BinaryIO, Path(self).open(mode))

    def exists(self) -> bool:
        """Tell whether the file lies on this machine."""
        return bool(self.local_path) and Path(self).exists()

    def read_bytes(self, max_bytes: int | None = None) -> bytes:
        """Return the whole file; raise ValueError when it is longer than `max_bytes`."""
        return _whole(self, self.ref, max_bytes)


def _whole(file: os.PathLike[str], ref: str, max_bytes: int | None) -> bytes:
    size = os.stat(file).st_size
    if max_bytes is not None and size > max_bytes:
        raise ValueError(f"`{ref}` has {size} bytes, the limit is {max_bytes}")
    return Path(file).read_bytes()


def _local(ref: str, local_path: str | None) -> str:
    if not local_path:
        raise ValueError(f"`{ref}` has no file on this machine")
    return local_path


class PromptRole(msgspec.Struct, frozen=True):
    """A mark in `Annotated[str, ...]`: the field is a prompt of this role."""

    role: Literal["positive", "negative"]

    def __post_init__(self) -> None:
        if self.role not in ("positive", "negative"):
            raise ValueError(f"`PromptRole` takes `positive` or `negative`, got {self.role!r}")


PositivePrompt = Annotated[str, PromptRole("positive")]
NegativePrompt = Annotated[str, PromptRole("negative")]


class ExpectedOutput(msgspec.Struct, frozen=True):
    """A mark in `Annotated[...]` of an output field: how many files it will hold and what they are like.

    A string stands for a value that is known only from the payload, as in `input.width`.
    """

    count: int | str = 1
    width: int | str | None = None
    height: int | str | None = None
    aspect_ratio: str | None = None
    mime_type: str | None = None
    media_type: str | None = None

    def __post_init__(self) -> None:
        for field in ("count", "width", "height"):
            value = getattr(self, field)
            if value is None and field != "count":
                continue
            if isinstance(value, bool) or not isinstance(value, int | str):
                raise ValueError(f"`ExpectedOutput({field}=)` takes a whole number or a string, got {value!r}")
            if value == "" or (isinstance(value, int) and value < 1):
                raise ValueError(f"`ExpectedOutput({field}=)` must be at least 1, got {value!r}")
        for field in ("aspect_ratio", "mime_type", "media_type"):
            value = getattr(self, field)
            if value is not None and (not isinstance(value, str) or not value):
                raise ValueError(f"`ExpectedOutput({field}=)` takes a string, got {value!r}")


class Compute(msgspec.Struct, frozen=True):
    """The machine that a producer job was given."""

    accelerator: str = ""
    min_compute_capability: str = ""
    vram_gb: float = 0
    gpu_count: int = 0
    gpu_tier: str | None = None
    memory_gb: float = 0
    cpu_cores: int = 0
    disk_gb: float = 0


class SourceRepo(msgspec.Struct):
    """The payload field `source` of a producer: what it starts from."""

    ref: str
    checkpoint_id: str | None = None
    attributes: dict[str, Any] = {}


class DestinationRepo(msgspec.Struct):
    """The payload field `destination` of a producer: where its result goes."""

    ref: str
    tags: list[str] = []


class DatasetRef(msgspec.Struct):
    """One of the payload field `datasets` of a producer."""

    ref: str
    checkpoint_id: str | None = None
    attributes: dict[str, Any] = {}
    split: str = "train"


class OutputSpec(msgspec.Struct):
    """One of the payload field `outputs` of a producer."""

    attributes: dict[str, Any] = {}
