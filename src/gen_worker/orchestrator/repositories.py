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
from gen_worker.orchestrator.files import HELD, FileStore, StoredFile, Upload
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.signing import JobClaims

DEFAULT_TAG, NEWEST_TAG = "prod", "latest"
FILES = 10_000  # of one revision
OPEN_S = 24 * 3600.0  # after so long an unfinished commit of a caller is given up; that of a job lives as long as it
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
_OPENED = "rev-"  # begins the id of a revision that is stored into: a commit's has none


class Operation(msgspec.Struct):
    """A file that a commit puts at a path."""

    path: str
    blake3: str
    size_bytes: int
    type: str = "add"


class Tag(msgspec.Struct):
    """A name for a revision, and which of its flavors it means where none is said."""

    tag: str
    default_flavor: str = ""


class Spec(msgspec.Struct, kw_only=True):
    """What a repository is, as whoever publishes to it says."""

    kind: str = ""
    library_name: str = ""
    model_family: str = ""
    class_name: str = ""
    adapter_for_checkpoint_group: str = ""
    adapter_for_family: str = ""


class Commit(Spec):
    """What a commit is begun with."""

    operations: list[Operation]
    mode: str = "merge"
    """`merge` keeps the paths of the revision before, `replace` does not."""

    tags: list[Tag | str] = []
    flavor: str = ""
    default_flavor: str = ""
    create_if_missing: bool = True
    message: str = ""
    metadata: dict[str, Any] = {}
    lineage: list[dict[str, Any]] = []
    auto_create_external_parent: bool = True


class Opening(Spec):
    """What a revision is opened with: whose work it is, and what its repository is."""

    job_id: str = ""


class ManifestEntry(msgspec.Struct):
    """A content at a path."""

    path: str
    digest: str
    size_bytes: int = 0


class Checkpoint(msgspec.Struct):
    """One form of what a revision holds."""

    snapshot_manifest: list[ManifestEntry] = []
    """Its contents; none: all that was stored into the revision."""

    flavor: str = ""


