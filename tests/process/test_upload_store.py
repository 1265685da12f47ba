"""What a store may answer to an upload, and what comes of it."""

import base64
import os
import threading
from pathlib import Path

import msgspec
import pytest

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.uploading.journal import Journal
from gen_worker.models.errors import ModelError
from gen_worker.testing import Corrupt, Cut, InProgress, LoopbackStore, NoETag, Stall, Status
from gen_worker.testing.faults import Fault
from gen_worker.testing.store import Way
from tests.served import until
from tests.storing import REF, SOON, Here, content_of, destination, memory

pytestmark = pytest.mark.process
MIB = 1 << 20
WAYS: list[Way] = ["parts", "grant"]
GRANT = {"bucket": "b", "key": "k", "accessKeyId": "id", "secretAccessKey": "secret", "sessionToken": "secret"}
SIZES = {"one part": 1000, "exactly one part": MIB, "a byte more": MIB + 1, "many parts": 7 * MIB + 5}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("camel_case", [False, True], ids=["snake_case", "camelCase"])
def test_a_file_of_any_size_is_stored_as_it_is(way: Way, size: int, camel_case: bool) -> None:
    content = content_of(size)
    with LoopbackStore(way=way, part_bytes=MIB, camel_case=camel_case) as store:
        here = Here(store)
        stored = here.upload(content, ref="a b/größe+1.png")
        file = store.files["a b/größe+1.png"]
        assert file.content == content
        assert (file.owner, file.request_id, file.mime_type) == ("acme", "r-1", "image/png")
        assert (stored.mime_type, stored.blake3, stored.sha256) == ("image/png", file.blake3, file.sha256)
        assert here.told[-1] == (size, size)
        assert (store.leaks, store.uploads) == ([], [])


def test_bytes_that_the_store_has_are_not_sent_again() -> None:
    with LoopbackStore() as store:
        here = Here(store)
        here.upload(b"the same")
        store.requests.clear()
        stored = here.upload(b"the same", ref="another.txt", mime_type="text/plain")
        assert [request.target for request in store.requests] == ["create:another.txt"]
        assert (stored.ref, stored.size_bytes) == ("another.txt", 8)
        assert here.told[-1] == (8, 8)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("glob", "fault", "times"),
    [
        ("create:*", Status(503), 2),
        ("create:*", Status(429), 2),
        ("part:*:2", Status(500), 4),
        ("part:*:1", Status(429), 4),
        ("part:*", Cut(1000), 4),
        ("complete:*", Status(502), 4),
        ("complete:*", InProgress(), 20),
    ],
    ids=lambda value: str(value),
)
def test_what_may_pass_is_tried_again(way: Way, glob: str, fault: Fault, times: int) -> None:
    content = content_of(3 * MIB)
    with LoopbackStore(way=way, part_bytes=MIB) as store:
        store.fail(glob, fault, times=times)
        Here(store).upload(content)
        assert store.files[REF].content == content


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("glob", "fault", "said", "retryable", "seen"),
    [
        ("part:*:1", Status(500), "answers 500", True, ("part:*:1", 5)),
        ("part:*:1", Status(403), "answers 403", False, ("part:*:1", 1)),
        ("part:*:1", Status(404), "answers 404", False, ("part:*:1", 1)),
        ("part:*:1", Status(307, {"Location": "/elsewhere"}), "answers 307", False, ("part:*:1", 1)),
        ("complete:*", Status(500), "was not completed", True, ("complete:*", 5)),
        ("complete:*", Status(404), "was not completed", False, ("complete:*", 1)),
        ("complete:*", Status(409), "answers 409", False, ("complete:*", 1)),
        ("part:*:1", Corrupt(), "answers 400 `checksum_mismatch`", False, ("complete:*", 1)),
    ],
    ids=lambda value: str(value),
)
def test_what_does_not_pass_ends_the_upload_and_the_store_is_told(
    way: Way, glob: str, fault: Fault, said: str, retryable: bool, seen: tuple[str, int]
) -> None:
    with LoopbackStore(way=way, part_bytes=MIB) as store:
        store.fail(glob, fault)
        error = Here(store).refused(content_of(1000))
        assert said in str(error)
        assert (error.kind, error.retryable) == ("transfer", retryable)
        assert len(store.seen(seen[0])) == seen[1]
        assert len(store.seen("abort:*")) == 1
        assert (store.uploads, store.files) == ([], {})


