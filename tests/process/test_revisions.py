"""What producers store and publish, against a platform on the loopback that has revisions and no commits."""

import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.fetcher import Fetcher
from gen_worker.fetch.platform.calls import Calls
from gen_worker.fetch.platform.failure import PlatformError
from gen_worker.fetch.uploading.failure import UploadError
from gen_worker.fetch.uploading.journal import Journal
from gen_worker.fetch.uploading.uploader import Uploader
from gen_worker.testing import LoopbackStore, Status
from gen_worker.testing.contents import Content
from gen_worker.testing.faults import Faults, InProgress
from gen_worker.testing.origin import Answer, Origin, Request
from gen_worker.wire.fetching import Destination, Upload
from gen_worker.wire.messages import Stored
from gen_worker.wire.platform import (
    AnyVerb,
    BeginCommit,
    CommitBegun,
    CommitFile,
    Done,
    FinishCommit,
    PostJson,
    PublishDataset,
    PublishedDataset,
)
from tests.storing import SOON, content_of, destination, memory

REPO = "acme/tiny"
REVISIONS = f"/api/v1/repos/{REPO}/revisions"


class Job:
    """One job of a worker, and its platform."""

    def __init__(self, folder: Path, store: LoopbackStore) -> None:
        config = FetchConfig(root=str(folder / "cache"), hf_cache=str(folder / "hf"))
        self.store = store
        self.calls = Calls(Fetcher(config), SOON)
        self.uploader = Uploader(config, transports=self.calls.transports, into=self.calls.uploads_of)
        self.to = destination(store, repo=REPO, opening={"job_id": "j", "kind": "model"})

    def save(self, content: bytes, path: str = "model.bin", to: Destination | None = None) -> Stored:
        order = Upload(1, to or self.to, path, len(content))
        with open(memory(content), "rb") as file:
            return self.uploader.upload(order, file.fileno(), Journal(None), Cancel(), lambda done, total: None)

    def refused(self, content: bytes) -> UploadError:
        with pytest.raises(UploadError) as raised:
            self.save(content)
        return raised.value

    def ask(self, verb: AnyVerb, content: bytes | None = None) -> Any:
        if content is None:
            return self.calls.call(self.to, verb, None, Cancel()).value
        with open(memory(content), "rb") as file:
            return self.calls.call(self.to, verb, file.fileno(), Cancel()).value

    def publish(self, **files: bytes) -> Any:
        """Publish files as `publish_repo_revision` does."""
        operations = [
            {"type": "add", "path": path, "blake3": blake3(content).hexdigest(), "size_bytes": len(content)}
            for path, content in files.items()
        ]
        document = {"operations": operations, "tags": [{"tag": "prod"}], "metadata": {"why": "a test"}}
        begun = self.ask(BeginCommit(repo=REPO, document=document))
        for path in begun.missing:
            part = CommitFile(repo=REPO, revision_id=begun.revision_id, path=path, length=len(files[path]))
            self.ask(part, files[path])
        return self.ask(FinishCommit(repo=REPO, revision_id=begun.revision_id)).document


@pytest.fixture
def store() -> Iterator[LoopbackStore]:
    with LoopbackStore(way="grant") as made:
        yield made
        assert not made.leaks


@pytest.fixture
def job(store: LoopbackStore, tmp_path: Path) -> Job:
    return Job(tmp_path, store)


@pytest.mark.parametrize("size", [10, 2_500_000], ids=["at once", "in parts"])
def test_a_file_of_a_repository_goes_into_the_one_revision_of_its_job_with_lent_keys(job: Job, size: int) -> None:
    content = content_of(size)
    stored = job.save(content)
    job.save(content_of(11, 1), "other.bin")
    assert (stored.ref, stored.blake3, stored.sha256) == (
        "model.bin", blake3(content).hexdigest(), hashlib.sha256(content).hexdigest()
    )  # fmt: skip
    assert job.store.files["model.bin"].content == content
    assert [each.path for each in job.store.requests].count(REVISIONS) == 1, "the second one goes into the same"
    [revision] = job.store.revisions
    assert job.store.files["other.bin"].owner == f"{REPO}@{revision}"


@pytest.mark.parametrize("camel_case", [False, True])
def test_grants_are_read_in_either_spelling(tmp_path: Path, camel_case: bool) -> None:
    with LoopbackStore(way="grant", camel_case=camel_case) as store:
        assert Job(tmp_path, store).save(b"weights").ref == "model.bin"


def test_a_platform_that_lends_no_keys_for_a_repository_is_not_asked_again(tmp_path: Path) -> None:
    with LoopbackStore(way="parts") as store:
        error = Job(tmp_path, store).refused(b"weights")
        assert (error.kind, error.retryable) == ("transfer", False)
        assert "lends no keys for `model.bin`, a file of a repository" in str(error)
        assert not store.uploads, "it was told that nothing more comes"


