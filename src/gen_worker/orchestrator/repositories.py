"""Repositories of models, and data sets: their revisions, tags and metadata, in a small database beside the files.

The contents lie in the file store, where each revision is a holder of names. Every method blocks for as long as the
disk takes, and may be called from any thread; `snapshot` and `published` only look into memory. Knows nothing of HTTP.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import time
from typing import Any, NamedTuple

import msgspec
from blake3 import blake3

from gen_worker.models.refs import RefError, parse_ref
from gen_worker.orchestrator.files import FileStore, StoredFile, Upload
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.signing import JobClaims

DEFAULT_TAG, NEWEST_TAG = "prod", "latest"
HELD = -1  # the attempt under which the files of revisions and data sets are kept: jobs count theirs from 1
FILES = 10_000  # of one revision
OPEN_S = 24 * 3600.0  # after so long an unfinished commit is given up
_TAG_LENGTH = 63
_TAG_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS repos (
    repo TEXT PRIMARY KEY, tenant TEXT, spec TEXT, metadata TEXT, created REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS revisions (
    id TEXT PRIMARY KEY, repo TEXT, tenant TEXT, request_id TEXT, attempt INTEGER, document TEXT, digest TEXT,
    created REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tags (repo TEXT, tag TEXT, revision TEXT, PRIMARY KEY (repo, tag)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS datasets (
    id TEXT PRIMARY KEY, owner TEXT, name TEXT, tenant TEXT, visibility TEXT, schema TEXT, rows TEXT, updated REAL,
    UNIQUE (owner, name)) WITHOUT ROWID;
"""
_SPEC = ("kind", "library_name", "model_family", "class_name", "adapter_for_checkpoint_group", "adapter_for_family")


class Operation(msgspec.Struct):
    """A file that a commit puts at a path."""

    path: str
    blake3: str
    size_bytes: int
    type: str = "add"


class Tag(msgspec.Struct):
    """A name for a revision."""

    tag: str


class Commit(msgspec.Struct):
    """What a commit is begun with."""

    operations: list[Operation]
    mode: str = "merge"
    """`merge` keeps the paths of the revision before, `replace` does not."""

    tags: list[Tag | str] = []
    create_if_missing: bool = True
    message: str = ""
    metadata: dict[str, Any] = {}
    lineage: list[dict[str, Any]] = []
    auto_create_external_parent: bool = True
    kind: str = ""
    library_name: str = ""
    model_family: str = ""
    class_name: str = ""
    adapter_for_checkpoint_group: str = ""
    adapter_for_family: str = ""


class Revision(NamedTuple):
    """A revision that is visible."""

    id: str
    repo: str
    tenant: str
    digest: str
    files: Mapping[str, StoredFile]


