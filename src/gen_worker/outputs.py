"""Where the files that a job saves go: safe names, and a folder that keeps them."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

_PIECE_BYTES = 1 << 20
_PART_BYTES = 255  # the longest file name on every common file system
_REF_BYTES = 1024  # the longest key of common object stores
_PARTS = 64


class FileTooLargeError(Exception):
    """A file is longer than the operator allows."""

    def __init__(self, ref: str, size_bytes: int, max_bytes: int) -> None:
        super().__init__(f"`{ref}` has {size_bytes} bytes, the limit is {max_bytes}: `WORKER_MAX_UPLOAD_BYTES`")
        self.size_bytes = size_bytes
        self.max_bytes = max_bytes


class ExistsError(Exception):
    """A file was to be kept under a name that another has."""


class NotWantedError(Exception):
    """Nobody wants a file any more that is being kept."""


class SavedFile(NamedTuple):
    """A file that was kept: in a folder of this machine, or in the platform's store, which says what it is there."""

    local_path: str
    size_bytes: int
    sha256: str
    ref: str = ""
    owner: str = ""
    mime_type: str = ""
    blake3: str = ""
    media_id: str = ""


class Repository(NamedTuple):
    """Where on its platform a producer's files go, for sinks that lead there: they take it as `into=`."""

    repo: str
    """`owner/name`."""

    opening: dict[str, str]
    """What a revision of it is opened with."""


class Sink(Protocol):
    """Keeps what a job saves."""

    def save(self, ref: str, *, data: bytes | None, path: Path | None, create: bool = False) -> SavedFile:
        """Keep `data`, or the content of the file `path`, under the safe name `ref`; exactly one of them is given.

        With `create`, raises `ExistsError` where there is a file of this name.
        """


def safe_ref(ref: str) -> str:
    """Return the ref as a relative path with "/" between its parts; raise ValueError when it could lead elsewhere."""
    if not isinstance(ref, str):
        raise TypeError(f"a ref is a str, not a `{type(ref).__name__}`: {ref!r}")
    name = ref.strip().lstrip("/")
    if name.lower().startswith(("http://", "https://")):
        raise ValueError(f"a ref is a name, not a URL: `{ref}`")
    for forbidden, meaning in (("\\", "a backslash"), ("\0", "a NUL")):
        if forbidden in name:
            raise ValueError(f"a ref must not contain {meaning}: {ref!r}")
    parts = [part.strip() for part in name.split("/")]
    parts = [part for part in parts if part not in ("", ".")]
    if not parts:
        raise ValueError(f"a ref must name a file: {ref!r}")
    if len(parts) > _PARTS:
        raise ValueError(f"a ref has at most {_PARTS} parts, this one has {len(parts)}: `{ref[:40]}…`")
    for part in parts:
        _refuse_part(part, ref)
    safe = "/".join(parts)
    if len(safe.encode()) > _REF_BYTES:
        raise ValueError(f"a ref has at most {_REF_BYTES} bytes, this one has {len(safe.encode())}: `{ref[:40]}…`")
    return safe


def _refuse_part(part: str, ref: str) -> None:
    if part == "..":
        raise ValueError(f"a ref must not contain `..`: `{ref}`")
    try:
        length = len(part.encode())
    except UnicodeEncodeError:
        raise ValueError(f"a ref must be valid Unicode: {ref!r}") from None
    if length > _PART_BYTES:
        raise ValueError(f"a part of a ref has at most {_PART_BYTES} bytes, this one has {length}: `{part[:40]}…`")


class FolderSink:
    """Keeps saved files in one folder; a file appears under its name only when it is complete."""

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int = 0) -> None:
        self._folder = Path(folder).absolute()
        self._max_bytes = max_bytes

    def save(
        self,
        ref: str,
        *,
        data: bytes | None,
        path: Path | None,
        create: bool = False,
        wanted: Callable[[], bool] = lambda: True,
    ) -> SavedFile:
        """Write the file under the folder.

        Raises ValueError when a link would lead out of it, `FileTooLargeError` for more than `max_bytes` (0: no limit),
        `ExistsError` for a file that shall be `create`d and is there, `NotWantedError` once `wanted`, which is asked
        at every piece of a file, says so.
        """
        size = len(data) if data is not None else path.stat().st_size if path is not None else 0
        if 0 < self._max_bytes < size:
            raise FileTooLargeError(ref, size, self._max_bytes)
        target = self._folder / safe_ref(ref)
        if not target.parent.resolve().is_relative_to(self._folder.resolve()):
            raise ValueError(f"`{ref}` leads out of `{self._folder}`")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_kept(ref, error) from None
        temporary = target.with_name(f".saving-{os.urandom(8).hex()}")
        try:
            with open(temporary, "xb") as file:
                size, digest = _fill(file, data, path, wanted)
            _into_place(temporary, target, create)
        except IsADirectoryError as error:  # refs of an earlier request begin with this one
            temporary.unlink(missing_ok=True)
            raise self._not_kept(ref, error) from None
        except BaseException:
            with suppress(FileNotFoundError):
                temporary.unlink()
            raise
        return SavedFile(str(target), size, digest)

    def _not_kept(self, ref: str, error: OSError) -> OSError:
        reason = (error.strerror or str(error)).lower()
        return OSError(f"`{ref}` cannot be kept in `{self._folder}` (`GEN_WORKER_LOCAL_OUTPUT_DIR`): {reason}")


def _into_place(temporary: Path, target: Path, create: bool) -> None:
    if not create:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)  # which no other file is lost by, whoever comes between
    except FileExistsError:
        raise ExistsError(f"`{target}` exists") from None
    temporary.unlink()


def _fill(file: BinaryIO, data: bytes | None, path: Path | None, wanted: Callable[[], bool]) -> tuple[int, str]:
    import hashlib  # brings OpenSSL, which nobody needs who saves nothing

    if data is not None:
        file.write(data)
        return len(data), hashlib.sha256(data).hexdigest()
    if path is None:
        raise TypeError("either `data` or `path` must be given")
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as source:
        while piece := source.read(_PIECE_BYTES):
            file.write(piece)
            digest.update(piece)
            size += len(piece)
            if not wanted():
                raise NotWantedError
    return size, digest.hexdigest()
