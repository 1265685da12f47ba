"""Contents of the platform by digest, and repositories of it as models that can be fetched."""

import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlencode

import msgspec

from gen_worker.fetch.cache.layout import content_path
from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.fetcher import Fetched, Fetcher
from gen_worker.fetch.network.digests import digest_of
from gen_worker.fetch.network.origins import Url
from gen_worker.fetch.network.patience import HttpError
from gen_worker.fetch.network.transport import Transport, translated
from gen_worker.fetch.platform.api import Api, repo_route
from gen_worker.fetch.platform.failure import PlatformError, of_model
from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import Algorithm
from gen_worker.models.refs import RefError, parse_ref
from gen_worker.models.wanted import SnapshotFile, Wanted
from gen_worker.wire.platform import FetchRepo, Materialize, Materialized

_DIGEST = re.compile(r"(blake3|sha256):([0-9a-f]{64})", re.ASCII)
_PIECE_BYTES = 1 << 20
TRIES = 3


def materialize(api: Api, verb: Materialize, fd: int, transport: Transport, cancel: Cancel) -> Materialized:
    """Write a content into a file; what is not what its digest says is tried again, then refused."""
    algorithm, digits = _named(verb.digest)
    url = f"{api.base}/api/v1/blobs/{algorithm}:{digits}/content"
    failure = PlatformError("transfer", f"`{verb.digest}` was not had")
    for _ in range(TRIES):
        cancel.raise_if_set()
        try:
            size, found = _download(api, url, fd, algorithm, transport, cancel)
        except HttpError as error:
            raise _refused(api, verb.digest, error) from None
        except (OSError, HTTPException) as error:
            cancel.raise_if_set()
            failure = PlatformError("transfer", str(translated(error, Url(url))), retryable=True)
            continue
        if found == digits:
            return Materialized(size)
        failure = PlatformError("transfer", f"`{api.shown}` sent other bytes than `{verb.digest}`", retryable=True)
    raise failure


def materialize_here(roots: Iterable[str], verb: Materialize, fd: int, cancel: Cancel) -> Materialized | None:
    """Write a content of this machine's caches into a file, for jobs without a platform; None: none has it whole."""
    algorithm, digits = _named(verb.digest)
    for root in roots:
        with suppress(FileNotFoundError), open(content_path(Path(root), algorithm, digits), "rb") as blob:
            digest, at = digest_of(algorithm, 0), 0
            os.ftruncate(fd, 0)
            while piece := blob.read(_PIECE_BYTES):
                cancel.raise_if_set()
                digest.update(memoryview(piece))
                at = _write(fd, memoryview(piece), at)
            if digest.hexdigest() == digits:
                return Materialized(at)
    return None


def _named(digest: str) -> tuple[Algorithm, str]:
    """Return the algorithm and the digits of a digest."""
    named = _DIGEST.fullmatch(digest.lower())
    if named is None:
        raise PlatformError("invalid", f"`{digest[:100]}` is no digest: write `blake3:<64 hex digits>`")
    return ("sha256" if named[1] == "sha256" else "blake3"), named[2]


def _write(fd: int, view: memoryview, at: int) -> int:
    """Write all at a place and return where it ends."""
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written
    return at


def _download(
    api: Api, url: str, fd: int, algorithm: Algorithm, transport: Transport, cancel: Cancel
) -> tuple[int, str]:
    os.ftruncate(fd, 0)
    digest, at, buffer = digest_of(algorithm, 0), 0, memoryview(bytearray(_PIECE_BYTES))
    with transport.open(url, token=api.token, cancel=cancel) as response:
        while count := response.read_into(buffer):
            digest.update(buffer[:count])
            at = _write(fd, buffer[:count], at)
    return at, digest.hexdigest()


def _refused(api: Api, what: str, error: HttpError) -> PlatformError:
    if error.status in (401, 403):
        return PlatformError("auth", f"`{api.shown}` refuses the job's token ({error.status})", status=error.status)
    kind = "invalid" if error.status == 404 else "transfer"
    text = f"`{what}` is not on `{api.shown}`" if error.status == 404 else str(error)
    return PlatformError(kind, text, retryable=error.status >= 500, status=error.status)  # type: ignore[arg-type]


class _Tagged(msgspec.Struct):
    digest: str


class _File(msgspec.Struct):
    path: str
    url: str
    size_bytes: int
    blake3: str


class _Manifest(msgspec.Struct):
    files: list[_File] = []
    root_files: list[_File] = []


def fetch_repo(
    open_api: Callable[[], Api], verb: FetchRepo, fetcher: Fetcher, cancel: Cancel
) -> tuple[Wanted, Fetched]:
    """Have what a ref names on this machine; a repository of the platform is read with the job's own token."""
    try:
        wanted = parse_ref(verb.ref, tag="prod")
    except RefError as error:
        raise PlatformError("invalid", str(error)) from None
    try:
        if wanted.provider != "tensorhub":
            return wanted, fetcher.fetch(wanted, cancel=cancel)
        try:
            api = open_api()
        except PlatformError:
            return wanted, fetcher.fetch(wanted, cancel=cancel)  # from the hub that the worker knows
        wanted, files = _described(api, wanted, cancel)
        return wanted, fetcher.fetch(wanted, cancel=cancel, snapshot=files)
    except ModelError as error:
        raise of_model(error) from None


def _described(api: Api, wanted: Wanted, cancel: Cancel) -> tuple[Wanted, list[SnapshotFile]]:
    route = repo_route(wanted.repo)
    if not wanted.digest:
        asked = {"tag": wanted.tag or "prod"} | ({"flavor": wanted.flavor} if wanted.flavor else {})
        reply = api.ask("GET", f"{route}/resolve?{urlencode(asked)}", cancel=cancel)
        wanted = msgspec.structs.replace(wanted, digest=api.read(reply, _Tagged).digest)
    reply = api.ask("GET", f"{route}/snapshots/{wanted.digest}/manifest", cancel=cancel)
    manifest = api.read(reply, _Manifest)
    found = (*manifest.root_files, *manifest.files)
    return wanted, [SnapshotFile(file.path, file.size_bytes, file.blake3, file.url) for file in found]
