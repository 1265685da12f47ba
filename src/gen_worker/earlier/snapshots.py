"""Snapshots of the platform's hub in the folders that programs of the earlier generation read.

Below a folder: `cozy/objects/<digest>/`, the files of an object and `.cozy-object.json`; `cozy/snapshots/<digest>/`,
the files in a snapshot's root, links to those of its objects, and `.cozy-resolved.json`. Each is made beside its place,
as `<digest>.downloading` and `<digest>.building`, and appears whole; what a failure leaves there is gone on from.
Digests are lower-case hex. Any number of processes may use one folder.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from gen_worker.fetch.cache import locks
from gen_worker.fetch.cache.ledger import flush_folder, replace
from gen_worker.fetch.cache.linking import link_or_copy
from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.network.download import download
from gen_worker.fetch.network.links import Fresh
from gen_worker.fetch.network.patience import Patience
from gen_worker.fetch.network.transport import Transport
from gen_worker.fetch.sources.tensorhub import Composition, Hub, blake3_tree_hash, digits_of
from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import ManifestFile
from gen_worker.models.paths import check_paths
from gen_worker.models.wanted import Wanted

OBJECT, RESOLVED = ".cozy-object.json", ".cozy-resolved.json"
PATIENCE = Patience(tries=4)
_Listing: TypeAlias = Callable[[Hub], Mapping[str, ManifestFile]]


def have_snapshot(wanted: Wanted, below: Path, config: FetchConfig, patience: Patience = PATIENCE) -> Path:
    """Have a snapshot below a folder, whole and verified, and return its own; raise `ModelError`.

    One that is there is not asked for again; what a tag stands for now always is.
    """
    folders = _Folders(below / "cozy")
    if wanted.digest and (there := folders.snapshot(wanted.digest)) is not None:
        return there
    with Transport(config, patience) as transport:
        hub = Hub.of(wanted, config, transport, Cancel())
        return _Fetch(wanted, hub, transport, config, patience, folders).have(wanted.digest or hub.tagged())


class _Folders:
    """Where objects and snapshots lie."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def snapshot(self, digest: str) -> Path | None:
        """Return the folder of a snapshot that is there."""
        folder = self.place("snapshots", digest)
        return folder if (folder / RESOLVED).is_file() else None

    def place(self, kind: str, digest: str) -> Path:
        """Return where an object or a snapshot belongs."""
        return self._root / kind / digits_of(digest)

    @contextmanager
    def made(self, place: Path, suffix: str, mark: str) -> Iterator[Path | None]:
        """Yield the folder to make something in, which takes its place after the block; None where it is there."""
        with locks.locked(self._root / ".locks" / f"{place.parent.name}-{place.name}"):
            if (place / mark).is_file():
                yield None
                return
            draft = place.with_name(f"{place.name}{suffix}")
            draft.mkdir(parents=True, exist_ok=True)
            yield draft
            if place.exists():  # without its mark: somebody else's, and not whole
                shutil.rmtree(place)
            os.rename(draft, place)
            flush_folder(place.parent)


class _Fetch:
    """One model on its way."""

    def __init__(
        self,
        wanted: Wanted,
        hub: Hub,
        transport: Transport,
        config: FetchConfig,
        patience: Patience,
        folders: _Folders,
    ) -> None:
        self._wanted = wanted
        self._hub = hub
        self._transport = transport
        self._config = config
        self._patience = patience
        self._folders = folders

    def have(self, digest: str) -> Path:
        """Return the folder of a snapshot, and make it where it is not there."""
        if (there := self._folders.snapshot(digest)) is not None:
            return there
        composition = self._hub.composition(digest)
        objects = {name: self._object(its) for name, its in composition.objects.items()}
        place = self._folders.place("snapshots", digest)
        with self._folders.made(place, ".building", RESOLVED) as draft:
            if draft is not None:
                self._build(draft, digest, composition, objects)
        return place

    def _object(self, digest: str) -> Path:
        """Return the folder of an object, and fetch it where it is not there."""
        place = self._folders.place("objects", digest)
        with self._folders.made(place, ".downloading", OBJECT) as draft:
            if draft is not None:
                files = self._hub.object(digest)
                check_paths((*files, OBJECT))
                self._download(files, draft, lambda hub: hub.object(digest))
                _keep_only(draft, files)
                _write(draft / OBJECT, {"digest": digest, "tree": blake3_tree_hash(files.values()), **_listed(files)})
        return place

    def _build(self, draft: Path, digest: str, composition: Composition, objects: Mapping[str, Path]) -> None:
        linked = {
            f"{name}/{path.relative_to(folder).as_posix()}": path
            for name, folder in objects.items()
            for path in _files_below(folder)
            if path != folder / OBJECT
        }
        paths = check_paths((*composition.root, *linked, RESOLVED))
        if len(paths) == 1:
            raise ModelError("no_weights", f"`{self._wanted.ref}` has no files", "", ref=self._wanted.ref)
        self._download(composition.root, draft, lambda hub: hub.composition(digest).root)
        _keep_only(draft, composition.root)
        for path, source in linked.items():
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(source, os.path.relpath(source, (draft / path).parent), draft / path)
        resolved = {"repo": self._wanted.repo, "tag": self._wanted.tag, "snapshot_digest": digest}
        _write(draft / RESOLVED, {**resolved, "objects": dict(composition.objects), **_listed(composition.root)})

    def _download(self, files: Mapping[str, ManifestFile], folder: Path, listed: _Listing) -> None:
        """Have files lie in a folder; the first that fails ends the others."""
        cancel = Cancel()

        def fresh(file: ManifestFile, cancel: Cancel) -> ManifestFile:
            return listed(self._hub.until(cancel)).get(file.path, file)

        with ThreadPoolExecutor(self._config.files_at_once, "gen-worker-file") as threads:
            try:
                coming = [
                    threads.submit(self._file, file, folder / path, fresh, cancel) for path, file in files.items()
                ]
                for each in as_completed(coming):
                    each.result()
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                cancel.set()
                raise

    def _file(self, file: ManifestFile, to: Path, fresh: Fresh, cancel: Cancel) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        download(
            file,
            to,
            ref=self._wanted.ref,
            transport=self._transport,
            fresh=fresh,
            on_bytes=lambda count: None,
            on_retry=lambda: None,
            cancel=cancel,
            stall_timeout_s=self._config.stall_timeout_s,
            patience=self._patience,
        )


def _keep_only(folder: Path, files: Iterable[str]) -> None:
    """Remove what an earlier try left that is no file of this."""
    known = {folder / path for path in files}
    for path in _files_below(folder):
        if path not in known:
            path.unlink()


def _files_below(folder: Path) -> list[Path]:
    return [Path(each, name) for each, _, names in os.walk(folder) for name in sorted(names)]


def _listed(files: Mapping[str, ManifestFile]) -> dict[str, Any]:
    """Return what may stay of a listing: its URLs are signed."""
    return {"files": [{"path": path, "size_bytes": its.size, "blake3": its.digest} for path, its in files.items()]}


def _write(path: Path, document: dict[str, Any]) -> None:
    replace(path, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
