"""A disk cache for tests: models that consist of a few bytes, put into it as a fetcher would."""

import hashlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from blake3 import blake3

from gen_worker.fetch.cache.store import Found, Store
from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.models.manifest import Manifest, ManifestFile
from gen_worker.models.selection import SelectionOptions
from gen_worker.models.wanted import Wanted

TINY = Wanted("hf", "acme/tiny")
_HEADER = b'{"w":{"dtype":"F16","shape":[2468],"data_offsets":[0,4936]}}'
_WEIGHTS = len(_HEADER).to_bytes(8, "little") + _HEADER
FILES = {"config.json": b'{"model_type": "tiny"}', "model.safetensors": _WEIGHTS + b"w" * 4936}


def commit_of(files: Mapping[str, bytes]) -> str:
    """Return a commit that only these files have."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


def manifest_of(wanted: Wanted, files: Mapping[str, bytes], *, digests: bool = True) -> Manifest:
    """Return what a provider would say of a repository with these files; an `hf` one lists them all."""
    described = tuple(_described(wanted, path, content, digests) for path, content in files.items())
    commit = wanted.digest or wanted.version or commit_of(files)
    return Manifest(wanted.ref, commit, described, listing=described if wanted.provider == "hf" else ())


def _described(wanted: Wanted, path: str, content: bytes, digests: bool) -> ManifestFile:
    if not digests:
        return ManifestFile(path)
    if wanted.provider != "hf":
        return ManifestFile(path, len(content), "blake3", blake3(content).hexdigest())
    if len(content) > 1000:
        digest = hashlib.sha256(content).hexdigest()
        return ManifestFile(path, len(content), "sha256", digest, etag=digest)
    digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return ManifestFile(path, len(content), "git-sha1", digest, etag=digest)


def store_in(
    root: Path,
    *,
    hub: Path | None = None,
    lower: tuple[Path, ...] = (),
    cache_bytes: int = 0,
    free_bytes: int = 0,
    stall_timeout_s: float = 60.0,
    selection: SelectionOptions | None = None,
) -> Store:
    """Return the store of a folder."""
    return Store(
        FetchConfig(
            root=str(root),
            hf_cache=str(hub or root / "hub"),
            lower=tuple(map(str, lower)),
            cache_bytes=cache_bytes,
            free_bytes=free_bytes,
            stall_timeout_s=stall_timeout_s,
            selection=selection or SelectionOptions(),
        )
    )


def put(store: Store, wanted: Wanted, files: Mapping[str, bytes] = FILES, *, digests: bool = True) -> Found:
    """Have a model in a cache as a fetcher does, and return it with its lease."""
    manifest = manifest_of(wanted, files, digests=digests)
    with store.plan(wanted, manifest) as plan:
        store.make_room(plan.missing_bytes, at=plan.place)
        for file, blob in plan.missing:
            with store.locked(blob, Cancel()):
                write(blob, files[file.path])
        return store.publish(wanted, manifest)


def put_and_leave(store: Store, wanted: Wanted, files: Mapping[str, bytes] = FILES, *, digests: bool = True) -> str:
    """Have a model in a cache that nobody uses, and return its key."""
    found = put(store, wanted, files, digests=digests)
    os.close(found.lease)
    return found.snapshot.key


def write(blob: Path, content: bytes) -> None:
    """Write a blob as a download does: visible when it is whole."""
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.part")
    part.write_bytes(content)
    os.replace(part, blob)


def content_of(found: Found) -> dict[str, bytes]:
    """Return what the files of a snapshot hold."""
    return {file.path: Path(found.snapshot.path, file.path).read_bytes() for file in found.snapshot.files}


def present(store: Store, wanted: Wanted) -> bool:
    """Whether a model is found."""
    found = store.find(wanted)
    if found is not None:
        os.close(found.lease)
    return found is not None


def files_below(folder: Path, *, but: Collection[str] = ("locks", ".locks", "plans")) -> list[str]:
    """Return the files below a folder, but for those in folders of these names."""
    found = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    relative = (path.relative_to(folder) for path in found)
    return sorted(str(path) for path in relative if not set(path.parts) & set(but))
