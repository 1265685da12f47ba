"""What a control plane promises of repositories: whole or not at all, one tenant's, there after a restart."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from gen_worker.orchestrator.files import FileStore, Upload
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.repositories import (
    OPEN_S,
    Checkpoint,
    Commit,
    Finalizing,
    ManifestEntry,
    Opening,
    Operation,
    Repositories,
    Revision,
    Tag,
)
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


def stored(store: FileStore, repos: Repositories, claims: JobClaims, **files: bytes) -> str:
    """Store files into the revision of `us/words` that an attempt has; return its id."""
    revision, _ = repos.open(claims, "us/words", Opening(kind="model"))
    for path, content in files.items():
        begun = repos.store(claims, "us/words", revision, commit(**{path: content}).operations[0], "")
        if isinstance(begun, Upload):
            filling = store.part(begun.id, 1, len(content))
            filling.write(content)
            etag = str(filling.finish())
            filling.close()
            repos.stored(claims, "us/words", revision, begun.id, [(1, etag)])
    return revision


def test_an_attempt_has_one_revision_of_a_repository_and_what_it_stores_there_is_its_own_too(tmp_path: Path) -> None:
    with opened(tmp_path) as (store, repos):
        revision = stored(store, repos, OURS, a=b"one")
        assert stored(store, repos, OURS, b=b"two") == revision
        again = JobClaims(request_id="r1", attempt=2, exp=0, owner="us")
        assert repos.open(again, "us/words", Opening())[0] != revision
        assert repos.find("us/words") is None
        repos.abort(OURS, "us/words", revision)
        assert {name: store.read(file) for name, file in store.of_job("r1", 1).items()} == {"a": b"one", "b": b"two"}
        late = commit(c=b"three").operations[0]
        with pytest.raises(Refusal, match="no such commit"):
            repos.store(OURS, "us/words", revision, late, "")
        with pytest.raises(Refusal, match="belongs to somebody else"):
            repos.open(THEIRS, "us/words", Opening())


def test_a_revision_that_was_stored_into_is_visible_whole_once_it_is_finalized_and_after_a_restart(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as (store, repos):
        revision = stored(store, repos, OURS, a=b"one", b=b"two")
        assert repos.state_of(OURS, "us/words", revision) is None
        [made] = repos.finalize_opened(OURS, "us/words", revision, Finalizing(["best"]))
        assert repos.finalize_opened(OURS, "us/words", revision, Finalizing()) == [made]
        assert repos.state_of(OURS, "us/words", revision) == [made]
        repos.abort(OURS, "us/words", revision)  # as every job's end does
        repos.give_up(lambda request_id, attempt: False)
        assert repos.find("us/words:best") == repos.find("us/words:latest") == made
    with opened(tmp_path) as (store, repos):
        found = repos.find("us/words:best")
        assert found is not None
        assert {path: store.read(file) for path, file in found.files.items()} == {"a": b"one", "b": b"two"}
        assert found.digest == made.digest


def test_a_revision_of_a_job_is_open_as_long_as_that_lives_and_one_of_a_caller_for_a_day(tmp_path: Path) -> None:
    now = 1000.0
    caller = JobClaims(request_id="", attempt=0, exp=0)
    files = closing(FileStore(tmp_path / "files"))
    with files as store, closing(Repositories(tmp_path / "repos.sqlite", store, clock=lambda: now)) as repos:
        ours = stored(store, repos, OURS, a=b"one")
        theirs, _ = repos.begin(caller, "we/words", commit(b=b"two"))
        now += OPEN_S - 1
        repos.give_up(lambda request_id, attempt: True)
        with pytest.raises(Refusal, match="did not come"):
            repos.finalize(caller, "we/words", theirs)
        now += 7 * 24 * 3600
        repos.give_up(lambda request_id, attempt: (request_id, attempt) == (OURS.request_id, OURS.attempt))
        assert repos.finalize_opened(OURS, "us/words", ours, Finalizing(["trained"]))
        with pytest.raises(Refusal, match="no such commit"):
            repos.finalize(caller, "we/words", theirs)


def test_each_flavor_of_a_revision_is_found_by_its_name_and_one_of_them_without(tmp_path: Path) -> None:
    def entry(path: str, content: bytes) -> ManifestEntry:
        return ManifestEntry(path, f"blake3:{blake3(content).hexdigest()}", len(content))

    with opened(tmp_path) as (store, repos):
        revision = stored(store, repos, OURS, small=b"8 bit", large=b"32 bit", config=b"{}")
        checkpoints = [
            Checkpoint([entry("model", b"32 bit"), entry("config", b"{}")], "fp32"),
            Checkpoint([entry("model", b"8 bit"), entry("config", b"{}")], "int8"),
        ]
        asked = Finalizing([Tag("prod", "int8"), "test"], checkpoints)
        large, small = repos.finalize_opened(OURS, "us/words", revision, asked)
        assert repos.find("us/words#fp32") == repos.find("us/words:test#fp32") == large
        assert repos.find("us/words") == repos.find("us/words#int8") == repos.find("us/words:test#int8") == small
        assert repos.find("us/words#int4") is None
        assert "us/words#int8" in repos.published()
    with opened(tmp_path) as (store, repos):
        found = repos.find("us/words#fp32")
        assert found is not None
        assert {path: store.read(file) for path, file in found.files.items()} == {"model": b"32 bit", "config": b"{}"}


def test_a_revision_of_several_flavors_is_visible_whole_or_not_at_all(tmp_path: Path) -> None:
    with opened(tmp_path) as (store, repos):
        revision = stored(store, repos, OURS, a=b"one")
        digest = f"blake3:{blake3(b'one').hexdigest()}"
        flavors = [Checkpoint([ManifestEntry(path, digest)], flavor) for path, flavor in (("a", "x"), ("../a", "y"))]
        with pytest.raises(Refusal):
            repos.finalize_opened(OURS, "us/words", revision, Finalizing([], flavors))
        assert repos.published() == []
        flavors[1].snapshot_manifest[0].path = "b"
        assert len(repos.finalize_opened(OURS, "us/words", revision, Finalizing([], flavors))) == 2
        assert repos.find("us/words#y") is not None


def test_what_becomes_visible_while_it_is_looked_whether_its_job_is_over_keeps_its_files(tmp_path: Path) -> None:
    with opened(tmp_path) as (store, repos):
        revision = send(store, repos, OURS, a=b"one")

        def is_live(request_id: str, attempt: int) -> bool:
            repos.finalize(OURS, "us/words", revision)
            return False

        repos.give_up(is_live)
    with opened(tmp_path) as (store, repos):
        found = repos.find("us/words")
        assert found is not None
        assert {path: store.read(file) for path, file in found.files.items()} == {"a": b"one"}


def test_a_revision_without_its_files_is_not_finalized(tmp_path: Path) -> None:
    with opened(tmp_path) as (_store, repos):
        revision, _ = repos.open(OURS, "us/words", Opening())
        with pytest.raises(Refusal, match="nothing was stored"):
            repos.finalize_opened(OURS, "us/words", revision, Finalizing())
        lacking = Checkpoint([ManifestEntry("a", "blake3:" + "0" * 64)])
        with pytest.raises(Refusal, match="1 file did not come, `a`"):
            repos.finalize_opened(OURS, "us/words", revision, Finalizing([], [lacking]))
        with pytest.raises(Refusal, match="no flavor"):
            repos.finalize_opened(OURS, "us/words", revision, Finalizing([], [Checkpoint(flavor="a#b")]))


def test_a_commit_of_one_flavor_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    with opened(tmp_path) as (store, repos):
        plain = published(store, repos, OURS, a=b"one")
        begun = commit(a=b"one", b=b"8 bit")
        begun.flavor, begun.default_flavor = "int8", "fp32"
        begun.operations = begun.operations[:1]
        revision, _ = repos.begin(OURS, "us/words", begun)
        small = repos.finalize(OURS, "us/words", revision)
        assert repos.find("us/words") == plain
        assert repos.find("us/words#int8") == small