def test_what_a_fetcher_that_died_had_begun_is_to_begin_anew(job: Job, tmp_path: Path) -> None:
    operation = {"type": "add", "path": "a", "blake3": blake3(b"x").hexdigest(), "size_bytes": 1}
    begun = job.ask(BeginCommit(repo=REPO, document={"operations": [operation]}))
    for verb in (
        CommitFile(repo=REPO, revision_id=begun.revision_id, path="a", length=1),
        FinishCommit(repo=REPO, revision_id=begun.revision_id),
    ):
        with pytest.raises(PlatformError, match="was forgotten: it is to begin anew") as raised:
            Job(tmp_path, job.store).ask(verb, b"x")
        assert raised.value.retryable


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [(401, "auth", False), (403, "auth", False), (503, "transfer", True)],
)
def test_a_revision_that_cannot_be_opened_is_an_error_of_its_kind(
    job: Job, status: int, kind: str, retryable: bool
) -> None:
    job.store.fail("open:*", Status(status))
    job.store.fail(f"other:{REVISIONS}", Status(status))
    error = job.refused(b"weights")
    assert (error.kind, error.retryable, error.status) == (kind, retryable, status)


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_platform_that_knows_no_revisions_gets_files_as_media_of_their_owner(job: Job, status: int) -> None:
    job.store.fail(f"other:{REVISIONS}", Status(status))
    job.save(b"weights")
    job.save(b"more", "more.bin")
    assert {name: file.owner for name, file in job.store.files.items()} == {"model.bin": "acme", "more.bin": "acme"}
    assert [each.path for each in job.store.requests].count(REVISIONS) == 1, "it is asked once for each job"
    with pytest.raises(PlatformError, match="neither commits nor revisions"):
        job.publish(**{"a.bin": b"one"})


def test_a_repository_that_is_not_there_is_said_not_to_be(calls: Calls) -> None:
    with closing(Platform(lambda request: told(404, {"error": {"code": "no_such_repo", "message": "?"}}))) as platform:
        with pytest.raises(UploadError, match="`acme/tiny` is not on"):
            calls.uploads_of(platform.to, Cancel())
        with pytest.raises(PlatformError, match="`acme/tiny` is not on"):
            calls.call(platform.to, BeginCommit(repo=REPO, document={"operations": []}), None, Cancel())


def test_what_a_job_opened_and_did_not_finish_is_given_up_at_its_end_and_nobody_elses(job: Job) -> None:
    job.save(b"weights")
    other = destination(job.store, repo=REPO, request_id="r-2")
    job.save(b"others", "others.bin", other)
    assert len(job.store.revisions) == 2
    job.calls.end(job.to)
    assert len(job.store.revisions) == 1
    job.calls.end(other)
    job.calls.end(other)
    assert not job.store.revisions


def test_a_platform_without_commits_publishes_what_was_stored_into_the_revision(job: Job) -> None:
    saved, late = b"saved before", b"sent when it is published"
    job.save(saved, "saved.bin")
    told = job.publish(**{"saved.bin": saved, "late.bin": late})
    assert told["state"] == "finalized"
    [(repo, document)] = job.store.published
    assert (repo, document["tags"]) == (REPO, [{"tag": "prod"}])
    [checkpoint] = document["checkpoint_flavors"]
    assert {each["path"]: each["digest"] for each in checkpoint["snapshot_manifest"]} == {
        path: f"blake3:{blake3(content).hexdigest()}" for path, content in (("saved.bin", saved), ("late.bin", late))
    }
    assert checkpoint["metadata"] == {"why": "a test"}
    assert {path: file.content for path, file in job.store.files.items()} == {"saved.bin": saved, "late.bin": late}
    job.calls.end(job.to)
    assert not job.store.seen("give-up:*"), "what is visible is not given up"


def test_a_revision_that_takes_its_time_to_become_visible_is_asked_for_where_the_platform_says(job: Job) -> None:
    job.store.fail(f"finalize:{REPO}", InProgress(), times=3)
    assert job.publish(**{"a.bin": b"one"})["state"] == "finalized"
    asked = [each.method for each in job.store.seen(f"finalize:{REPO}")]
    assert asked == ["POST", "GET", "GET", "GET"]


class Platform:
    """A platform of which the test says what it answers, by method and path; it notes what it was asked."""

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        self.origin = Origin("platform", 0, Faults(), answer)
        self.to = Destination(self.origin.url, "token", "r-1", 1, repo=REPO)

    @property
    def asked(self) -> list[str]:
        return [f"{each.method} {each.path.removeprefix('/api/v1/repos/')}" for each in self.origin.requests]

    def close(self) -> None:
        self.origin.close()


def told(status: int, document: object, **headers: str) -> Answer:
    return Answer(status, "", headers, Content(json.dumps(document).encode()))


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    return Calls(Fetcher(FetchConfig(root=str(tmp_path / "cache"), hf_cache=str(tmp_path / "hf"))), SOON)


