"""What a provider says a model consists of: each file with its size, its digest and where its bytes are had."""

from typing import Literal, TypeAlias

import msgspec

Algorithm: TypeAlias = Literal["blake3", "sha256", "git-sha1", ""]
"""How a digest is made. `git-sha1` is that of a git blob: sha1 of `b"blob <size>\\0"` and the content."""


class ManifestFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """One file. `path` is relative, with `/`, and was checked by `gen_worker.models.paths`."""

    path: str
    size: int | None = None
    """Bytes; None where the provider does not say."""

    algorithm: Algorithm = ""
    digest: str = ""
    """Lower-case hex, checked to be of the algorithm's length; empty where the provider says none."""

    url: str = ""
    signed: bool = False
    """The URL carries its own permission and ends soon: no credentials go with it, and a 403 means that it is over."""

    etag: str = ""
    """What Hugging Face's cache calls the file's blob; hex only."""

    parts: tuple["ManifestFile", ...] = ()
    """What it is put together from, in order: files of their own, each with a size and a digest."""


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """All files of a model that are needed, at one commit."""

    ref: str
    commit: str
    """What never changes: a commit of `hf` and `modelscope`, a snapshot's digest, a Civitai version's id."""

    files: tuple[ManifestFile, ...]
    notes: tuple[str, ...] = ()
    """What people should know of the choice, as that fp32 weights were taken because there are no smaller ones."""

    listing: tuple[ManifestFile, ...] = ()
    """Of `hf`: all files of the repository, needed or not, which its libraries then know without a network."""

    @property
    def size(self) -> int:
        """Bytes, as far as the provider says."""
        return sum(file.size or 0 for file in self.files)
