"""Make a revision of a repository out of files that a producer has saved.

What the platform has already is not sent again. A commit that fails is given up; one whose files the worker's network
side has forgotten, because that died meanwhile, is begun anew.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from gen_worker.api.errors import ArtifactTransferError, ValidationError, WorkerError
from gen_worker.api.platform import Platform
from gen_worker.api.types import Asset, Tensors
from gen_worker.outputs import safe_ref
from gen_worker.wire.platform import AbortCommit, BeginCommit, CommitFile, FinishCommit

TRIES = 3
_TAG_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
_TAG_LENGTH = 63
_PIECE_BYTES = 1 << 20

Artifact = str | Tensors | Asset
"""A file that was saved, by its ref or as what saving it returned."""


class Content(NamedTuple):
    """The bytes of one path of a revision."""

    blake3: str
    size_bytes: int
    fd: int = -1
    """A descriptor of theirs; -1: they lie on the platform alone."""


class SavedContents:
    """The contents of what one request saved, by ref; open until `close`, whatever becomes of their files' names."""

    def __init__(self) -> None:
        self._by_ref: dict[str, tuple[int, str]] = {}
        self._facts: dict[str, dict[str, Any]] = {}

    def keep(self, ref: str, fd: int, blake3: str, facts: Mapping[str, Any]) -> None:
        """Take a descriptor over; its digest may be "", and is found when it is needed."""
        self._let_go(ref)
        self._by_ref[ref] = (fd, blake3)
        self._facts[ref] = {name: value for name, value in facts.items() if value is not None}

    def of(self, ref: str) -> Content:
        """Return a content; raise `ValidationError` for a ref under which nothing was saved."""
        if ref not in self._by_ref:
            raise ValidationError(f"nothing was saved under `{ref}`: save it with `save_checkpoint` first")
        fd, blake3 = self._by_ref[ref]
        if not blake3:
            blake3 = _digest(fd)
            self._by_ref[ref] = (fd, blake3)
        return Content(blake3, os.fstat(fd).st_size, fd)

    def of_digest(self, blake3: str) -> Content | None:
        """Return a content by its digest; None for one that was not saved here."""
        return next((found for ref in self._by_ref if (found := self.of(ref)).blake3 == blake3), None)

    def facts(self, ref: str) -> dict[str, Any]:
        """Return what was said of a checkpoint when it was saved."""
        return self._facts.get(ref, {})

    def close(self) -> None:
        """Close all."""
        for ref in list(self._by_ref):
            self._let_go(ref)

    def _let_go(self, ref: str) -> None:
        known = self._by_ref.pop(ref, None)
        if known is not None:
            os.close(known[0])


def _digest(fd: int) -> str:
    from blake3 import blake3

    digest, at = blake3(), 0
    while piece := os.pread(fd, _PIECE_BYTES, at):
        digest.update(piece)
        at += len(piece)
    return digest.hexdigest()


def named_paths(artifacts: Mapping[str, Artifact] | Sequence[Artifact]) -> dict[str, str]:
    """Return the ref of each path of a revision: a mapping names the paths, in a sequence the refs are the paths."""
    if isinstance(artifacts, Mapping):
        return {safe_ref(path): _ref(artifact) for path, artifact in artifacts.items()}
    if isinstance(artifacts, str | bytes):
        raise ValidationError("`artifact_refs` is a list of refs, or a mapping of paths to refs")
    return {safe_ref(_ref(artifact)): _ref(artifact) for artifact in artifacts}


def _ref(artifact: Artifact) -> str:
    return artifact if isinstance(artifact, str) else artifact.ref


def listed(manifest: Sequence[Mapping[str, Any]]) -> dict[str, Content]:
    """Return the contents that a manifest `[{path, digest, size_bytes}]` names; they lie on the platform."""
    found: dict[str, Content] = {}
    for entry in manifest:
        algorithm, colon, digits = str(entry.get("digest") or entry.get("blake3") or "").rpartition(":")
        if (colon and algorithm != "blake3") or len(digits) != 64 or not entry.get("path"):
            raise ValidationError("each entry of `snapshot_manifest` has a `path`, a blake3 `digest` and `size_bytes`")
        found[safe_ref(str(entry["path"]))] = Content(digits.lower(), int(entry.get("size_bytes") or 0))
    return found


def checked_tags(tags: Sequence[str]) -> list[str]:
    """Return tags in lower case, each once, in order; raise `ValidationError` for one that is none."""
    found = {tag.strip().lower() for tag in tags if tag.strip()}
    for tag in found:
        if tag == "latest" or len(tag) > _TAG_LENGTH or not set(tag) <= _TAG_CHARS or not tag[0].isalnum():
            what = "is set by the platform" if tag == "latest" else f"has 1 to {_TAG_LENGTH} of `a-z0-9._-`"
            raise ValidationError(f"the tag `{tag[:100]}` cannot be given: a tag {what}")
    return sorted(found)


def publish(platform: Platform, repo: str, contents: Mapping[str, Content], document: Mapping[str, Any]) -> Any:
    """Commit the contents to `owner/name` and return the revision's id and what the platform said at the end."""
    operations = [
        {"type": "add", "path": path, "blake3": content.blake3, "size_bytes": content.size_bytes}
        for path, content in sorted(contents.items())
    ]
    tries = 0
    while True:
        try:
            return _commit(platform, repo, contents, {"operations": operations, **document})
        except ArtifactTransferError as error:
            tries += 1
            if not error.retryable or tries >= TRIES:
                raise


def _commit(platform: Platform, repo: str, contents: Mapping[str, Content], document: dict[str, Any]) -> Any:
    begun = platform.call(BeginCommit(repo=repo, document=document))
    try:
        for path in begun.missing:
            content = contents.get(path)
            if content is None or content.fd < 0:
                raise ValidationError(f"the platform has not the bytes of `{path}`, and they are not here either")
            part = CommitFile(repo=repo, revision_id=begun.revision_id, path=path, length=content.size_bytes)
            platform.call(part, content.fd)
        done = platform.call(FinishCommit(repo=repo, revision_id=begun.revision_id))
    except BaseException:
        with suppress(WorkerError):  # what went wrong before is what is told; the worker gives it up as well
            platform.call(AbortCommit(repo=repo, revision_id=begun.revision_id))
        raise
    return begun.revision_id, done.document


def open_content(local_path: str | Path) -> int:
    """Return a descriptor of a file's content, for reading."""
    return os.open(local_path, os.O_RDONLY | os.O_CLOEXEC)


def memory_content(data: bytes | bytearray) -> int:
    """Return a descriptor of a content in memory."""
    with os.fdopen(os.memfd_create("gen-worker-saved", os.MFD_CLOEXEC), "wb") as memory:
        memory.write(data)
        memory.flush()
        return os.dup(memory.fileno())