def test_a_part_that_is_taken_without_an_etag_ends_the_upload() -> None:
    with LoopbackStore() as store:
        store.fail("part:*", NoETag())
        error = Here(store).refused(content_of(1000))
        assert "took part 1 without naming it" in str(error)
        assert not error.retryable
        assert len(store.seen("part:*")) == 1


def test_when_one_part_fails_no_other_is_on_its_way_any_more() -> None:
    with LoopbackStore(part_bytes=MIB) as store:
        store.fail("part:*:2", Status(403))
        store.fail("part:*:1", Stall(10, 30.0))
        error = Here(store).refused(content_of(9 * MIB))
        assert "answers 403" in str(error)
        assert len(store.seen("part:*")) <= 6
        assert [thread for thread in threading.enumerate() if "gen-worker-part" in thread.name] == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_the_store_refuses_is_said_to_be_refused(status: int) -> None:
    with LoopbackStore() as store:
        store.fail("create:*", Status(status))
        error = Here(store).refused(b"x")
        assert (error.kind, error.retryable) == ("auth", False)
        assert "refuses the job's token" in str(error)
        assert store.token not in str(error)


@pytest.mark.parametrize(
    ("status", "kind", "retryable", "tries"),
    [
        (404, "transfer", False, 1),
        (400, "transfer", False, 1),
        (413, "too_large", False, 1),
        (500, "transfer", True, 3),
    ],
)
def test_an_upload_that_the_store_does_not_begin_fails(status: int, kind: str, retryable: bool, tries: int) -> None:
    with LoopbackStore() as store:
        store.fail("create:*", Status(status))
        error = Here(store).refused(b"x")
        assert (error.kind, error.retryable, len(store.requests)) == (kind, retryable, tries)


def test_a_redirect_is_followed_by_nothing_and_least_of_all_by_the_token() -> None:
    with LoopbackStore() as store, LoopbackStore() as other:
        store.fail("create:*", Status(307, {"Location": f"{other.url}/api/v1/media/acme/uploads"}))
        error = Here(store).refused(b"x")
        assert "redirects (307)" in str(error)
        assert other.requests == []


def test_a_store_that_is_not_there_is_named_and_may_be_there_later() -> None:
    with LoopbackStore() as store:
        here, gone = Here(store), store.url
    error = here.refused(b"x", to=destination(store))
    assert (error.kind, error.retryable) == ("transfer", True)
    assert f"`{gone.removeprefix('http://')}` cannot be reached" in str(error)


def test_a_store_that_completes_for_ever_is_given_up() -> None:
    with LoopbackStore() as store:
        store.fail("complete:*", InProgress())
        error = Here(store, msgspec.structs.replace(SOON, poll_for_s=0.05)).refused(b"x")
        assert "is at it for" in str(error)
        assert error.retryable


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"base_url": ""}, "transfer", "the orchestrator named no store"),
        ({"base_url": "ftp://store"}, "transfer", "not a URL that can be fetched"),
        ({"token": ""}, "auth", "came without a token"),
        ({"token": "日本"}, "transfer", "characters that none may have"),
    ],
)
def test_a_job_without_a_store_or_a_token_stores_nothing(changes: dict[str, str], kind: str, said: str) -> None:
    with LoopbackStore() as store:
        error = Here(store).refused(b"x", to=destination(store, **changes))
        assert (error.kind, error.retryable) == (kind, False)
        assert said in str(error)


@pytest.mark.parametrize(
    ("strange", "said"),
    [
        ({"upload_id": ""}, "names no upload"),
        ({"part_urls": []}, "gives 0 URLs for parts"),
        ({"part_size": -1}, "gives 1 URLs for parts of -1 bytes"),
        ({"part_urls": "none"}, "answers what cannot be read"),
        ({"part_urls": ["nowhere"]}, "not a URL that can be fetched"),
        ({"part_urls": ["http://127.0.0.1:1/x?X-Signature=secret"]}, "cannot be reached"),
        ({"transfer_grant": {"bucket": "b"}}, "grants what cannot be read"),
        ({"transfer_grant": {**GRANT, "endpointUrl": "http://["}}, "grants what cannot be read"),
        ({"transfer_grant": {**GRANT, "endpointUrl": "nowhere"}}, "not a URL that can be fetched"),
        ({"s3_transfer_grant": {**GRANT, "endpointUrl": "ftp://a/b"}}, "not a URL that can be fetched"),
    ],
    ids=str,
)
def test_a_store_that_says_strange_things_fails_the_upload_and_no_secret_is_told(
    strange: dict[str, object], said: str
) -> None:
    with LoopbackStore() as store:
        store.strange.update(strange)
        error = Here(store).refused(content_of(1000))
        assert f"`{REF}`" in str(error)
        assert said in str(error)
        assert error.kind == "transfer"
        assert "secret" not in str(error)


