"""The files of jobs and callers in a folder, and the models that are offered from one."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from shutil import disk_usage

import pytest
from blake3 import blake3

from gen_worker.orchestrator.files import CALLER, HELD, FileLimits, FileStore, StoredFile, Upload
from gen_worker.orchestrator.offered import ModelFolderError, OfferedModels
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.signing import JobClaims, Signer
from gen_worker.testing.contents import contents, tree_digest

LIMITS = FileLimits(part_bytes=4, file_bytes=100, uploads_s=10.0, inputs_s=20.0)
CLAIMS = JobClaims(request_id="r", attempt=1, exp=0, owner="ada")
OTHER = JobClaims(request_id="r", attempt=2, exp=0, owner="ada")
SIGNER = Signer(bytes(32))


class Now:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def store(tmp_path: Path, now: Now) -> Iterator[FileStore]:
    made = FileStore(tmp_path / "files", LIMITS, clock=now)
    yield made
    made.close()


def digest(content: bytes) -> str:
    return blake3(content).hexdigest()


def begin(store: FileStore, content: bytes, name: str = "a.txt", claims: JobClaims = CLAIMS) -> Upload:
    upload = store.begin(claims, name, digest(content), len(content))
    assert isinstance(upload, Upload)
    return upload


def send(store: FileStore, upload: Upload, number: int, content: bytes) -> str:
    part = store.part(upload.id, number, len(content))
    try:
        part.write(content)
        etag = part.finish()
    finally:
        part.close()
    assert isinstance(etag, str)
    return etag


def stored(store: FileStore, content: bytes, name: str = "a.txt", claims: JobClaims = CLAIMS) -> StoredFile:
    upload = begin(store, content, name, claims)
    etags = [(at + 1, send(store, upload, at + 1, content[at * 4 : at * 4 + 4])) for at in range(upload.parts)]
    return store.complete(claims, upload.id, etags)


def received(store: FileStore, content: bytes, name: str, length: int | None = None) -> StoredFile:
    filling = store.receive(name, length)
    try:
        filling.write(content)
        file = filling.finish()
    finally:
        filling.close()
    assert isinstance(file, StoredFile)
    return file


def on_disk(store_folder: Path) -> list[str]:
    return sorted(each.name for each in store_folder.rglob("*") if each.is_file() and "sqlite" not in each.name)


def test_a_file_of_a_job_is_there_once_its_parts_are_put_together(store: FileStore, tmp_path: Path) -> None:
    content = b"\x89PNG\r\n\x1a\nand so on"
    upload = begin(store, content, "outputs/r/cat")
    etags = [(at + 1, send(store, upload, at + 1, content[at * 4 : at * 4 + 4])) for at in reversed(range(5))]
    assert store.find("r", 1, "outputs/r/cat") is None
    file = store.complete(CLAIMS, upload.id, etags)
    assert file == StoredFile("outputs/r/cat", digest(content), 17, sha256(content).hexdigest(), "image/png")
    assert store.read(file) == content
    assert store.complete(CLAIMS, upload.id, etags) == file == store.find("r", 1, "outputs/r/cat")
    assert store.of_job("r", 1) == {"outputs/r/cat": file}
    assert on_disk(tmp_path) == [file.blake3]


def test_what_comes_with_another_content_than_announced_is_no_file(store: FileStore, tmp_path: Path) -> None:
    upload = begin(store, b"abcd")
    etag = send(store, upload, 1, b"abcx")
    with pytest.raises(Refusal, match="another content"):
        store.complete(CLAIMS, upload.id, [(1, etag)])
    assert store.of_job("r", 1) == {}
    assert on_disk(tmp_path) == []


def test_a_part_that_still_comes_in_when_its_file_is_put_together_changes_nothing(store: FileStore) -> None:
    upload = begin(store, b"good", "a.txt", CLAIMS)
    late = store.part(upload.id, 1, 4)
    late.write(b"g")
    file = store.complete(CLAIMS, upload.id, [(1, send(store, upload, 1, b"good"))])
    with pytest.raises(Refusal, match="takes no more bytes"):
        late.write(b"rue")
    with pytest.raises(Refusal, match="takes no more bytes"):
        late.finish()
    late.close()
    assert store.read(file) == b"good"
    with pytest.raises(Refusal, match="no part 1 to be sent"):
        store.part(upload.id, 1, 4)


@pytest.mark.parametrize("etags", [[], [(1, "x")], [(2, "")], [(1, ""), (2, "")]])
def test_parts_that_did_not_come_are_not_put_together(store: FileStore, etags: list[tuple[int, str]]) -> None:
    upload = begin(store, b"abcdef")
    send(store, upload, 1, b"abcd")
    with pytest.raises(Refusal, match="parts"):
        store.complete(CLAIMS, upload.id, etags)


@pytest.mark.parametrize(("number", "content"), [(1, b"abc"), (1, b"abcde"), (2, b"ef3"), (3, b"abcd"), (0, b"abcd")])
def test_a_part_has_its_length_and_its_number(store: FileStore, number: int, content: bytes) -> None:
    upload = begin(store, b"abcdef")
    with pytest.raises(Refusal):
        send(store, upload, number, content)


def test_an_upload_is_its_attempts_only(store: FileStore) -> None:
    upload = begin(store, b"abcd")
    etag = send(store, upload, 1, b"abcd")
    with pytest.raises(Refusal, match="no such upload"):
        store.complete(OTHER, upload.id, [(1, etag)])
    with pytest.raises(Refusal, match="no such upload"):
        store.abort(OTHER, upload.id)
    store.abort(CLAIMS, upload.id)
    with pytest.raises(Refusal, match="no such upload"):
        store.complete(CLAIMS, upload.id, [(1, etag)])


def test_a_content_that_its_owner_has_stored_is_not_sent_again(store: FileStore) -> None:
    file = stored(store, b"abcdefgh")
    again = store.begin(OTHER, "b.txt", digest(b"abcdefgh"), 8)
    assert again == file._replace(name="b.txt")
    assert store.find("r", 2, "b.txt") == again


def test_who_only_knows_the_digest_of_anothers_content_does_not_get_it(store: FileStore) -> None:
    stored(store, b"abcdefgh")
    stranger = JobClaims(request_id="s", attempt=1, exp=0, owner="eve")
    assert isinstance(store.begin(stranger, "b.txt", digest(b"abcdefgh"), 8), Upload)


def test_a_job_stores_no_more_than_its_token_allows(store: FileStore) -> None:
    claims = JobClaims(request_id="r", attempt=1, exp=0, max_total_bytes=10, max_bytes_per_file=8)
    with pytest.raises(Refusal, match="at most 8 bytes") as raised:
        begin(store, b"x" * 9, claims=claims)
    assert raised.value.status == 413
    stored(store, b"x" * 6, "a", claims)
    begin(store, b"y" * 4, "b", claims)
    with pytest.raises(Refusal, match="at most 10 bytes together"):
        begin(store, b"z", "c", claims)


def test_the_store_takes_no_more_than_its_limits(tmp_path: Path) -> None:
    store = FileStore(tmp_path, FileLimits(file_bytes=8, quota_bytes=10))
    with pytest.raises(Refusal, match="at most 8"):
        begin(store, b"x" * 9)
    received(store, b"x" * 6, "a")
    with pytest.raises(Refusal, match="may hold 10 bytes") as raised:
        begin(store, b"y" * 5)
    assert raised.value.status == 507
    with pytest.raises(Refusal, match="more than 8"):
        received(store, b"z" * 9, "b")
    store.close()
    full = FileStore(tmp_path / "full", FileLimits(spare_bytes=1 << 60))
    with pytest.raises(Refusal, match="the disk has"):
        begin(full, b"x")
    full.close()


def test_what_comes_unannounced_counts_as_it_comes(tmp_path: Path) -> None:
    store = FileStore(tmp_path, FileLimits(quota_bytes=10))
    first, second = store.receive("a", None), store.receive("b", None)
    first.write(b"x" * 6)
    with pytest.raises(Refusal, match="may hold 10 bytes") as raised:
        second.write(b"y" * 5)
    assert raised.value.status == 507
    second.write(b"y" * 4)
    with pytest.raises(Refusal, match="may hold 10 bytes"):
        begin(store, b"z")
    first.finish()
    with pytest.raises(Refusal, match="may hold 10 bytes"):
        first.write(b"x")
    for each in (first, second):
        each.close()
    received(store, b"z" * 4, "c", 4)
    store.close()


def test_files_that_come_at_once_share_the_room_that_is_left(tmp_path: Path) -> None:
    store = FileStore(tmp_path, FileLimits(quota_bytes=10))
    first = store.receive("a", 6)
    with pytest.raises(Refusal, match="may hold 10 bytes"):
        store.receive("b", 6)
    first.close()
    store.receive("b", 6).close()
    store.close()


@pytest.mark.parametrize("announced", ["upload", "input"])
def test_the_disk_is_not_promised_twice(tmp_path: Path, announced: str) -> None:
    size = disk_usage(tmp_path).free * 6 // 10
    store = FileStore(tmp_path, FileLimits(file_bytes=1 << 60, spare_bytes=0))
    claims = JobClaims(request_id="r", attempt=1, exp=0)
    let_go: Callable[[], None]
    if announced == "upload":
        upload = store.begin(claims, "a", "0" * 64, size)
        assert isinstance(upload, Upload)
        let_go = partial(store.abort, claims, upload.id)
    else:
        let_go = store.receive("a", size).close
    with pytest.raises(Refusal, match=f"{size} of which are promised"):
        store.receive("b", size)
    with pytest.raises(Refusal, match=f"{size} of which are promised"):
        store.begin(claims, "b", "1" * 64, size)
    let_go()
    store.begin(claims, "b", "1" * 64, size)
    store.close()


def test_a_callers_file_is_there_when_it_is_whole_and_replaces_the_one_before(store: FileStore, now: Now) -> None:
    first = received(store, b"hello", "in/a.txt", 5)
    assert first == StoredFile("in/a.txt", digest(b"hello"), 5, sha256(b"hello").hexdigest(), "text/plain")
    with pytest.raises(Refusal, match="5 bytes were announced, 3 came"):
        received(store, b"hel", "in/a.txt", 5)
    assert store.find("", 0, "in/a.txt") == first
    second = received(store, b"other", "in/a.txt")
    assert store.find("", 0, "in/a.txt") == second
    store.forget([])
    with pytest.raises(Refusal, match="gone"):
        store.open(first)
    now.time = 21.0
    store.forget([])
    assert store.find("", 0, "in/a.txt") is None


@pytest.mark.parametrize(
    "name",
    ["", "/", "..", "a/../../etc/passwd", "a\0b", "a\\b", "x" * 256, "a\nb", "ab/" * 400, "http://x/y", "\ud800"],
)
def test_a_name_that_leads_elsewhere_is_refused(store: FileStore, name: str) -> None:
    with pytest.raises(Refusal) as raised:
        begin(store, b"abcd", name)
    assert raised.value.status == 400
    with pytest.raises(Refusal):
        store.receive(name, None)


def test_what_is_forgotten_leaves_nothing_on_the_disk(store: FileStore, tmp_path: Path, now: Now) -> None:
    shared = JobClaims(request_id="s", attempt=1, exp=0, owner="ada")
    stored(store, b"abcdefgh")
    store.begin(shared, "b", digest(b"abcdefgh"), 8)
    begin(store, b"unfinished")
    store.forget(["r"])
    assert store.jobs() == ["s"]
    assert on_disk(tmp_path) == [digest(b"abcdefgh")]
    begin(store, b"never ended", claims=shared)
    now.time = 11.0
    store.forget([])
    assert on_disk(tmp_path) == [digest(b"abcdefgh")]
    store.forget(store.jobs())
    assert on_disk(tmp_path) == []


def test_what_a_caller_stores_to_publish_it_stays_until_that_is_done_or_nobody_does(
    store: FileStore, tmp_path: Path, now: Now
) -> None:
    caller = JobClaims(request_id=CALLER, attempt=HELD, exp=0)
    stored(store, b"rows", "1/rows", caller)
    stored(store, b"more", "2/rows", caller)
    store.adopt("dataset/one", HELD, "rows", digest(b"rows"), "")
    store.forget(store.jobs())
    assert store.jobs() == []
    assert on_disk(tmp_path) == sorted((digest(b"rows"), digest(b"more")))
    now.time = 11.0
    store.forget([])
    assert on_disk(tmp_path) == [digest(b"rows")], "what was published stays"


def test_uploads_of_attempts_that_are_over_are_given_up(store: FileStore, tmp_path: Path) -> None:
    file = stored(store, b"abcdefgh")
    upload = begin(store, b"1234", "b")
    assert store.unfinished() == [upload]
    store.give_up([upload.id])
    assert store.unfinished() == []
    assert on_disk(tmp_path) == [file.blake3]


def test_a_store_that_was_killed_goes_on_where_it_was(store: FileStore, tmp_path: Path) -> None:
    file = stored(store, b"abcdefgh")
    upload = begin(store, b"123456", "b")
    first = send(store, upload, 1, b"1234")
    store.receive("half", None)  # never closed
    (tmp_path / "files" / "blobs" / "ab").mkdir(exist_ok=True)
    (tmp_path / "files" / "blobs" / "ab" / ("ab" * 32)).write_bytes(b"was not named yet")
    again = FileStore(tmp_path / "files", LIMITS)
    assert on_disk(tmp_path) == sorted([file.blake3, upload.id])
    assert again.complete(CLAIMS, upload.id, [(1, first), (2, send(again, upload, 2, b"56"))]).size_bytes == 6
    again.close()


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path) -> Iterator[OfferedModels]:
    made = OfferedModels(SIGNER, tmp_path / "models.sqlite", base_url="http://here", clock=lambda: 100.0)
    yield made
    made.close()


def folder_of(place: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text)
    return place


def test_a_folder_is_described_with_signed_urls_and_the_digest_that_workers_make_of_it(
    models: OfferedModels, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "tiny", {"model_index.json": "{}", "unet/a b.safetensors": "weights", ".git/x": "-"})
    model = models.add("acme/tiny", folder)
    described = models.snapshot("acme/tiny")
    assert described is not None
    assert [(file.path, file.size_bytes) for file in described.files] == [
        ("model_index.json", 2),
        ("unet/a b.safetensors", 7),
    ]
    listed = {"model_index.json": b"{}", "unet/a b.safetensors": b"weights"}
    assert described.digest == model.digest == f"blake3:{tree_digest(contents(listed))}"
    url = described.files[1].url
    hexdigits = model.digest.removeprefix("blake3:")
    assert url.startswith(f"http://here/v1/models/{hexdigits}/unet/a%20b.safetensors?expires=21700&signature=")
    descriptor, file = models.open(hexdigits, "unet/a b.safetensors")
    assert (os.read(descriptor, 100), file.size_bytes) == (b"weights", 7)
    os.close(descriptor)
    assert models.snapshot("acme/other") is None


def test_only_the_files_of_an_offered_model_are_given_and_only_as_they_were(
    models: OfferedModels, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "tiny", {"a": "1"})
    digest = models.add("acme/tiny", folder).digest.removeprefix("blake3:")
    for wanted in [(digest, "../models.sqlite"), (digest, ".git/x"), ("0" * 64, "a"), (digest, "/a"), (digest, "")]:
        with pytest.raises(Refusal, match="no such file"):
            models.open(*wanted)
    (folder / "a").write_text("22")
    with pytest.raises(Refusal, match="has changed"):
        models.open(digest, "a")
    (folder / "a").unlink()
    with pytest.raises(Refusal, match="cannot be read"):
        models.open(digest, "a")


def test_links_count_for_files_inside_and_lead_nowhere_else(models: OfferedModels, tmp_path: Path) -> None:
    cache = folder_of(tmp_path / "models--acme--tiny", {"blobs/b1": "weights", "snapshots/c/config.json": "{}"})
    (cache / "snapshots/c/model.safetensors").symlink_to("../../blobs/b1")
    assert models.add("acme/tiny", cache / "snapshots/c").size_bytes == 9
    (cache / "snapshots/c/x.safetensors").symlink_to("/etc/passwd")
    with pytest.raises(ModelFolderError, match="lies elsewhere"):
        models.add("acme/tiny", cache / "snapshots/c")


@pytest.mark.parametrize("files", [{}, {"a\nb": "1"}, {"A": "1", "a": "2"}])
def test_a_folder_that_workers_would_refuse_is_no_model(
    models: OfferedModels, tmp_path: Path, files: dict[str, str]
) -> None:
    (tmp_path / "tiny").mkdir()
    with pytest.raises(ModelFolderError):
        models.add("acme/tiny", folder_of(tmp_path / "tiny", files))
    with pytest.raises(ModelFolderError, match="no folder"):
        models.add("acme/tiny", tmp_path / "absent")


def test_what_was_read_once_is_not_read_again(models: OfferedModels, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "tiny", {"a": "1"})
    model = models.add("acme/tiny", folder)
    changed = (folder / "a").stat().st_mtime_ns
    (folder / "a").write_text("2")
    os.utime(folder / "a", ns=(changed, changed))  # as nobody does who does not mean it
    again = OfferedModels(SIGNER, tmp_path / "models.sqlite")
    assert again.add("acme/tiny", folder).digest == model.digest
    again.close()
