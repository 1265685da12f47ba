"""Folders of models that workers fetch from here: each under a ref, described with signed URLs."""

import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from time import time
from typing import Any, NamedTuple

from blake3 import blake3

from gen_worker.models.errors import ModelError
from gen_worker.models.paths import check_paths
from gen_worker.models.wanted import SnapshotFile
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.signing import Signer
from gen_worker.wire.scheduler import Snapshot

URL_S = 6 * 3600.0  # a large model takes that long over a slow line
_PIECE_BYTES = 1 << 20
_SCHEMA = """
CREATE TABLE IF NOT EXISTS hashed (path TEXT PRIMARY KEY, size INTEGER, changed INTEGER, blake3 TEXT) WITHOUT ROWID;
"""


class ModelFolderError(Exception):
    """A folder cannot be offered as a model."""


class ModelFile(NamedTuple):
    """One file of a model: where it lies, and what it was when it was read."""

    place: Path
    size_bytes: int
    changed_ns: int
    blake3: str


class Model(NamedTuple):
    """A folder as it was read."""

    ref: str
    digest: str
    """Names the whole: `blake3:<hex>`, the same for the same paths and contents."""

    files: Mapping[str, ModelFile]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files.values())


class OfferedModels:
    """What is offered. Reading blocks for as long as the disk takes; the rest returns at once."""

    def __init__(
        self, signer: Signer, memory: Path | None = None, *, base_url: str = "", clock: Callable[[], float] = time
    ) -> None:
        self.base_url = base_url
        self._signer = signer
        self._clock = clock
        self._memory = sqlite3.connect(memory or ":memory:", check_same_thread=False, isolation_level=None)
        self._memory.executescript(_SCHEMA)
        self._turn = threading.Lock()  # whoever closes it has it while nobody asks it
        self._closed = False
        self._by_ref: dict[str, Model] = {}
        self._by_digest: dict[str, Model] = {}

    def close(self) -> None:
        """Close the memory of what was read before, and stop reading."""
        self._closed = True
        with self._turn:
            self._memory.close()

    def add(self, ref: str, folder: Path) -> Model:
        """Read a folder and offer it under a ref; raise `ModelFolderError`.

        A file that has not changed since it was read before is not read again. Call it in one thread at a time.
        """
        files = {path: self._read(place) for path, place in _places(folder).items()}
        rest = {path: f"\t{file.size_bytes}\t{file.blake3}\n".encode() for path, file in files.items()}
        lines = sorted((path.encode(), line) for path, line in rest.items())
        digest = f"blake3:{blake3(b''.join(path + line for path, line in lines)).hexdigest()}"
        model = Model(ref, digest, files)
        self._by_ref[ref] = self._by_digest[digest] = model
        return model

    def all(self) -> list[Model]:
        """Return what is offered, by ref."""
        return [model for _, model in sorted(self._by_ref.items())]

    def snapshot(self, ref: str) -> Snapshot | None:
        """Describe a model with URLs that are good for `URL_S`; None for one that is not offered."""
        model = self._by_ref.get(ref)
        return None if model is None else self._described(model)

    def by_digest(self, digest: str) -> Snapshot | None:
        """Describe a model by what names the whole of it, as `snapshot`."""
        model = self._by_digest.get(digest)
        return None if model is None else self._described(model)

    def _described(self, model: Model) -> Snapshot:
        expires = int(self._clock() + URL_S)

        def url(path: str) -> str:
            whole = f"/v1/models/{model.digest.removeprefix('blake3:')}/{path}"
            return self.base_url + self._signer.sign("GET", whole, expires)

        files = (SnapshotFile(path, file.size_bytes, file.blake3, url(path)) for path, file in model.files.items())
        return Snapshot(digest=model.digest, files=tuple(files))

    def open(self, digest: str, path: str) -> tuple[int, ModelFile]:
        """Return a descriptor of a model's file; raise `Refusal` where it is not what was read any more."""
        model = self._by_digest.get(f"blake3:{digest}")
        file = model.files.get(path) if model is not None else None
        if file is None:
            raise Refusal(404, "not_found", "there is no such file of a model")
        try:
            descriptor = os.open(file.place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise Refusal(404, "not_found", f"`{path}` cannot be read: {(error.strerror or '').lower()}") from None
        found = os.fstat(descriptor)
        if (found.st_size, found.st_mtime_ns) != (file.size_bytes, file.changed_ns):
            os.close(descriptor)
            raise Refusal(404, "changed", f"`{path}` has changed since its model was offered")
        return descriptor, file

    def _read(self, place: Path) -> ModelFile:
        descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            key = (str(place), found.st_size, found.st_mtime_ns)
            known = self._asked("SELECT blake3 FROM hashed WHERE path = ? AND size = ? AND changed = ?", *key)
            digest = known[0][0] if known else self._digest(descriptor)
        finally:
            os.close(descriptor)
        if not known:
            self._asked("INSERT OR REPLACE INTO hashed VALUES (?, ?, ?, ?)", *key, digest)
        return ModelFile(place, found.st_size, found.st_mtime_ns, digest)

    def _asked(self, question: str, *values: str | int) -> list[Any]:
        with self._turn:
            if self._closed:
                raise ModelFolderError("it was not read to the end")
            return self._memory.execute(question, values).fetchall()

    def _digest(self, descriptor: int) -> str:
        hasher = blake3()
        while piece := os.read(descriptor, _PIECE_BYTES):
            if self._closed:
                raise ModelFolderError("it was not read to the end")
            hasher.update(piece)
        return hasher.hexdigest()


def _places(folder: Path) -> dict[str, Path]:
    """Return where the files of a folder are, by their paths in it; hidden ones are none of a model's.

    A link counts for the file that it leads to, as in the cache of Hugging Face, if that is not elsewhere.
    """
    if not folder.is_dir():
        raise ModelFolderError(f"`{folder}` is no folder")
    root = folder.resolve()
    inside = root.parents[1] if root.parent.name == "snapshots" else root
    found: dict[str, Path] = {}
    for here, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                place = Path(here, name)
                path = place.relative_to(root).as_posix()
                found[path] = _real(place, path, folder, inside)
    if not found:
        raise ModelFolderError(f"`{folder}` has no files")
    try:
        check_paths(found)
    except ModelError as error:
        raise ModelFolderError(str(error)) from None
    return found


def _real(place: Path, path: str, folder: Path, inside: Path) -> Path:
    real = place.resolve()
    if not real.is_relative_to(inside):
        raise ModelFolderError(f"`{path}` in `{folder}` is a link to what lies elsewhere: `{real}`")
    if not real.exists() or not stat.S_ISREG(real.stat().st_mode):
        raise ModelFolderError(f"`{path}` in `{folder}` is no file")
    return real