class Repositories:
    """All repositories and data sets of one control plane."""

    def __init__(self, path: Path, store: FileStore, *, clock: Callable[[], float] = time) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.RLock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;" + _SCHEMA)
        self._tagged: dict[tuple[str, str], Revision] = {}
        self._visible: dict[str, Revision] = {}
        shown = "SELECT id, repo, tenant, digest FROM revisions WHERE digest != ''"
        for revision, repo, tenant, digest in self._database.execute(shown):
            files = store.of_job(_holder(repo, revision), HELD)
            self._visible[revision] = Revision(revision, repo, tenant, digest, files)
        for repo, tag, revision in self._database.execute("SELECT repo, tag, revision FROM tags"):
            self._tagged[repo, tag] = self._visible[revision]

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    # --- commits ------------------------------------------------------------------------------------------------------

    def begin(self, claims: JobClaims, repo: str, commit: Commit) -> tuple[str, dict[str, Upload | StoredFile]]:
        """Begin a commit; return its id and for each path where its bytes go, or what is there already."""
        _check(commit)
        _check_repo(repo)
        with self._lock:
            self._refuse_others(claims, repo, make=commit.create_if_missing)
            revision = os.urandom(12).hex()
            document = msgspec.json.encode(commit).decode()
            row = (revision, repo, claims.owner, claims.request_id, claims.attempt, document, "", self._clock())
            self._database.execute(f"INSERT INTO revisions VALUES ({', '.join('?' * len(row))})", row)
        held = _holding(claims, repo, revision)
        try:
            begun = {
                each.path: self._store.begin(held, each.path, each.blake3.lower(), each.size_bytes)
                for each in commit.operations
            }
        except BaseException:
            self._drop(repo, revision)
            raise
        return revision, begun

    def complete(
        self, claims: JobClaims, repo: str, revision: str, upload: str, etags: Iterable[tuple[int, str]]
    ) -> StoredFile:
        """Take the parts of one of its files for the whole."""
        self._open_of(claims, repo, revision)
        return self._store.complete(_holding(claims, repo, revision), upload, etags)

    def finalize(self, claims: JobClaims, repo: str, revision: str) -> Revision:
        """Make a commit visible under its tags; asked again, it gives the same answer."""
        with self._lock:
            if (there := self._visible.get(revision)) is not None and there.repo == repo:
                return there
            commit = self._open_of(claims, repo, revision)
            holder = _holder(repo, revision)
            files = dict(self._store.of_job(holder, HELD))
            missing = [each.path for each in commit.operations if each.path not in files]
            if missing:
                raise Refusal(409, "incomplete", f"{len(missing)} files did not come, as `{missing[0]}`")
            if commit.mode == "merge" and (before := self._tagged.get((repo, NEWEST_TAG))) is not None:
                for path, file in before.files.items():
                    if path not in files:
                        files[path] = self._store.adopt(holder, HELD, path, file.blake3, claims.owner)
            made = Revision(revision, repo, claims.owner, _digest(files), files)
            self._show(made, commit)
            return made

    def abort(self, claims: JobClaims, repo: str, revision: str) -> None:
        """Let go of a commit; nothing happens to one that is visible or unknown."""
        with self._lock:
            row = self._database.execute(
                "SELECT tenant, digest FROM revisions WHERE id = ? AND repo = ?", (revision, repo)
            ).fetchone()
            if row is not None and not row[1] and row[0] == claims.owner:
                self._drop(repo, revision)

    def give_up(self, is_live: Callable[[str, int], bool]) -> None:
        """Let go of commits whose jobs are over, and of those that are too old."""
        with self._lock:
            rows = self._database.execute(
                "SELECT id, repo, request_id, attempt, created FROM revisions WHERE digest = ''"
            ).fetchall()
        for revision, repo, request_id, attempt, created in rows:
            over = bool(request_id) and not is_live(request_id, attempt)
            if over or created < self._clock() - OPEN_S:
                self._drop(repo, revision)

    def _show(self, made: Revision, commit: Commit) -> None:
        tags = {each if isinstance(each, str) else each.tag for each in commit.tags} or {DEFAULT_TAG}
        spec = {name: value for name in _SPEC if (value := getattr(commit, name))}
        with self._database:
            self._database.execute("BEGIN")
            self._database.execute("UPDATE revisions SET digest = ? WHERE id = ?", (made.digest, made.id))
            for tag in (*tags, NEWEST_TAG):
                self._database.execute("INSERT OR REPLACE INTO tags VALUES (?, ?, ?)", (made.repo, tag, made.id))
            if spec:
                text = msgspec.json.encode(spec).decode()
                self._database.execute("UPDATE repos SET spec = ? WHERE repo = ?", (text, made.repo))
        self._visible[made.id] = made
        for tag in (*tags, NEWEST_TAG):
            self._tagged[made.repo, tag] = made

    def _open_of(self, claims: JobClaims, repo: str, revision: str) -> Commit:
        with self._lock:
            row = self._database.execute(
                "SELECT document FROM revisions WHERE id = ? AND repo = ? AND tenant = ? AND digest = ''",
                (revision, repo, claims.owner),
            ).fetchone()
        if row is None:
            raise Refusal(404, "no_such_commit", f"`{repo}` has no such commit that is open")
        return msgspec.json.decode(row[0], type=Commit)

    def _drop(self, repo: str, revision: str) -> None:
        with self._lock:
            self._database.execute("DELETE FROM revisions WHERE id = ? AND digest = ''", (revision,))
        self._store.let_go(_holder(repo, revision), HELD)

    def _refuse_others(self, claims: JobClaims, repo: str, *, make: bool) -> None:
        """Raise `Refusal` unless a repository is this tenant's; make one that there is not yet."""
        row = self._database.execute("SELECT tenant FROM repos WHERE repo = ?", (repo,)).fetchone()
        if row is not None and row[0] != claims.owner:
            raise Refusal(403, "not_yours", f"`{repo}` belongs to somebody else")
        if row is None and not make:
            raise Refusal(404, "no_such_repo", f"there is no repository `{repo}`", "`create_if_missing` makes it")
        if row is None:
            values = (repo, claims.owner, "{}", "{}", self._clock())
            self._database.execute("INSERT INTO repos VALUES (?, ?, ?, ?, ?)", values)

    # --- what there is ------------------------------------------------------------------------------------------------

    def find(self, ref: str) -> Revision | None:
        """Return what a ref `owner/name[:tag][@digest]` stands for now; None for what is not kept here."""
        try:
            wanted = parse_ref(ref, "tensorhub", tag=DEFAULT_TAG)
        except RefError:
            return None
        if wanted.provider != "tensorhub" or wanted.flavor:
            return None
        if wanted.digest:
            return self.by_digest(wanted.repo, wanted.digest)
        return self._tagged.get((wanted.repo, wanted.tag))

    def by_digest(self, repo: str, digest: str) -> Revision | None:
        """Return a revision of a repository by its digest."""
        return next((each for each in self._visible.values() if (each.repo, each.digest) == (repo, digest)), None)

    def published(self) -> list[str]:
        """Return the refs of what is visible, as bindings have them."""
        return [repo if tag == DEFAULT_TAG else f"{repo}:{tag}" for repo, tag in list(self._tagged)]

    def metadata(self, claims: JobClaims, repo: str) -> dict[str, Any] | None:
        """Return what is noted beside a repository; None where there is no such repository."""
        with self._lock:
            row = self._database.execute("SELECT metadata, tenant FROM repos WHERE repo = ?", (repo,)).fetchone()
        if row is None or row[1] not in ("", claims.owner):
            return None
        found: dict[str, Any] = msgspec.json.decode(row[0])
        return found

    def set_metadata(self, claims: JobClaims, repo: str, metadata: Mapping[str, Any]) -> None:
        """Replace what is noted beside a repository, which is made where there is none."""
        with self._lock:
            _check_repo(repo)
            self._refuse_others(claims, repo, make=True)
            text = msgspec.json.encode(dict(metadata)).decode()
            self._database.execute("UPDATE repos SET metadata = ? WHERE repo = ?", (text, repo))

    # --- data sets ----------------------------------------------------------------------------------------------------

    def datasets(self, claims: JobClaims, owner: str) -> list[dict[str, Any]]:
        """Return the data sets of an owner that a job may see."""
        with self._lock:
            rows = self._database.execute(
                "SELECT id, name, schema, visibility FROM datasets WHERE owner = ?"
                " AND (visibility = 'public' OR tenant IN ('', ?)) ORDER BY name",
                (owner, claims.owner),
            ).fetchall()
        return [
            {"id": each[0], "name": each[1], "schema": msgspec.json.decode(each[2]), "visibility": each[3]}
            for each in rows
        ]

    def make_dataset(
        self, claims: JobClaims, owner: str, name: str, visibility: str, schema: dict[str, Any], rows: Any
    ) -> str:
        """Make a data set and return its id; its files are kept from now on."""
        key = os.urandom(12).hex()
        with self._lock:
            if self._database.execute("SELECT 1 FROM datasets WHERE owner = ? AND name = ?", (owner, name)).fetchone():
                raise Refusal(409, "exists", f"there is a data set `{owner}/{name}`")
            self._keep_files(claims, key, schema)
            values = (key, owner, name, claims.owner, visibility, _text(schema), _text(rows), self._clock())
            self._database.execute(f"INSERT INTO datasets VALUES ({', '.join('?' * len(values))})", values)
        return key

    def change_dataset(self, claims: JobClaims, key: str, schema: dict[str, Any], rows: Any, visibility: str) -> None:
        """Give a data set another schema, and with it other files."""
        with self._lock:
            row = self._database.execute("SELECT tenant FROM datasets WHERE id = ?", (key,)).fetchone()
            if row is None:
                raise Refusal(404, "no_such_dataset", "there is no such data set")
            if row[0] != claims.owner:
                raise Refusal(403, "not_yours", "the data set belongs to somebody else")
            self._keep_files(claims, key, schema)
            self._database.execute(
                "UPDATE datasets SET schema = ?, rows = ?, updated = ?,"
                " visibility = COALESCE(NULLIF(?, ''), visibility) WHERE id = ?",
                (_text(schema), _text(rows), self._clock(), visibility, key),
            )

    def _keep_files(self, claims: JobClaims, key: str, schema: Mapping[str, Any]) -> None:
        """Keep the files that a schema's manifest names, beside those of the revision before."""
        for entry in schema.get("__cozy_snapshot_manifest__") or []:
            algorithm, _, digits = str(entry.get("digest", "")).rpartition(":")
            if algorithm not in ("", "blake3"):
                raise Refusal(400, "bad_digest", "a manifest names contents by `blake3:<hex>`")
            self._store.adopt(f"dataset/{key}", HELD, str(entry.get("path", "")), digits.lower(), claims.owner)