class Finalizing(msgspec.Struct):
    """What a revision is made visible with."""

    tags: list[Tag | str] = []
    checkpoint_flavors: list[Checkpoint] = []
    auto_create_external_parent: bool = True


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

    # --- revisions that are stored into -------------------------------------------------------------------------------

    def open(self, claims: JobClaims, repo: str, opening: Opening) -> tuple[str, float]:
        """Open a revision to store files into; return its id, and until when it stays open.

        One attempt has one of a repository, whichever of its files comes first.
        """
        _check_repo(repo)
        with self._lock:
            self._refuse_others(claims, repo, make=True)
            row = self._database.execute(
                "SELECT id, created FROM revisions WHERE repo = ? AND tenant = ? AND request_id = ? AND attempt = ?"
                " AND digest = '' AND id LIKE ? AND request_id != ''",
                (repo, claims.owner, claims.request_id, claims.attempt, f"{_OPENED}%"),
            ).fetchone()
            if row is not None:
                return row[0], row[1] + OPEN_S
            revision, now = f"{_OPENED}{os.urandom(12).hex()}", self._clock()
            document = _text({"operations": [], **{name: getattr(opening, name) for name in Spec.__struct_fields__}})
            values = (revision, repo, claims.owner, claims.request_id, claims.attempt, document, "", now)
            self._database.execute(f"INSERT INTO revisions VALUES ({', '.join('?' * len(values))})", values)
        return revision, now + OPEN_S

    def store(
        self, claims: JobClaims, repo: str, revision: str, operation: Operation, mime: str
    ) -> Upload | StoredFile:
        """Return where a file of an open revision goes, or the file where its owner has the same content already.

        It is one of its job's, too: who publishes nothing has it still.
        """
        self._open_of(claims, repo, revision)
        held, digest = _holding(claims, repo, revision), operation.blake3.lower()
        found = self._store.begin(held, operation.path, digest, operation.size_bytes, mime, lent=True)
        if isinstance(found, StoredFile):
            self._keep_for_job(claims, found)
        return found

    def stored(
        self, claims: JobClaims, repo: str, revision: str, upload: str, etags: Iterable[tuple[int, str]]
    ) -> StoredFile:
        """Take the parts of a file of an open revision for the whole."""
        file = self.complete(claims, repo, revision, upload, etags)
        self._keep_for_job(claims, file)
        return file

    def give_up_upload(self, claims: JobClaims, repo: str, revision: str, upload: str) -> None:
        """Let go of a file that comes into an open revision."""
        self._open_of(claims, repo, revision)
        self._store.abort(_holding(claims, repo, revision), upload)

    def _keep_for_job(self, claims: JobClaims, file: StoredFile) -> None:
        if claims.request_id:
            self._store.adopt(claims.request_id, claims.attempt, file.name, file.blake3, claims.owner)

    def finalize_opened(self, claims: JobClaims, repo: str, revision: str, asked: Finalizing) -> list[Revision]:
        """Make what was stored into a revision visible, as one for each flavor; asked again, it gives the same answer.

        The first one keeps the revision's own id.
        """
        _check_tags(asked.tags)
        _check_flavors(each.flavor for each in asked.checkpoint_flavors)
        with self._lock:
            if there := self._finalized(repo, revision):
                return there
            commit = self._open_of(claims, repo, revision)
            stored = dict(self._store.of_job(_holder(repo, revision), HELD))
            checkpoints = asked.checkpoint_flavors or [Checkpoint()]
            wanted = [self._contents(claims, repo, revision, each, stored) for each in checkpoints]
            keys = [revision, *(f"{revision}.{number}" for number in range(1, len(wanted)))]
            made = [self._make(claims, repo, key, files, commit) for key, files in zip(keys, wanted, strict=True)]
            self._release_rest(made[0], stored)
            plain = not any(_default(each) for each in asked.tags)
            for number in reversed(range(len(made))):  # who asks again is told that it is done once the first is there
                names = _names(asked.tags, checkpoints[number].flavor, first=plain and number == 0)
                self._show(made[number], commit, names)
            return made

    def _contents(
        self, claims: JobClaims, repo: str, revision: str, checkpoint: Checkpoint, stored: Mapping[str, StoredFile]
    ) -> dict[str, StoredFile]:
        """Return the files of one flavor, all of which its owner has stored; raise `Refusal` where one is not."""
        if not checkpoint.snapshot_manifest:
            if not stored:
                raise Refusal(409, "incomplete", "nothing was stored into the revision")
            return dict(stored)
        found = {}
        for each in checkpoint.snapshot_manifest:
            digest = each.digest.removeprefix("blake3:").lower()
            there = self._store.content(digest, claims.owner)
            if there is None:
                raise Refusal(409, "incomplete", f"1 file did not come, `{each.path[:200]}`")
            found[each.path] = there._replace(name=each.path)
        return found

    def _make(
        self, claims: JobClaims, repo: str, key: str, files: Mapping[str, StoredFile], commit: Commit
    ) -> Revision:
        """Have the files kept for a revision, which is made where there is none of this id."""
        kept = {path: self._store.adopt(_holder(repo, key), HELD, path, each.blake3, claims.owner)
                for path, each in files.items()}  # fmt: skip
        row = (key, repo, claims.owner, claims.request_id, claims.attempt, _text(commit), "", self._clock())
        self._database.execute(f"INSERT OR IGNORE INTO revisions VALUES ({', '.join('?' * len(row))})", row)
        return Revision(key, repo, claims.owner, _digest(kept), kept)

    def _release_rest(self, made: Revision, stored: Mapping[str, StoredFile]) -> None:
        """Keep nothing for the first flavor but its own files: a revision is read by what is kept for it."""
        for path in stored.keys() - made.files.keys():
            self._store.let_go_of(_holder(made.repo, made.id), HELD, path)

    def _finalized(self, repo: str, revision: str) -> list[Revision]:
        first = self._visible.get(revision)
        if first is None or first.repo != repo:
            return []
        others = (each for each in self._visible.values() if each.repo == repo and each.id.startswith(f"{revision}."))
        return [first, *sorted(others, key=lambda each: int(each.id.rpartition(".")[2]))]

    def state_of(self, claims: JobClaims, repo: str, revision: str) -> list[Revision] | None:
        """Return what became of a revision; None while it is open. Raises `Refusal` where there is none."""
        found = self._finalized(repo, revision)
        if found and found[0].tenant == claims.owner:
            return found
        self._open_of(claims, repo, revision)
        return None

    # --- the end of both ----------------------------------------------------------------------------------------------

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
            if commit.mode == "merge" and (before := self._tagged.get((repo, _flavored(NEWEST_TAG, commit.flavor)))):
                for path, file in before.files.items():
                    if path not in files:
                        files[path] = self._store.adopt(holder, HELD, path, file.blake3, claims.owner)
            made = Revision(revision, repo, claims.owner, _digest(files), files)
            first = not commit.flavor or commit.default_flavor in ("", commit.flavor)
            self._show(made, commit, _names(commit.tags, commit.flavor, first=first))
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
        """Let go of commits whose jobs are over, and of those of callers that are too old."""
        with self._lock:
            rows = self._database.execute(
                "SELECT id, repo, request_id, attempt, created FROM revisions WHERE digest = ''"
            ).fetchall()
        for revision, repo, request_id, attempt, created in rows:
            if not is_live(request_id, attempt) if request_id else created < self._clock() - OPEN_S:
                self._drop(repo, revision)

    def _show(self, made: Revision, commit: Commit, tags: set[str]) -> None:
        spec = {name: value for name in Spec.__struct_fields__ if (value := getattr(commit, name))}
        with self._database:
            self._database.execute("BEGIN")
            self._database.execute("UPDATE revisions SET digest = ? WHERE id = ?", (made.digest, made.id))
            for tag in tags:
                self._database.execute("INSERT OR REPLACE INTO tags VALUES (?, ?, ?)", (made.repo, tag, made.id))
            if spec:
                text = msgspec.json.encode(spec).decode()
                self._database.execute("UPDATE repos SET spec = ? WHERE repo = ?", (text, made.repo))
        self._visible[made.id] = made
        for tag in tags:
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
            dropped = self._database.execute("DELETE FROM revisions WHERE id = ? AND digest = ''", (revision,))
        if dropped.rowcount:  # else it has become visible meanwhile, or is gone
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
        """Return what a ref `owner/name[:tag][@digest][#flavor]` stands for now; None for what is not kept here."""
        try:
            wanted = parse_ref(ref, "tensorhub", tag=DEFAULT_TAG)
        except RefError:
            return None
        if wanted.provider != "tensorhub":
            return None
        if wanted.digest:
            return self.by_digest(wanted.repo, wanted.digest)
        return self._tagged.get((wanted.repo, _flavored(wanted.tag or DEFAULT_TAG, wanted.flavor)))

    def by_digest(self, repo: str, digest: str) -> Revision | None:
        """Return a revision of a repository by its digest."""
        return next((each for each in self._visible.values() if (each.repo, each.digest) == (repo, digest)), None)

    def published(self) -> list[str]:
        """Return the refs of what is visible, as bindings have them."""
        return [_ref(repo, tag) for repo, tag in list(self._tagged)]

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
        entries = schema.get("__cozy_snapshot_manifest__") or []
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            raise Refusal(400, "bad_manifest", "a manifest is a list of `{path, digest, size_bytes}`")
        for entry in entries:
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
    _check_tags(commit.tags)
    _check_flavors((commit.flavor, commit.default_flavor))


