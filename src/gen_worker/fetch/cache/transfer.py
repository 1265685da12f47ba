"""Carry models to a host without a network: a plain tar with their files and a manifest of what each must be.

The manifest is the first member. A file's member is named by its digest, and there once however many models have it.
What is read back is believed in nothing: names, sizes and digests are checked, and no model is visible before all are.
"""

import io
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from gen_worker.fetch.cache.ledger import UNREADABLE, flush_folder
from gen_worker.fetch.cache.linking import hub_listing
from gen_worker.fetch.cache.store import Found, Listed, Plan, Store
from gen_worker.fetch.cache.verification import digest
from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.network.digests import digest_of
from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import Algorithm, Manifest, ManifestFile
from gen_worker.models.paths import check_digest, check_paths
from gen_worker.models.wanted import Wanted

MANIFEST = "gen-worker-models.json"
_FORMAT = 1
_MANIFEST_LIMIT = 64 << 20
_CHUNK = 4 << 20
OnBytes = Callable[[int], None]


class _Member(msgspec.Struct, frozen=True):
    algorithm: Algorithm
    digest: str
    size: int

    @property
    def name(self) -> str:
        return f"files/{self.algorithm}-{self.digest}"


class _Model(msgspec.Struct, frozen=True):
    wishes: tuple[Wanted, ...]
    commit: str
    files: tuple[ManifestFile, ...]
    members: tuple[_Member, ...]
    """One for each of `files`: the file's own digest, or where it has none, the one that it was packed with."""

    notes: tuple[str, ...] = ()
    listing: tuple[ManifestFile, ...] = ()

    def manifest(self) -> Manifest:
        return Manifest(self.wishes[0].ref, self.commit, self.files, self.notes, self.listing)


class _Document(msgspec.Struct, frozen=True):
    format: int
    models: tuple[_Model, ...]


# --- out --------------------------------------------------------------------------------------------------------------


def pack(store: Store, listed: Sequence[Listed], target: Path, on_bytes: OnBytes) -> int:
    """Write models into a tar and return its bytes; an older file of the name is replaced when it is complete.

    What is no regular file, as `/dev/stdout` or a pipe, is written into as it is.
    """
    if is_stream(target):
        with _naming(target), open(target, "wb") as out:
            with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                _fill(archive, store, listed, on_bytes)
            return archive.offset
    target = target.resolve()
    draft = target.with_name(f".{target.name}.part")
    try:
        with _naming(target, draft):
            with open(draft, "wb") as out, tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
                _fill(archive, store, listed, on_bytes)
            os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return target.stat().st_size


def is_stream(target: Path) -> bool:
    """Whether a path names a device, a pipe or an open file of this process, which nothing may take the place of."""
    named = target.is_symlink() and target.is_relative_to("/dev")
    return named or (target.exists() and not target.is_file() and not target.is_dir())


@contextmanager
def _naming(target: Path, draft: Path | None = None) -> Iterator[None]:
    """Have what a disk refuses inside this block name the file that a person asked for."""
    try:
        yield
    except OSError as error:
        if error.filename not in (None, str(draft)):
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error


def _fill(archive: tarfile.TarFile, store: Store, listed: Sequence[Listed], on_bytes: OnBytes) -> None:
    sources: dict[str, Path] = {}
    models = []
    for each in listed:
        folder = each.layout.snapshot(each.record)
        members = tuple(_member(folder / file.path, file) for file in each.record.files)
        sources |= {member.name: folder / file.path for member, file in zip(members, each.record.files, strict=True)}
        listing = hub_listing(each.layout, each.record)
        record = each.record
        models.append(_Model(store.wishes(each), record.commit, record.files, members, record.notes, listing))
    document = msgspec.json.encode(_Document(_FORMAT, tuple(models)))
    archive.addfile(_described(MANIFEST, len(document)), io.BytesIO(document))
    for name, path in sources.items():
        with open(path, "rb", buffering=0) as source:
            archive.addfile(_described(name, os.fstat(source.fileno()).st_size), _Counted(source, on_bytes))


def _member(path: Path, file: ManifestFile) -> _Member:
    size = path.stat().st_size
    if file.algorithm:
        return _Member(file.algorithm, file.digest, size)
    return _Member("blake3", digest(path, "blake3"), size)


def _described(name: str, size: int) -> tarfile.TarInfo:
    described = tarfile.TarInfo(name)
    described.size, described.mode = size, 0o644
    return described


class _Counted(io.RawIOBase):
    """A file that tells how much is read of it."""

    def __init__(self, source: IO[bytes], on_bytes: OnBytes) -> None:
        self._source = source
        self._on_bytes = on_bytes

    def read(self, size: int = -1) -> bytes:
        content = self._source.read(size)
        self._on_bytes(len(content))
        return content


# --- in ---------------------------------------------------------------------------------------------------------------


class _Incoming(NamedTuple):
    """A wish for a model whose files are being read, and the plan that keeps from eviction what is there of it."""

    model: _Model
    wanted: Wanted
    plan: Plan

    def missing(self) -> dict[Path, _Member]:
        """Return where its missing files go, and what they must be."""
        by_path = {file.path: member for file, member in zip(self.model.files, self.model.members, strict=True)}
        return {blob: by_path[file.path] for file, blob in self.plan.missing}


