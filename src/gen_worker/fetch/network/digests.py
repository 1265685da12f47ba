"""Digests of files as the providers make them."""

import hashlib
from typing import Protocol

from gen_worker.models.manifest import Algorithm

BLOCK_BYTES = 1 << 20  # blake3 is at its best from here on
POINTER = b"version https://git-lfs.github.com/spec/"
POINTER_BYTES = 1024  # no pointer is longer


class Digest(Protocol):
    """A digest in the making."""

    def update(self, content: memoryview, /) -> object:
        """Add some bytes."""

    def hexdigest(self) -> str:
        """Return what it comes to."""


def digest_of(algorithm: Algorithm, size: int) -> Digest:
    """Return the beginning of a digest of a file that is so long."""
    if algorithm == "blake3":
        from blake3 import blake3

        return blake3()
    if algorithm == "sha256":
        return hashlib.sha256()
    if algorithm == "git-sha1":
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    raise ValueError(f"no such algorithm: `{algorithm}`")
