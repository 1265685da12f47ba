"""Files that a loopback hub serves: from a folder or from memory, with the digests that hubs name them by."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from gen_worker.models.manifest import Algorithm

Files: TypeAlias = Path | Mapping[str, bytes]
"""What a repository is made of: a folder, whose files must not change, or contents by path."""

_CHUNK_BYTES = 1 << 20


class Content:
    """The bytes of one file."""

    def __init__(self, source: Path | bytes) -> None:
        self.source = source
        self.size = source.stat().st_size if isinstance(source, Path) else len(source)
        self._digests: dict[Algorithm, str] = {}

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` up to `stop`, at most 1 MiB at a time."""
        if isinstance(self.source, bytes):
            for at in range(start, stop, _CHUNK_BYTES):
                yield self.source[at : min(at + _CHUNK_BYTES, stop)]
            return
        with self.source.open("rb") as file:
            file.seek(start)
            while start < stop and (chunk := file.read(min(_CHUNK_BYTES, stop - start))):
                yield chunk
                start += len(chunk)

    def digest(self, algorithm: Algorithm) -> str:
        """Return the lower-case hex digest; worked out once."""
        if algorithm not in self._digests:
            hasher = _hasher(algorithm, self.size)
            for chunk in self.chunks(0, self.size):
                hasher.update(chunk)
            self._digests[algorithm] = hasher.hexdigest()
        return self._digests[algorithm]

    @property
    def etag(self) -> str:
        """What a store of files names this content by: the same for the same bytes."""
        return f'"{self._digests.get("sha256") or self.digest("blake3")}"'

    @cached_property
    def pointer(self) -> bytes:
        """What Git holds of this file where its content lies in LFS."""
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.digest('sha256')}\nsize {self.size}\n"
        return text.encode()


def contents(files: Files) -> dict[str, Content]:
    """Return each file by its path, sorted."""
    if isinstance(files, Mapping):
        return {path: Content(bytes(content)) for path, content in sorted(files.items())}
    if not files.is_dir():
        raise NotADirectoryError(f"a repository is made of a folder, and there is none at {files}")
    found = {
        Path(folder, name).relative_to(files).as_posix(): Path(folder, name)
        for folder, folders, names in os.walk(files, followlinks=True)
        for name in names
    }
    return {path: Content(source) for path, source in sorted(found.items())}


def tree_digest(files: Mapping[str, Content]) -> str:
    """Return what names a snapshot: blake3 over a line of path, size and blake3 for each file, by path."""
    from blake3 import blake3

    entries = sorted(files.items(), key=lambda entry: entry[0].encode())
    lines = "".join(f"{path}\t{content.size}\t{content.digest('blake3')}\n" for path, content in entries)
    return str(blake3(lines.encode()).hexdigest())


def _hasher(algorithm: Algorithm, size: int) -> "hashlib._Hash":
    if algorithm == "sha256":
        return hashlib.sha256()
    if algorithm == "git-sha1":
        return hashlib.sha1(b"blob %d\0" % size)
    if algorithm == "blake3":
        from blake3 import blake3

        return blake3()  # type: ignore[return-value] # it has the two methods that are used
    raise ValueError(f"no digest is made by the algorithm {algorithm!r}")