def test_a_job_without_an_owner_has_a_place_for_its_files() -> None:
    with LoopbackStore() as store:
        stored = Here(store).upload(b"x", to=destination(store, owner=""))
        assert stored.owner == ""
        assert "x-cozy-owner" not in store.requests[0].headers
        assert store.requests[0].path == "/api/v1/media/_/uploads"


@pytest.mark.parametrize("way", WAYS)
def test_a_cancel_ends_an_upload_wherever_it_is(way: Way) -> None:
    with LoopbackStore(way=way, part_bytes=MIB) as store:
        store.fail("part:*", Stall(10, 30.0))
        here, cancel, ended = Here(store), Cancel(), threading.Event()

        def upload() -> None:
            with pytest.raises(ModelError, match="canceled"):
                here.upload(content_of(3 * MIB), cancel=cancel)
            ended.set()

        thread = threading.Thread(target=upload)
        thread.start()
        until(lambda: store.seen("part:*"), what="a part on its way")
        cancel.set()
        assert ended.wait(5.0)
        thread.join()
        assert store.uploads == []


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_a_file_without_bytes_is_refused() -> None:
    with LoopbackStore() as store:
        error = Here(store).refused(b"")
        assert "has no bytes" in str(error)
        assert (error.kind, error.retryable, store.requests) == ("transfer", False, [])


def test_of_a_longer_memory_only_the_wanted_bytes_are_stored() -> None:
    with LoopbackStore() as store:
        Here(store).upload(b"wanted, and not wanted", length=6)
        assert store.files[REF].content == b"wanted"


def test_a_file_that_is_shorter_than_was_said_is_not_stored() -> None:
    with LoopbackStore() as store:
        error = Here(store).refused(b"short", length=6)
        assert "changed while it was stored: it has 5 bytes, not 6" in str(error)
        assert store.requests == []


@pytest.mark.parametrize("size", [10, 2 * MIB + 10, 4 * MIB], ids=["cut", "cut within a part", "grown"])
def test_a_file_that_changes_while_it_is_sent_is_not_stored(size: int) -> None:
    with LoopbackStore(part_bytes=MIB) as store:
        store.fail("part:*:1", Stall(10, 0.2))
        fd = memory(content_of(3 * MIB))

        def change() -> None:
            until(lambda: store.seen("part:*:1"), what="a part on its way")
            os.ftruncate(fd, size)

        changer = threading.Thread(target=change)
        changer.start()
        try:
            error = Here(store).refused(fd)
        finally:
            changer.join()
            os.close(fd)
        assert "changed while it was stored" in str(error)
        assert store.files == {}


def test_a_pipe_and_what_cannot_be_read_are_not_stored(tmp_path: Path) -> None:
    with LoopbackStore() as store:
        read, write = os.pipe()
        assert "is not a plain file" in str(Here(store).refused(read, length=1))
        os.close(read)
        os.close(write)
        (tmp_path / "file").write_bytes(b"x")
        unreadable = os.open(tmp_path / "file", os.O_WRONLY)
        assert "cannot be read" in str(Here(store).refused(unreadable))
        os.close(unreadable)


# --- the journal ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("torn", [b"", b'{"part":9,"et'], ids=["whole", "torn"])
def test_an_upload_goes_on_where_its_journal_ends(way: Way, torn: bytes) -> None:
    content = content_of(6 * MIB)
    with LoopbackStore(way=way, part_bytes=MIB) as store:
        journal, later = _interrupted(store, content, torn)
        store.requests.clear()
        Here(store).upload(content, journal=Journal(later))
        assert store.files[REF].content == content
        assert store.seen("create:*") == []
        assert [request.target for request in store.seen("part:*")] == [f"part:{REF}:6"]
        os.close(journal)
        os.close(later)


@pytest.mark.parametrize("way", WAYS)
def test_an_upload_that_the_store_forgot_begins_anew(way: Way) -> None:
    content = content_of(6 * MIB)
    with LoopbackStore(way=way, part_bytes=MIB) as store:
        journal, later = _interrupted(store, content, b"")
        store.forget()
        store.requests.clear()
        Here(store).upload(content, journal=Journal(later))
        assert store.files[REF].content == content
        assert len(store.seen("create:*")) == 1
        os.close(journal)
        os.close(later)


