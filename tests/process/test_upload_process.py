"""Uploads through the real fetcher: whole, resumed after its death, ended when they shall, and secret."""

import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from gen_worker.testing import Corrupt, LoopbackStore, Slow, Stall, Status
from gen_worker.wire.fetching import Uploaded, UploadFailed
from tests.storing import REF, content_of, destination, noted_parts, storing

pytestmark = pytest.mark.process
PART = 4 << 20


def test_thirty_megabytes_of_shared_memory_arrive_whole_in_parts(tmp_path: Path) -> None:
    content = content_of(30_000_000)
    with LoopbackStore(part_bytes=PART) as store, storing(tmp_path) as supervisor:
        end = supervisor.end(supervisor.begin(destination(store), content))
        assert isinstance(end, Uploaded), end
        file = store.files[REF]
        assert file.content == content
        assert (end.stored.ref, end.stored.size_bytes, end.stored.owner) == (REF, len(content), "acme")
        assert (end.stored.sha256, end.stored.blake3) == (file.sha256, file.blake3)
        assert end.stored.media_id == file.media_id
        assert len(store.seen("part:*")) == 8
        assert store.leaks == []


def test_progress_is_told_and_never_more_than_ten_times_a_second(tmp_path: Path) -> None:
    content = content_of(2 << 20)
    with LoopbackStore(part_bytes=1 << 20) as store, storing(tmp_path) as supervisor:
        store.fail("part:*", Slow(2 << 20))
        began = time.monotonic()
        assert isinstance(supervisor.end(supervisor.begin(destination(store), content)), Uploaded)
        done = [report.bytes_done for report in supervisor.progress]
        assert 1 <= len(done) <= 10 * (time.monotonic() - began) + 2
        assert all(one <= other for one, other in pairwise(done))
        assert {report.bytes_total for report in supervisor.progress} == {len(content)}


def test_after_the_death_of_its_fetcher_no_part_is_sent_twice(tmp_path: Path) -> None:
    content = content_of(5 * PART + 17)
    with LoopbackStore(part_bytes=PART) as store, storing(tmp_path) as supervisor:
        store.fail("part:*:4", Stall(1 << 20, 60.0))
        number = supervisor.begin(destination(store), content)
        supervisor.until(lambda: noted_parts(os.getpid()) == 5, what="5 stored parts")
        os.kill(supervisor.process.pid, signal.SIGKILL)
        store.heal()
        end = supervisor.end(number)
        assert isinstance(end, Uploaded), end
        assert supervisor.lost == 1
        assert store.files[REF].content == content
        stored = [each.target for each in store.requests if each.status == 200]
        assert sorted(stored) == [f"complete:{REF}", f"create:{REF}", *(f"part:{REF}:{at}" for at in range(1, 7))]


def test_an_upload_that_three_fetchers_died_of_fails_and_may_be_tried_again(tmp_path: Path) -> None:
    with LoopbackStore() as store, storing(tmp_path) as supervisor:
        store.fail("part:*", Stall(10, 60.0))
        number = supervisor.begin(destination(store), content_of(1000))
        for death in range(1, 4):

            def is_under_way(tries: int = death) -> bool:
                return len(store.seen("part:*")) == tries

            supervisor.until(is_under_way, what=f"try {death}")
            os.kill(supervisor.process.pid, signal.SIGKILL)
        end = supervisor.end(number)
        assert isinstance(end, UploadFailed)
        assert (end.kind, end.retryable) == ("transfer", True)
        assert "3 fetchers died" in end.message


def test_an_aborted_upload_ends_at_once_and_the_store_is_told(tmp_path: Path) -> None:
    with LoopbackStore() as store, storing(tmp_path) as supervisor:
        store.fail("part:*", Stall(10, 60.0))
        number = supervisor.begin(destination(store), content_of(1000))
        supervisor.until(lambda: store.seen("part:*"), what="a part on its way")
        supervisor.uploads.abort(number)
        end = supervisor.end(number)
        assert isinstance(end, UploadFailed)
        assert end.kind == "canceled"
        supervisor.until(lambda: store.uploads == [], what="the store's being told")
        assert store.files == {}


def test_what_the_store_says_of_a_file_is_compared_with_what_was_sent(tmp_path: Path) -> None:
    with LoopbackStore() as store, storing(tmp_path) as supervisor:
        store.fail("complete:*", Corrupt())
        end = supervisor.end(supervisor.begin(destination(store), content_of(1000)))
        assert isinstance(end, UploadFailed)
        assert (end.kind, end.retryable) == ("transfer", True)
        assert f"`{REF}` is not what was sent: its blake3 at " in end.message


@pytest.mark.promise(39)
def test_no_secret_is_seen_anywhere_but_at_the_store(tmp_path: Path) -> None:
    with LoopbackStore() as store, storing(tmp_path) as supervisor:
        fetcher = Path(f"/proc/{supervisor.process.pid}")
        store.fail("part:*", Status(403))
        end = supervisor.end(supervisor.begin(destination(store), content_of(1000)))
        assert isinstance(end, UploadFailed)
        assert "answers 403" in end.message
        seen = [supervisor.log, end.message, repr(end)]
        seen += [(fetcher / name).read_text(errors="replace") for name in ("cmdline", "environ")]
        [part] = store.seen("part:*")
        for secret in (store.token, part.parameters["X-Signature"]):
            assert not [text for text in seen if secret in text]
        assert store.leaks == []


def test_many_small_files_at_once_are_all_stored(tmp_path: Path) -> None:
    with LoopbackStore() as store, storing(tmp_path) as supervisor:
        contents = {f"many/{at}.bin": content_of(1000 + at, at) for at in range(40)}
        numbers = [supervisor.begin(destination(store), content, ref) for ref, content in contents.items()]
        assert all(isinstance(supervisor.end(number), Uploaded) for number in numbers)
        assert {ref: file.content for ref, file in store.files.items()} == contents


def test_a_ref_that_is_too_long_for_a_frame_fails_its_upload_only(tmp_path: Path) -> None:
    with LoopbackStore() as store, storing(tmp_path) as supervisor:
        end = supervisor.end(supervisor.begin(destination(store), b"x", "/".join(["y" * 250] * 300)))
        assert isinstance(end, UploadFailed)
        assert "cannot be passed on" in end.message
        assert isinstance(supervisor.end(supervisor.begin(destination(store), b"x")), Uploaded)


def test_a_file_over_the_operators_limit_is_refused_before_a_byte_is_sent(tmp_path: Path) -> None:
    with LoopbackStore() as store, storing(tmp_path, max_upload_bytes=999) as supervisor:
        end = supervisor.end(supervisor.begin(destination(store), content_of(1000)))
        assert isinstance(end, UploadFailed)
        assert (end.kind, end.limit_bytes) == ("too_large", 999)
        assert end.message == f"`{REF}` has 1000 bytes, the limit is 999: `WORKER_MAX_UPLOAD_BYTES`"
        assert store.requests == []