def test_a_commit_that_takes_its_time_is_finalized_by_asking_again_and_is_none_to_give_up(calls: Calls) -> None:
    again = itertools.count(1)

    def answer(request: Request) -> Answer:
        if request.path.endswith("/finalize"):
            done = next(again) > 2
            return told(200 if done else 202, {"state": "finalized"} if done else {}, **{"Retry-After": "0"})
        return told(201, {"revision_id": "c 1", "uploads": [{"path": "a", "exists": True}]})

    with closing(Platform(answer)) as platform:
        document = {"operations": [{"type": "add", "path": "a", "blake3": "0" * 64, "size_bytes": 1}]}
        begun = calls.call(platform.to, BeginCommit(repo=REPO, document=document), None, Cancel()).value
        assert begun == CommitBegun("c 1", [])
        finished = calls.call(platform.to, FinishCommit(repo=REPO, revision_id="c 1"), None, Cancel()).value
        assert finished == Done({"state": "finalized"})
        calls.end(platform.to)
        assert platform.asked == [f"POST {REPO}/commits", *[f"POST {REPO}/commits/c 1/finalize"] * 3]


def test_a_revision_that_is_opened_while_its_job_ends_is_given_up(calls: Calls) -> None:
    asked, ended = threading.Event(), threading.Event()

    def answer(request: Request) -> Answer:
        if request.method == "POST":
            asked.set()
            assert ended.wait(10)
        return told(201, {"session_id": "s1", "expires_at": ""})

    with closing(Platform(answer)) as platform, ThreadPoolExecutor(1) as threads:
        opening = threads.submit(calls.uploads_of, platform.to, Cancel())
        assert asked.wait(10)
        calls.end(platform.to)
        ended.set()
        with pytest.raises(UploadError, match="the job has ended"):
            opening.result(10)
        assert platform.asked == [f"POST {REPO}/revisions", f"DELETE {REPO}/revisions/s1"]


SIGNED = "see https://cdn.example/a?X-Signature=secret now"


@pytest.mark.parametrize(
    ("answered", "said"),
    [
        (told(200, {"state": "failed", "message": "too few files"}), "was not published: too few files"),
        (told(200, {"state": "failed", "message": SIGNED}), "was not published: see https://cdn.example/a now"),
        (told(400, {"error": {"code": "bad", "message": SIGNED}}), "answered 400 `bad`: see https://cdn.example/a now"),
        (told(202, {}, Location="https://elsewhere.example/done"), "sends the job's token to another host"),
    ],
)
def test_a_revision_that_cannot_become_visible_is_said_to_and_no_token_goes_elsewhere(
    calls: Calls, answered: Answer, said: str
) -> None:
    def answer(request: Request) -> Answer:
        if request.path.endswith("/commits"):
            return told(404, {})
        return answered if request.path.endswith("/finalize") else told(200, {"session_id": "s1", "dedup": True})

    with closing(Platform(answer)) as platform:
        document = {"operations": [{"type": "add", "path": "a", "blake3": "0" * 64, "size_bytes": 1}]}
        calls.call(platform.to, BeginCommit(repo=REPO, document=document), None, Cancel())
        with pytest.raises(PlatformError, match=said):
            calls.call(platform.to, FinishCommit(repo=REPO, revision_id="s1"), None, Cancel())


def test_a_data_set_that_somebody_makes_meanwhile_is_changed_and_one_that_is_not_shown_is_somebody_elses(
    calls: Calls,
) -> None:
    listed: list[dict[str, str]] = []

    def answer(request: Request) -> Answer:
        if request.method == "POST":
            listed.extend(meanwhile)
            return told(409, {"error": {"code": "exists", "message": "there is one"}})
        return told(200, {"items": listed})

    verb = PublishDataset(owner="acme", name="rows", visibility="private", document={"schema": {"features": {}}})
    with closing(Platform(answer)) as platform:
        meanwhile = [{"id": "d1", "name": "rows"}]
        published = calls.call(platform.to, verb, None, Cancel()).value
        assert published == PublishedDataset("d1", existed=True)
        assert [each.method for each in platform.origin.requests] == ["GET", "POST", "GET", "PATCH"]
        listed.clear()
        meanwhile = []
        with pytest.raises(PlatformError, match="`acme/rows` is somebody else's"):
            calls.call(platform.to, verb, None, Cancel())


def test_a_document_is_posted_with_the_jobs_token_to_an_address_that_came_with_it_and_nowhere_else(job: Job) -> None:
    job.to = destination(job.store, targets={"events": f"{job.store.url}/posts/events?signed=1"})
    posted = job.ask(PostJson(target="events", document={"step": 3}))
    assert (posted.status, posted.document) == (200, {"taken": True})
    assert job.store.posted == [("events", {"step": 3})]
    with pytest.raises(PlatformError, match="the job brought no URL for `elsewhere`; there are: `events`"):
        job.ask(PostJson(target="elsewhere", document={}))
    job.store.fail("post:*", Status(503), times=2)
    assert job.ask(PostJson(target="events", document={"step": 4})).status == 200
    job.store.fail("post:*", Status(403))
    with pytest.raises(PlatformError) as raised:
        job.ask(PostJson(target="events", document={"step": 5}))
    assert (raised.value.kind, raised.value.retryable) == ("auth", False)
    assert "signed" not in str(raised.value)
