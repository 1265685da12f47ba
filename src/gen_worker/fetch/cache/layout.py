"""Where in a cache each thing lies. Pure: names paths and looks at none.

A cache has two parts. `hub` is in Hugging Face's own layout, so that its libraries read it; everything else is in
`cas`, where bytes are named by their digest.
"""

import os
import re
from pathlib import Path

import msgspec

from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import Manifest, ManifestFile
from gen_worker.models.paths import check_paths
from gen_worker.models.snapshot import Snapshot, SnapshotEntry
from gen_worker.models.wanted import Provider, Wanted

_COMMIT = re.compile("[0-9a-f]{40,64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGITS = {"blake3": 64, "sha256": 64, "git-sha1": 40}


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a snapshot consists of; written once beside it, and true for as long as it is there."""

    key: str
    provider: Provider
    repo: str
    commit: str
    wanted: Wanted
    """The wish that it was made for first."""

    files: tuple[ManifestFile, ...]
    """With their sizes; without what they were fetched by."""

    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, wanted: Wanted, manifest: Manifest) -> "Record":
        """Return what is to be recorded of a manifest."""
        files = tuple(_lasting(file) for file in manifest.files)
        commit = plain_commit(manifest.commit)
        key = content_key(wanted.provider, wanted.repo, commit, [file.path for file in files])
        return cls(key, wanted.provider, wanted.repo, commit, wanted, files, manifest.notes)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size or 0 for file in self.files)


class Layout(msgspec.Struct, frozen=True):
    """One cache: its root, and the folder of it that is in Hugging Face's layout."""

    root: Path
    hub: Path

    @property
    def cas(self) -> Path:
        """The folder of everything that is not in Hugging Face's layout."""
        return self.root / "cas"

    @property
    def ledger(self) -> Path:
        """The file that says which wish came to which snapshot, and when it was used last."""
        return self.cas / "ref-index.json"

    @property
    def locks(self) -> Path:
        """The folder of the lock files, but for those that Hugging Face's libraries share."""
        return self.cas / "locks"

    @property
    def records(self) -> Path:
        """The folder of what each snapshot consists of."""
        return self.cas / "manifests"

    @property
    def plans(self) -> Path:
        """The folder of what is about to be published: each plan is locked by who follows it."""
        return self.cas / "plans"

    @property
    def derived(self) -> Path:
        """The folder of snapshots that were cast to another dtype."""
        return self.cas / "derived"

    def record(self, key: str) -> Path:
        """Return the file of a record."""
        return self.records / f"{_name(key)}.json"

    def repository(self, repo: str) -> Path:
        """Return the folder of a repository in Hugging Face's layout."""
        return self.hub / f"models--{'--'.join(_parts(repo))}"

    def ref(self, wanted: Wanted) -> Path | None:
        """Return the file that says what commit a branch or tag of Hugging Face means; None where none is meant."""
        revision = wanted.revision or "main"
        if wanted.provider != "hf" or is_commit(revision):
            return None
        return self.repository(wanted.repo).joinpath("refs", *(_name(part) for part in revision.split("/")))

    def snapshot(self, record: Record) -> Path:
        """Return the folder that a snapshot's files lie in."""
        match record.provider:
            case "hf":
                return self.repository(record.repo) / "snapshots" / hex_commit(record.commit)
            case "tensorhub":
                return self.cas / "snapshots" / hex_commit(record.commit)
            case "civitai":
                return self.cas / "civitai" / _name(record.commit)
            case "modelscope":
                return self.cas.joinpath("modelscope", *_parts(record.repo), _name(record.commit))

    def check(self, record: Record) -> None:
        """Raise `ModelError` when anything of a record would lie outside the cache."""
        check_paths(file.path for file in record.files)
        self.record(record.key)
        self.snapshot(record)
        self.ref(record.wanted)
        for file in record.files:
            self.blob(record, file)

    def building(self, record: Record) -> Path:
        """Return the folder in which a snapshot's folder is made; links that are relative hold in both."""
        folder = self.snapshot(record)
        if record.provider == "hf":
            return folder.parent.with_name("building") / folder.name
        return folder.with_name(f"{folder.name}.building")

    def draft(self, record: Record) -> Path:
        """Return where a file or link of a snapshot is made before it gets its name."""
        return self.building(record).parent / f".draft-{os.getpid()}"

    def blob(self, record: Record, file: ManifestFile) -> Path:
        """Return where the bytes of a file lie."""
        if record.provider == "hf":
            return self.repository(record.repo) / "blobs" / hex_commit(file.etag or file.digest)
        if file.algorithm:
            if len(file.digest) != _DIGITS[file.algorithm] or not _COMMIT.fullmatch(file.digest):
                raise ModelError("bad_manifest", f"`{file.path}` has an impossible digest: `{file.digest[:80]}`")
            return self._blob(file.algorithm, file.digest)
        if file.parts:
            return self._blob("joined", _mark(*(part.digest for part in file.parts)))
        return self._blob("unnamed", _mark(record.provider, record.repo, record.commit, file.path))

    def _blob(self, kind: str, name: str) -> Path:
        return content_path(self.root, kind, name)

    def lease(self, record: Record) -> Path:
        """Return the file that is locked by whoever uses a snapshot."""
        if record.provider == "hf":  # of the folder itself, as caches of other roots may have other files of it
            return self.hub / ".locks" / self.repository(record.repo).name / f"{hex_commit(record.commit)}.lease"
        return self.locks / f"{_name(record.key)}.lease"

    def linking(self, record: Record) -> Path:
        """Return the file that is locked by whoever changes the snapshots of a repository in Hugging Face's layout."""
        return self.hub / ".locks" / self.repository(record.repo).name / "snapshots.lock"

    def blob_lock(self, blob: Path) -> Path:
        """Return the file that is locked by whoever writes a blob; Hugging Face's libraries lock the same ones."""
        if blob.is_relative_to(self.hub):
            return self.hub / ".locks" / blob.parent.parent.name / f"{blob.name}.lock"
        return self.locks / f"{blob.name}.lock"

    def described(self, record: Record, wanted: Wanted) -> Snapshot:
        """Return the snapshot of a record, as somebody who wants it sees it."""
        folder = self.snapshot(record)
        alone = record.provider == "civitai" and len(record.files) == 1
        files = tuple(SnapshotEntry(file.path, file.size or 0) for file in record.files)
        path = folder / record.files[0].path if alone else folder
        return Snapshot(wanted, record.key, record.commit, str(path), files, record.notes)


def _lasting(file: ManifestFile) -> ManifestFile:
    """Return a file without what it is fetched by."""
    parts = tuple(map(_lasting, file.parts))
    return ManifestFile(file.path, file.size, file.algorithm, file.digest, etag=file.etag, parts=parts)


def content_path(root: Path, kind: str, name: str) -> Path:
    """Return where the bytes of a name, as of a digest of the kind `blake3`, lie in the cache at `root`."""
    return root / "cas" / "blobs" / kind / name[:2] / name[2:4] / name


def content_key(provider: str, repo: str, commit: str, paths: list[str]) -> str:
    """Return what names these files of a repository at a commit; fit for a file's name."""
    name = "".join(each if (each.isalnum() and each.isascii()) or each in "._-" else "-" for each in repo)[:60]
    return f"{provider}-{name}-{commit[:12]}-{_mark(provider, repo, commit, *sorted(paths))[:16]}"


def plain_commit(commit: str) -> str:
    """Return a commit without the name of the algorithm that a snapshot's digest may begin with."""
    return commit.removeprefix("blake3:").removeprefix("sha256:")


def hex_commit(text: str) -> str:
    """Return a commit or digest; raise `ModelError` when it is none and so cannot be a file's name."""
    if not _COMMIT.fullmatch(text):
        raise ModelError("bad_manifest", f"a digest or commit was expected, not `{text[:80]}`")
    return text


def is_commit(text: str) -> bool:
    """Whether a revision can only be a commit, which never comes to mean other files."""
    return _COMMIT.fullmatch(text) is not None


def _parts(repo: str) -> tuple[str, ...]:
    parts = repo.split("/")
    if len(parts) > 2:
        raise ModelError("bad_manifest", f"a repository has one `/` at most: `{repo[:80]}`")
    return tuple(_name(part) for part in parts)


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ModelError("bad_manifest", f"`{text[:80]}` cannot be a file's name")
    return text


def _mark(*parts: str) -> str:
    import hashlib  # only who fetches needs it

    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()