@pytest.mark.parametrize("way", WAYS)
def test_an_upload_whose_completion_was_not_heard_of_sends_nothing_again(way: Way) -> None:
    content = content_of(3 * MIB)
    with LoopbackStore(way=way, part_bytes=MIB) as store:
        journal, later, cancel = memory(b""), memory(b""), Cancel()
        store.fail("complete:*", Stall(1, 30.0))

        def upload() -> None:
            with pytest.raises(ModelError):
                Here(store).upload(content, journal=Journal(journal), cancel=cancel)

        thread = threading.Thread(target=upload)
        thread.start()
        until(lambda: store.seen("complete:*"), what="a completion on its way")
        os.pwrite(later, os.pread(journal, MIB, 0), 0)
        _end_silently(store, cancel, thread)
        store.requests.clear()
        Here(store).upload(content, journal=Journal(later))
        assert store.files[REF].content == content
        assert [request.target for request in store.requests] == [f"complete:{REF}"]
        os.close(journal)
        os.close(later)


def _interrupted(store: LoopbackStore, content: bytes, torn: bytes) -> tuple[int, int]:
    """Return the journals of an upload that lacks its last part: as it was left in the end, and as it was before."""
    journal, later, cancel = memory(b""), memory(b""), Cancel()
    store.fail("part:*:6", Stall(10, 30.0))

    def upload() -> None:
        with pytest.raises(ModelError):
            Here(store).upload(content, journal=Journal(journal), cancel=cancel)

    thread = threading.Thread(target=upload)
    thread.start()
    until(lambda: os.pread(journal, MIB, 0).count(b'"part":') == 5, what="five parts in the journal")
    os.pwrite(later, os.pread(journal, MIB, 0) + torn, 0)
    _end_silently(store, cancel, thread)
    return journal, later


def _end_silently(store: LoopbackStore, cancel: Cancel, thread: threading.Thread) -> None:
    """End an upload as if its process had been killed: the store hears nothing of it."""
    for glob in ("abort:*", "object:*"):
        store.fail(glob, Status(503))
    cancel.set()
    thread.join()
    store.heal()


def test_a_journal_remembers_what_was_noted_and_forgets_when_all_begins_anew() -> None:
    from gen_worker.fetch.uploading.source import Digests

    fd = memory(b"")
    one = Journal(fd)
    one.note_digests(Digests("b" * 64, "a" * 64))
    one.note_created('{"upload_id":"u"}')
    one.note_multipart("m")
    one.note_part(3, '"e"')
    other = Journal(fd)
    assert (other.digests, other.created, other.multipart) == (one.digests, '{"upload_id":"u"}', "m")
    assert other.etags == {3: '"e"'}
    other.begin_anew()
    assert (Journal(fd).digests, Journal(fd).created, Journal(fd).etags) == (one.digests, "", {})
    os.close(fd)


# --- how much at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_no_more_parts_are_on_their_way_than_there_shall_be(way: Way) -> None:
    with LoopbackStore(way=way, part_bytes=MIB) as store:
        store.fail("part:*", Stall(10, 0.03))
        here, seen = Here(store), [0]
        contents = {f"f{at}": content_of(5 * MIB, at) for at in range(6)}
        threads = [
            threading.Thread(target=here.upload, args=(each,), kwargs={"ref": ref}) for ref, each in contents.items()
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            under_way = [request.target for request in list(store.requests) if request.status == 0]
            parts = [target for target in under_way if target.startswith("part:")]
            seen.append(len(parts))
            files = {target.split(":")[1] for target in parts}
            assert len(files) <= (4 if way == "parts" else 2)
            assert all(parts.count(part) == 1 for part in parts)
            assert max(sum(file in part for part in parts) for file in files or {"none"}) <= 4
            threads[0].join(0.002)
        assert 2 <= max(seen) <= 8
        assert {ref: file.content for ref, file in store.files.items()} == contents


def test_files_of_one_token_wait_for_each_other_where_it_allows_no_more_at_once() -> None:
    claims = base64.urlsafe_b64encode(b'{"max_total_bytes": 1000}').rstrip(b"=").decode()
    with LoopbackStore() as store:
        token = f"head.{claims}.signature"
        store.tokens.add(token)
        here, to = Here(store), destination(store, token=token)
        options = [{"ref": ref, "to": to} for ref in ("a", "b", "c")]
        threads = [
            threading.Thread(target=here.upload, args=(content_of(600, at),), kwargs=each)
            for at, each in enumerate(options)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10.0)
        kinds = [request.target.split(":")[0] for request in store.requests]
        assert kinds == ["create", "part", "complete"] * 3
