"""Get one file that a payload names by a URL, as far as whoever named it may have it.

Reaches public addresses only, follows redirects on the same terms, and stops at the first thing that is not allowed. A
file of a file API is copied from the cache where that has what the API describes.
"""

import errno
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from io import FileIO
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias
from urllib.parse import unquote

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.inputs.addresses import unreachable_as
from gen_worker.fetch.inputs.cache import InputCache
from gen_worker.fetch.inputs.dimensions import dimensions
from gen_worker.fetch.network.answers import content_length
from gen_worker.fetch.network.connections import DIALING, Dialing
from gen_worker.fetch.network.origins import Origin, Url
from gen_worker.fetch.network.patience import Patience, Tries, passes
from gen_worker.fetch.network.transport import FAILURES, HttpError, Response, Transport, translated
from gen_worker.fetch.uploading.file_api import file_headers, file_url
from gen_worker.filetypes import HEAD_BYTES, extension, mime_type
from gen_worker.models.errors import ModelError
from gen_worker.wire.fetching import Destination
from gen_worker.wire.messages import InputAsset, InputFile

MAX_BYTES = 50 << 20  # of a file whose asset says nothing of that
LIMIT_S = 600.0  # for one file, with all tries
FOR_INPUTS = Patience(
    first_delay_s=0.2, longest_retry_after_s=10.0, head_s=15.0, quiet_s=15.0, slow_bytes_per_s=16 << 10
)  # who says nothing, or next to nothing, holds up the files of others
_FOR_STRANGERS = {"Origin": "null"}  # as browsers say it: who answers this machine more than others then does not
_CHUNK_BYTES = 256 << 10
_SPARE_BYTES = 1 << 30
_ROOM_BYTES = 16 << 20  # is made at once on a disk that is full
_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,63}/[a-z0-9][a-z0-9!#$&^_.+-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")
_ANYTHING = "application/octet-stream"
_OTHER_NAMES = {
    "image/jpg": "image/jpeg",
    "audio/mp3": "audio/mpeg",
    "audio/wave": "audio/wav",
    "audio/x-wav": "audio/wav",
    "audio/x-flac": "audio/flac",
    "audio/m4a": "audio/mp4",
    "audio/x-m4a": "audio/mp4",
}


Kind: TypeAlias = Literal["invalid", "unauthorized", "unreachable", "canceled"]


class InputError(Exception):
    """The file cannot be had; `invalid`: whoever named it asks for what is not allowed. Never shows a URL's query.

    `unauthorized`: a file API does not take the token that came with the run.
    """

    def __init__(self, kind: Kind, message: str, *, hint: str = "", retryable: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.hint = hint
        self.retryable = retryable


class _OtherFileError(Exception):
    """What came is not the file that was described."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker allows, whatever an asset says of itself."""

    max_bytes: int = 0
    """0: what the asset allows."""

    trusted_origin: str = ""
    """`https://host:port` whose address may be any where the asset itself names it."""

    allow_private: bool = False
    """Whether every address may be reached."""

    def trust(self, origin: Origin) -> bool:
        """Whether an origin's address may be any."""
        return self.allow_private or bool(self.trusted_origin and origin == Url(self.trusted_origin).origin)


class FileApi:
    """The file API of an earlier orchestrator, as one run may use it."""

    def __init__(self, destination: Destination, cache: InputCache | None = None) -> None:
        self._destination = destination
        self.cache = cache
        self.owner = destination.owner
        self.headers = file_headers(destination)

    def url(self, ref: str) -> str:
        """Return where a file is; raise `InputError` for a name that leads elsewhere."""
        if any(part in ("", ".", "..") for part in ref.split("/")):
            raise InputError("invalid", "a ref of the payload names no file")
        return file_url(self._destination.base_url, ref)

    def trusted(self, limits: Limits) -> Limits:
        """Return the limits with this API's address allowed, whatever it is: the orchestrator named it."""
        scheme, separator, rest = self._destination.base_url.partition("://")
        if not separator:
            raise InputError("invalid", "a ref of the payload names a file, and the run came without a file API")
        return msgspec.structs.replace(limits, trusted_origin=f"{scheme}://{rest.partition('/')[0]}")


GiveRoom: TypeAlias = Callable[[int, int], bool]


def give_none(size: int, device: int) -> bool:
    """Give no room: nothing is kept that could go."""
    return False


def spare_bytes(disk_bytes: int) -> int:
    """Return what stays free of a disk of that size, whatever is asked for: files of all jobs lie on it."""
    return min(_SPARE_BYTES, disk_bytes // 20)


def fetch_input(
    asset: InputAsset,
    path: str,
    limits: Limits,
    config: FetchConfig,
    cancel: Cancel,
    *,
    patience: Patience = FOR_INPUTS,
    dialing: Dialing = DIALING,
    limit_s: float = LIMIT_S,
    spare: Callable[[int], int] = spare_bytes,
    give_room: GiveRoom = give_none,
    api: "FileApi | None" = None,
) -> InputFile:
    """Have the asset's file at `path`, with a suffix by its type, and say what it is; raise `InputError`.

    With an `api`, what the asset names is a ref there. It says first how long the file is, and what its digest.
    `give_room` is asked for so many bytes of a disk that is full, and says whether some were had.

    What the environment says of proxies does not count: a proxy would look names up for itself.
    """
    config = msgspec.structs.replace(config, proxies={})
    patience = msgspec.structs.replace(patience, tries=config.input_tries)
    try:
        url = Url(asset.url if api is None else api.url(asset.url))
    except ModelError:
        raise InputError("invalid", "a URL of the payload is none that can be fetched") from None
    dialing = dialing._replace(check=lambda origin, address: _check(origin, address, url.origin, limits))
    headers = api.headers if api is not None else _FOR_STRANGERS if limits.trust(url.origin) else {}
    wish = _Wish(asset, url, Path(path), _max_bytes(asset, limits), spare, give_room, headers, api)
    with _in_time(cancel, limit_s) as hurry, Transport(config, patience, dialing) as transport:
        try:
            return _patiently(wish, transport, patience, hurry)
        except ModelError as error:
            raise _refusal(error, wish, cancel, limit_s) from error


class _Wish(msgspec.Struct, frozen=True):
    """One file, where it is and where it goes."""

    asset: InputAsset
    url: Url
    path: Path
    max_bytes: int
    spare: Callable[[int], int]
    give_room: GiveRoom
    headers: dict[str, str]
    api: FileApi | None = None  # that has it, and can be asked what it is

    @property
    def host(self) -> str:
        """Whom people know it by."""
        return str(self.url.origin)


def _check(origin: Origin, address: str, asked: Origin, limits: Limits) -> None:
    """Raise for an address that a stranger must not have reached through this worker; trust is not for redirects."""
    if limits.allow_private or (origin == asked and limits.trust(origin)):
        return
    kind = unreachable_as(address)
    if kind is not None:
        hint = "with `GEN_WORKER_ALLOW_PRIVATE_INPUTS=1` every address may be asked"
        raise InputError("invalid", f"`{origin}` is not asked for a file: its address is {kind}", hint=hint)


def _max_bytes(asset: InputAsset, limits: Limits) -> int:
    wanted = asset.max_bytes or MAX_BYTES
    return min(wanted, limits.max_bytes) if limits.max_bytes else wanted


@contextmanager
def _in_time(cancel: Cancel, seconds: float) -> Iterator[Cancel]:
    """Yield a flag that is set with the other one, or when the time is over."""
    with cancel.part() as hurry:
        alarm = threading.Timer(seconds, hurry.set)
        alarm.daemon = True
        alarm.start()
        try:
            yield hurry
        finally:
            alarm.cancel()


def _patiently(wish: _Wish, transport: Transport, patience: Patience, cancel: Cancel) -> InputFile:
    tries = Tries(patience)
    while True:
        try:
            return _once(wish, transport, cancel)
        except FAILURES as error:
            cancel.raise_if_set()
            failure = error
        try:
            cancel.wait(tries.failed(failure))
        except FAILURES as error:
            raise _failed(error, wish, patience.tries) from error


def _failed(error: Exception, wish: _Wish, tries: int) -> InputError:
    """Return what is told of a request that failed for good."""
    if isinstance(error, OSError | HTTPException):
        kind: Kind = "unreachable" if passes(error) else "invalid"  # as for a certificate that nobody vouches for
        return InputError(kind, str(translated(error, wish.url)), retryable=passes(error))
    assert isinstance(error, HttpError)
    who = f"whoever `{wish.host}` redirects to" if error.redirected else f"`{wish.host}`"
    if passes(error):
        return InputError("unreachable", f"{who} answers {error.status}, {tries} times", retryable=True)
    refused = wish.api is not None and not error.redirected and error.status in (401, 403)
    text = f"{who} does not give the file of the payload: it answers {error.status}"
    return InputError("unauthorized" if refused else "invalid", text)


def _refusal(error: ModelError, wish: _Wish, cancel: Cancel, limit_s: float) -> InputError:
    """Return what is told of what another try would not have changed."""
    if error.kind == "not_configured":
        return InputError("unreachable", str(error))
    if error.kind != "canceled":
        return InputError("invalid", str(error))
    if cancel.is_set():
        return InputError("canceled", "canceled")
    text = f"`{wish.host}` is too slow: its file has not come within {round(limit_s, 1):g} seconds"
    return InputError("unreachable", text, retryable=True)


# --- one try ----------------------------------------------------------------------------------------------------------


class _Told(NamedTuple):
    """What a file API says of a file, as far as it does."""

    sha256: str = ""
    mime_type: str = ""
    size: int | None = None
    vouched: bool = False  # it says so itself, and not somebody whom it redirects to


Read: TypeAlias = Callable[[memoryview], int]
"""Fills memory with what comes next of a file, and returns how much that was; 0 at the end."""


def _once(wish: _Wish, transport: Transport, cancel: Cancel) -> InputFile:
    if wish.api is None:
        return _downloaded(wish, _Told(), transport, cancel)
    told = _described(wish, transport, cancel)
    cache = wish.api.cache
    if cache is None or not told.vouched or not _SHA256.fullmatch(told.sha256):
        return _downloaded(wish, told, transport, cancel)
    with cache.turn(told.sha256, cancel):
        return _from_cache(wish, told, cache) or _downloaded(wish, told, transport, cancel, cache)


def _described(wish: _Wish, transport: Transport, cancel: Cancel) -> _Told:
    """Ask what a file is; refuse one that is too long."""
    with transport.once(str(wish.url), headers=wish.headers, cancel=cancel, method="HEAD") as response:
        told = response.headers
        text = told.get("x-cozy-size-bytes", "").strip()
        size = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None  # else it says nothing
        if size is not None:
            _check_size(size, wish)
        mime_type = told.get("x-cozy-mime-type") or told.get("content-type", "")
        vouched = response.status == 200 and response.url.origin == wish.url.origin
        sha256 = told.get("x-cozy-sha256", "").strip().lower().removeprefix("sha256:")
        return _Told(sha256, mime_type, size, vouched)


def _from_cache(wish: _Wish, told: _Told, cache: InputCache) -> InputFile | None:
    with cache.opened(told.sha256) as file:
        if file is None:
            return None
        try:
            _check_size(os.fstat(file.fileno()).st_size, wish)
            return _written(file.readinto, wish, told, (wish.url.path,))
        except (_OtherFileError, OSError):  # what is wrong with where it goes is told by another exception
            cache.drop(told.sha256)
            return None
        except InputError as error:
            if error.kind != "invalid" or _sha256(file) == told.sha256:
                raise
            cache.drop(told.sha256)  # what is not allowed is not the file that was asked for
            return None


def _downloaded(
    wish: _Wish, told: _Told, transport: Transport, cancel: Cancel, cache: InputCache | None = None
) -> InputFile:
    with transport.once(str(wish.url), headers=wish.headers, cancel=cancel) as response:
        _check_head(response, wish)
        told = told._replace(mime_type=told.mime_type or response.headers.get("content-type", ""))
        try:
            return _written(response.read_into, wish, told, (wish.url.path, response.url.path), cache)
        except _OtherFileError:
            text = f"the file from `{wish.host}` is not the one it describes"
            raise InputError("unreachable", text, retryable=True) from None


def _written(
    read: Read, wish: _Wish, told: _Told, paths: tuple[str, ...], cache: InputCache | None = None
) -> InputFile:
    """Write a file to where it shall be, and into the cache; raise `_OtherFileError` where it is not as described."""
    chunk = memoryview(bytearray(_CHUNK_BYTES))
    began = _begin(read, chunk)
    kind = _kind(bytes(chunk[: min(began, HEAD_BYTES)]), wish, paths, told.mime_type)
    path = wish.path.with_name(wish.path.name + _suffix(kind, wish))
    with _new_file(path) as file:
        size = _copy(read, file, chunk, began, wish)
        if told.size not in (None, size) or (told.sha256 and told.sha256 != _sha256(file)):
            raise _OtherFileError
        _check_dimensions(file, kind, wish)
        if cache is not None:
            cache.keep(told.sha256, file)
    return InputFile(str(path), size, kind, told.sha256, "" if wish.api is None else wish.api.owner)


def _sha256(file: FileIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _check_head(response: Response, wish: _Wish) -> None:
    if response.status not in (200, 203):
        raise InputError(
            "invalid", f"`{wish.host}` does not give the file of the payload: it answers {response.status}"
        )
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise InputError("invalid", f"the file from `{wish.host}` comes in an encoding that was not asked for")
    length = content_length(response.headers)
    if length is not None:
        _check_size(length, wish)


def _check_size(size: int, wish: _Wish) -> None:
    if size > wish.max_bytes:
        raise InputError("invalid", f"the file from `{wish.host}` has {size} bytes, {_limit(wish)}")


def _limit(wish: _Wish) -> str:
    return f"the limit is {wish.max_bytes}"


def _begin(read: Read, chunk: memoryview) -> int:
    """Read as much as it takes to tell what it is; return how much that was."""
    size = 0
    while size < HEAD_BYTES and (count := read(chunk[size:])):
        size += count
    return size


def _kind(head: bytes, wish: _Wish, paths: tuple[str, ...], told: str) -> str:
    """Return the type of a file, if it is one that its asset allows."""
    declared = _usual(told.partition(";")[0])
    found = next((kind for path in paths if (kind := mime_type(head, unquote(path)))), None)
    kind = found or (declared if _TYPE.fullmatch(declared) else _ANYTHING)
    allowed = wish.asset.mime_types
    if allowed and not any(_allows(_usual(each), kind) for each in allowed):
        listed = ", ".join(f"`{each[:80]}`" for each in allowed[:8])
        raise InputError("invalid", f"the file from `{wish.host}` is `{kind}`, allowed is {listed}")
    return kind


def _usual(name: str) -> str:
    name = name.strip().lower()
    return _OTHER_NAMES.get(name, name)


def _allows(pattern: str, kind: str) -> bool:
    return pattern in ("*", "*/*", kind) or (pattern.endswith("/*") and kind.startswith(pattern[:-1]))


def _suffix(kind: str, wish: _Wish) -> str:
    suffix = extension(kind)
    own = os.path.splitext(unquote(wish.url.path))[1]
    return own if suffix == extension(None) and _SUFFIX.fullmatch(own) else suffix


@contextmanager
def _new_file(path: Path) -> Iterator[FileIO]:
    """Open a file that nobody else can have put there; it stays unless the body raises."""
    with _disk():
        path.unlink(missing_ok=True)  # of a try before, in a process that died
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with FileIO(descriptor, "r+b") as file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextmanager
def _disk() -> Iterator[None]:
    """Tell what keeps us from writing apart from what the network does."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError("unreachable", f"a file of the payload cannot be written: {reason}", retryable=True) from error


def _copy(read: Read, file: FileIO, chunk: memoryview, count: int, wish: _Wish) -> int:
    """Write what has come and what comes; return how much that was."""
    size = 0
    while count:
        size += count
        if size > wish.max_bytes:
            raise InputError("invalid", f"the file from `{wish.host}` has more bytes than it may: {_limit(wish)}")
        with _disk():
            _refuse_full(file, count, wish)
            rest = chunk[:count]
            while rest:
                rest = rest[file.write(rest) :]
        count = read(chunk)
    return size


def _refuse_full(file: FileIO, count: int, wish: _Wish) -> None:
    while (free := _free_bytes(file, wish)) is not None and free[1] < count:
        if not wish.give_room(max(count - free[1], _ROOM_BYTES), os.fstat(file.fileno()).st_dev):
            raise OSError(errno.ENOSPC, f"its disk has only {free[0]} bytes left")


def _free_bytes(file: FileIO, wish: _Wish) -> tuple[int, int] | None:
    """Return what is free of a file's disk, and how much of that may be written; None where nobody knows."""
    disk = os.fstatvfs(file.fileno())
    free, size = (blocks * disk.f_frsize for blocks in (disk.f_bavail, disk.f_blocks))
    return (free, free - wish.spare(size)) if size else None  # some file systems say nothing


def _check_dimensions(file: FileIO, kind: str, wish: _Wish) -> None:
    asset = wish.asset
    if not (asset.max_width or asset.max_height or asset.max_pixels):
        return
    found = dimensions(file, kind)
    if found is None:
        raise InputError("invalid", f"the file from `{wish.host}` does not say how large it is as a picture: `{kind}`")
    most = {"width": asset.max_width, "height": asset.max_height, "pixels": asset.max_pixels}
    sizes = {"width": found.width, "height": found.height, "pixels": found.width * found.height}
    for name, limit in most.items():
        if limit and sizes[name] > limit:
            size = f"{found.width}x{found.height}"
            raise InputError(
                "invalid", f"the picture from `{wish.host}` has {size}, the limit of its {name} is {limit}"
            )