def _check_tags(tags: Iterable[Tag | str]) -> None:
    for each in tags:
        tag = each if isinstance(each, str) else each.tag
        if not tag or tag == NEWEST_TAG or len(tag) > _TAG_LENGTH or not set(tag) <= _TAG_CHARS:
            raise Refusal(400, "bad_tag", f"`{tag[:100]}` is no tag that can be given")


def _check_flavors(flavors: Iterable[str]) -> None:
    for flavor in flavors:
        if len(flavor) > _TAG_LENGTH or not set(flavor.lower()) <= _TAG_CHARS:
            raise Refusal(400, "bad_flavor", f"`{flavor[:100]}` is no flavor")


def _check_repo(repo: str) -> None:
    """Raise `Refusal` unless a ref can name a repository."""
    try:
        named = parse_ref(repo, "tensorhub").repo == repo
    except RefError:
        named = False
    if not named:
        raise Refusal(400, "bad_name", f"`{repo[:200]}` is no `owner/name`")


def _default(tag: Tag | str) -> str:
    return "" if isinstance(tag, str) else tag.default_flavor


def _names(tags: Iterable[Tag | str], flavor: str, *, first: bool) -> set[str]:
    """Return the tags that one flavor gets: each with its flavor, and without where it is the one that it means."""
    found: set[str] = set()
    for each in (*(list(tags) or [DEFAULT_TAG]), NEWEST_TAG):
        tag = each if isinstance(each, str) else each.tag
        found.add(_flavored(tag, flavor))
        if first or (flavor and _default(each) == flavor):
            found.add(tag)
    return found


def _ref(repo: str, tag: str) -> str:
    """Return the ref that a binding has for what is tagged so."""
    bare, mark, flavor = tag.partition("#")
    return f"{repo}{'' if bare == DEFAULT_TAG else f':{bare}'}{mark}{flavor}"


def _flavored(tag: str, flavor: str) -> str:
    return f"{tag}#{flavor}" if flavor else tag


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