def unpack(store: Store, source: Path, on_bytes: OnBytes) -> list[Found]:
    """Have the models of a tar in the cache, and return them with their leases; raise `ModelError` for a bad one.

    Nothing of it is visible before everything was checked. Begun again, it goes on with the file that it was at.
    """
    try:
        with open(source, "rb") as raw, tarfile.open(fileobj=raw, mode="r|") as archive:
            return _read(archive, store, on_bytes)
    except (tarfile.TarError, EOFError) as error:
        raise ModelError("bad_manifest", f"it is no tar, or it is cut short: {error}", _HINT) from None


_HINT = "write it again with `gen-worker cache export`"


def _read(archive: tarfile.TarFile, store: Store, on_bytes: OnBytes) -> list[Found]:
    models = _models(archive)
    with ExitStack() as plans:
        incoming = [
            _Incoming(model, wanted, plans.enter_context(store.plan(wanted, model.manifest())))
            for model in models
            for wanted in model.wishes
        ]
        needed = {path: member for each in incoming for path, member in each.missing().items()}
        if needed:
            store.make_room(sum(member.size for member in needed.values()), at=incoming[0].plan.place)
        _take(archive, store, needed, {member.name: member for each in models for member in each.members}, on_bytes)
        return _published(store, incoming)


def _published(store: Store, incoming: Sequence[_Incoming]) -> list[Found]:
    found: list[Found] = []
    try:
        for each in incoming:
            found.append(store.publish(each.wanted, each.model.manifest()))
    except BaseException:
        for earlier in found:
            os.close(earlier.lease)
        raise
    return found


def _models(archive: tarfile.TarFile) -> tuple[_Model, ...]:
    """Return what a tar says that it holds, as far as it can be believed at all."""
    first = archive.next()
    content = archive.extractfile(first) if first is not None and first.isreg() else None
    if first is None or content is None or first.name != MANIFEST or first.size > _MANIFEST_LIMIT:
        raise _bad(f"its first member is not `{MANIFEST}`")
    try:
        document = msgspec.json.decode(content.read(), type=_Document)
    except UNREADABLE as error:
        raise _bad(f"`{MANIFEST}` cannot be read: {error}") from None
    if document.format != _FORMAT:
        raise _bad(f"its format is {document.format}, this program reads {_FORMAT}")
    for model in document.models:
        _check(model)
    return document.models


def _check(model: _Model) -> None:
    if not model.wishes or not model.files or len(model.files) != len(model.members):
        raise _bad("a model in it has no files, or no name")
    if len({(wanted.provider, wanted.repo) for wanted in model.wishes}) > 1:
        raise _bad("a model in it comes from several repositories")
    check_paths(file.path for file in model.files)
    check_paths(file.path for file in model.listing)
    for file, member in zip(model.files, model.members, strict=True):
        check_digest(member.algorithm, member.digest)
        if not member.algorithm or member.size < 0 or file.size not in (None, member.size):
            raise _bad(f"the size or digest of `{file.path}` is impossible")
        if file.algorithm and (file.algorithm, file.digest) != (member.algorithm, member.digest):
            raise _bad(f"`{file.path}` has two digests")
        if file.etag and file.etag != (file.digest or member.digest):  # blobs are named by it
            raise _bad(f"`{file.path}` has two digests")


def _take(
    archive: tarfile.TarFile,
    store: Store,
    needed: dict[Path, _Member],
    known: dict[str, _Member],
    on_bytes: OnBytes,
) -> None:
    """Read all members and put those that are missing where they belong."""
    unread = set(known)
    while (found := archive.next()) is not None:
        if found.name not in unread or not found.isreg() or found.size != known[found.name].size:
            raise _bad(f"it holds `{found.name[:80]}`, which is not what `{MANIFEST}` says")
        unread.discard(found.name)
        content = archive.extractfile(found)
        assert content is not None  # of a regular file
        _place(store, content, known[found.name], [path for path in needed if needed[path].name == found.name])
        on_bytes(found.size)
    if any(member.name in unread for member in needed.values()):
        raise _bad(f"it lacks `{sorted(unread)[0]}`")


def _place(store: Store, content: IO[bytes], member: _Member, blobs: Sequence[Path]) -> None:
    """Write a member to each of these blobs, unless somebody else has; raise `ModelError` for a wrong digest."""
    if not blobs:
        return
    first, *others = blobs
    with store.locked(first, Cancel()):
        if not first.exists():
            _write(content, member, first)
    for other in others:
        with store.locked(other, Cancel()), suppress(FileExistsError), open(first, "rb") as copied:
            _write(copied, member, other)


def _write(content: IO[bytes], member: _Member, blob: Path) -> None:
    draft = blob.with_name(f"{blob.name}.incomplete")
    blob.parent.mkdir(parents=True, exist_ok=True)
    made = digest_of(member.algorithm, member.size)
    assert made is not None  # members without one were refused
    try:
        with open(draft, "wb") as out:
            while piece := content.read(_CHUNK):
                made.update(memoryview(piece))
                out.write(piece)
            out.flush()
            os.fsync(out.fileno())
        if made.hexdigest() != member.digest:
            raise ModelError(
                "digest_mismatch", f"`{member.name}` in it is {member.algorithm} {made.hexdigest()}", _HINT
            )
        os.replace(draft, blob)
        flush_folder(blob.parent)
    finally:
        draft.unlink(missing_ok=True)


def _bad(what: str) -> ModelError:
    return ModelError("bad_manifest", f"this is no export of models: {what}", _HINT)