def _check(commit: Commit) -> None:
    if commit.mode not in ("merge", "replace"):
        raise Refusal(400, "bad_mode", "`mode` is `merge` or `replace`")
    if not 0 < len(commit.operations) <= FILES:
        raise Refusal(400, "bad_operations", f"a commit has 1 to {FILES} operations, this one {len(commit.operations)}")
    if any(each.type != "add" for each in commit.operations):
        raise Refusal(400, "bad_operations", "an operation is of the type `add`")
    for each in commit.tags:
        tag = each if isinstance(each, str) else each.tag
        if not tag or tag == NEWEST_TAG or len(tag) > _TAG_LENGTH or not set(tag) <= _TAG_CHARS:
            raise Refusal(400, "bad_tag", f"`{tag[:100]}` is no tag that can be given")


def _check_repo(repo: str) -> None:
    """Raise `Refusal` unless a ref can name a repository."""
    try:
        named = parse_ref(repo, "tensorhub").repo == repo
    except RefError:
        named = False
    if not named:
        raise Refusal(400, "bad_name", f"`{repo[:200]}` is no `owner/name`")


def _holder(repo: str, revision: str) -> str:
    return f"{repo}@{revision}"


def _holding(claims: JobClaims, repo: str, revision: str) -> JobClaims:
    """Return the claims of a job as those of the revision that it makes."""
    return msgspec.structs.replace(claims, request_id=_holder(repo, revision), attempt=HELD)


def _digest(files: Mapping[str, StoredFile]) -> str:
    """Name the whole: the same for the same paths and contents, as workers compute it."""
    rest = {path: f"\t{file.size_bytes}\t{file.blake3}\n".encode() for path, file in files.items()}
    lines = sorted((path.encode(), line) for path, line in rest.items())
    return f"blake3:{blake3(b''.join(path + line for path, line in lines)).hexdigest()}"


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()
