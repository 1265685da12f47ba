"""A model that lies on disk, complete and verified."""

import os

import msgspec

from gen_worker.models.wanted import Wanted


class SnapshotEntry(msgspec.Struct, frozen=True):
    """One file of a snapshot."""

    path: str
    """Relative to the snapshot's folder, with `/`."""

    size: int


class Snapshot(msgspec.Struct, frozen=True):
    """A model that lies on disk, complete and verified. What it says stays true while its lease is held."""

    wanted: Wanted
    key: str
    """Names the content: the same for two wishes that came to the same files. Fit for a file's name."""

    commit: str
    path: str
    """The absolute folder, or of a Civitai model with one file that file; what is loaded from is `load_path`."""

    files: tuple[SnapshotEntry, ...]
    notes: tuple[str, ...] = ()

    @property
    def load_path(self) -> str:
        """The path that an author's `setup()` gets: the folder, or the `subfolder` of it that was asked for."""
        return f"{self.path}/{self.wanted.subfolder}" if self.wanted.subfolder else self.path

    def source(self, entry: SnapshotEntry) -> str:
        """The absolute path of one of its files."""
        return self.path if os.path.isfile(self.path) else f"{self.path}/{entry.path}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)
