"""What a control plane promises of repositories: whole or not at all, one tenant's, there after a restart."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from gen_worker.orchestrator.files import FileStore, Upload
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.repositories import Commit, Operation, Repositories, Revision
from gen_worker.orchestrator.signing import JobClaims

OURS = JobClaims(request_id="r1", attempt=1, exp=0, owner="us")
THEIRS = JobClaims(request_id="r2", attempt=1, exp=0, owner="them")


@contextmanager
def opened(folder: Path) -> Iterator[tuple[FileStore, Repositories]]:
    with closing(FileStore(folder / "files")) as store, closing(Repositories(folder / "repos.sqlite", store)) as repos:
        yield store, repos


def commit(**files: bytes) -> Commit:
    return Commit([Operation(name, blake3(content).hexdigest(), len(content)) for name, content in files.items()])


def send(store: FileStore, repos: Repositories, claims: JobClaims, **files: bytes) -> str:
    """Begin a commit of `us/words` and send what it lacks; return its id."""
    revision, begun = repos.begin(claims, "us/words", commit(**files))
    for path, to in begun.items():
        if isinstance(to, Upload):
            filling = store.part(to.id, 1, len(files[path]))
            filling.write(files[path])
            etag = str(filling.finish())
            filling.close()
            repos.complete(claims, "us/words", revision, to.id, [(1, etag)])
    return revision


def published(store: FileStore, repos: Repositories, claims: JobClaims, **files: bytes) -> Revision:
    return repos.finalize(claims, "us/words", send(store, repos, claims, **files))


def test_a_revision_is_visible_whole_and_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as (store, repos):
        revision = send(store, repos, OURS, a=b"one", b=b"two")
        assert repos.find("us/words") is None
        made = repos.finalize(OURS, "us/words", revision)
        assert repos.finalize(OURS, "us/words", revision) is made
        store.forget(["r1"])  # the job is not known any more, what it made is
    with opened(tmp_path) as (store, repos):
        found = repos.find("us/words")
        assert found is not None
        assert found.digest == made.digest == (repos.find("us/words:latest") or found).digest
        assert {path: store.read(file) for path, file in found.files.items()} == {"a": b"one", "b": b"two"}
        assert repos.published() == ["us/words:latest", "us/words"]


def test_a_commit_without_its_files_or_given_up_never_becomes_visible(tmp_path: Path) -> None:
    with opened(tmp_path) as (_store, repos):
        revision, _ = repos.begin(OURS, "us/words", commit(a=b"one"))
        with pytest.raises(Refusal, match="1 files did not come, as `a`"):
            repos.finalize(OURS, "us/words", revision)
        repos.abort(OURS, "us/words", revision)
        with pytest.raises(Refusal, match="no such commit"):
            repos.finalize(OURS, "us/words", revision)
        repos.begin(OURS, "us/words", commit(b=b"two"))
        repos.give_up(lambda request_id, attempt: False)
        assert not list((tmp_path / "files" / "arriving").iterdir())


def test_bytes_that_a_tenant_has_stored_are_not_asked_for_again_and_merge_with_what_was_there(tmp_path: Path) -> None:
    with opened(tmp_path) as (store, repos):
        published(store, repos, OURS, a=b"one")
        _, begun = repos.begin(OURS, "us/words", commit(copy=b"one"))
        assert not isinstance(begun["copy"], Upload)
        assert set(published(store, repos, OURS, b=b"two").files) == {"a", "b"}


def test_a_repository_belongs_to_the_tenant_that_made_it(tmp_path: Path) -> None:
    with opened(tmp_path) as (store, repos):
        made = published(store, repos, OURS, a=b"one")
        for attempt in (
            lambda: repos.begin(THEIRS, "us/words", commit(a=b"evil")),
            lambda: repos.set_metadata(THEIRS, "us/words", {"evil": True}),
        ):
            with pytest.raises(Refusal, match="belongs to somebody else"):
                attempt()
        assert repos.metadata(THEIRS, "us/words") is None
        assert store.content(f"blake3:{made.files['a'].blake3}", "them") is None
        assert store.content(f"sha256:{made.files['a'].sha256}", "us") is not None
        schema = {"__cozy_snapshot_manifest__": [{"path": "x", "digest": f"blake3:{made.files['a'].blake3}"}]}
        with pytest.raises(Refusal, match="were not stored here before"):
            repos.make_dataset(THEIRS, "them", "rows", "private", schema, None)


@pytest.mark.parametrize("repo", ["us/..", "us/a@b", "us/ü", "us/a:b", "us"])
def test_a_name_that_is_none_is_refused(repo: str, tmp_path: Path) -> None:
    with opened(tmp_path) as (_, repos), pytest.raises(Refusal, match="is no `owner/name`"):
        repos.begin(OURS, repo, commit(a=b"one"))
