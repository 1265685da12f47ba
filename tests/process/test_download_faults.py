"""What a download makes of each thing that can go wrong at the other end."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.network.part import Identity, Part
from gen_worker.fetch.network.pieces import PIECE_BYTES
from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import Algorithm, ManifestFile
from gen_worker.testing import (
    BadRange,
    ChangingETag,
    Corrupt,
    Cut,
    Expire,
    LoopbackHub,
    NoRange,
    NoSize,
    Oversize,
    Pointer,
    Slow,
    Stall,
    Status,
    Truncate,
)
from tests.downloading import PIECE, SOON, Downloads, Told, content_of, listed, manifest, signed
from tests.served import until

pytestmark = pytest.mark.process

CONTENT = content_of(10 * PIECE + 1234)
FILE = "*.safetensors"


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def downloads(tmp_path: Path) -> Downloads:
    (tmp_path / "cache").mkdir()
    return Downloads(tmp_path / "cache")


def failure(downloads: Downloads, file: ManifestFile, **options: object) -> ModelError:
    """Return how a download fails; whatever that is, nothing is visible and people are told ref and file."""
    with pytest.raises(ModelError) as caught:
        downloads.run(file, **options)  # type: ignore[arg-type]
    assert not downloads.to.exists()
    assert "?" not in f"{caught.value}{caught.value.hint}"
    assert "`unet/w.safetensors` of `acme/tiny`" in str(caught.value)
    assert (caught.value.ref, caught.value.file) == ("acme/tiny", "unet/w.safetensors")
    return caught.value


def is_whole(downloads: Downloads, content: bytes = CONTENT) -> bool:
    return downloads.names == ["blob"] and downloads.to.read_bytes() == content


# --- what goes well ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["blake3", "sha256", "git-sha1", ""])
@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 10 * PIECE + 1234])
def test_a_file_of_any_size_and_digest_comes_once(
    hub: LoopbackHub, downloads: Downloads, size: int, algorithm: Algorithm
) -> None:
    content = CONTENT[:size]
    assert downloads.run(listed(hub, content, algorithm=algorithm)) == size
    assert is_whole(downloads, content)
    assert downloads.told.there == size == hub.wire_bytes(FILE)
    assert (downloads.told.retries, downloads.told.lost) == (0, 0)


@pytest.mark.parametrize("size", [0, 1, PIECE, 3 * PIECE + 7])
def test_a_file_of_unknown_size_comes_once(hub: LoopbackHub, downloads: Downloads, size: int) -> None:
    assert downloads.run(listed(hub, CONTENT[:size], algorithm="", sized=False)) == size
    assert is_whole(downloads, CONTENT[:size])
    assert downloads.told.there == size


@pytest.mark.parametrize("size", [0, 1, PIECE, 3 * PIECE + 7])
def test_a_file_that_nobody_says_the_size_of_comes_once(hub: LoopbackHub, downloads: Downloads, size: int) -> None:
    file = listed(hub, CONTENT[:size], algorithm="sha256", sized=False)
    hub.fail(FILE, NoRange())
    hub.fail(FILE, NoSize())
    assert downloads.run(file) == size
    assert is_whole(downloads, CONTENT[:size])


def test_a_large_file_comes_over_several_connections_that_are_kept(hub: LoopbackHub, downloads: Downloads) -> None:
    downloads.run(listed(hub, CONTENT))
    ranges = [request.range for request in hub.requests if request.origin == "cdn"]
    assert len(ranges) == 11
    redirects = [request for request in hub.requests if request.origin == "hub"]
    assert len(redirects) <= 4  # where it leads to is asked once and remembered


def test_a_file_that_is_there_is_not_fetched(hub: LoopbackHub, downloads: Downloads) -> None:
    file = listed(hub, CONTENT)
    downloads.to.write_bytes(CONTENT)
    assert downloads.run(file) == 0
    assert downloads.told.there == len(CONTENT)
    assert hub.requests == []


# --- what passes ------------------------------------------------------------------------------------------------------


@pytest.mark.promise(24)
def test_a_connection_that_is_cut_goes_on_where_it_ended(hub: LoopbackHub, downloads: Downloads) -> None:
    file = listed(hub, CONTENT)
    hub.fail(FILE, Cut(after=1000), times=5)
    assert downloads.run(file) == len(CONTENT)
    assert is_whole(downloads)
    assert hub.wire_bytes(FILE) == len(CONTENT)
    assert downloads.told.retries == 5


@pytest.mark.promise(25)
@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_a_server_that_is_busy_is_asked_again(hub: LoopbackHub, downloads: Downloads, status: int) -> None:
    file = listed(hub, CONTENT)
    hub.fail(FILE, Status(status), times=3)
    hub.fail("resolve:*", Status(status), times=2)
    downloads.run(file)
    assert is_whole(downloads)
    assert downloads.told.retries == 5


@pytest.mark.promise(25)
def test_a_server_is_left_alone_for_as_long_as_it_asks(hub: LoopbackHub, downloads: Downloads) -> None:
    file = listed(hub, CONTENT[:100])
    hub.fail(FILE, Status(429, {"Retry-After": "1"}), times=1)
    began = time.monotonic()
    downloads.run(file)
    assert time.monotonic() - began >= 1.0
    assert is_whole(downloads, CONTENT[:100])


@pytest.mark.promise(24)
@pytest.mark.parametrize("fault", [NoRange(), BadRange(), ChangingETag()])
@pytest.mark.parametrize("algorithm", ["sha256", ""])
def test_a_server_whose_ranges_are_no_good_is_asked_for_the_whole_file(
    hub: LoopbackHub, downloads: Downloads, fault: NoRange | BadRange | ChangingETag, algorithm: Algorithm
) -> None:
    file = listed(hub, CONTENT, algorithm=algorithm)
    hub.fail(FILE, fault)
    downloads.run(file)
    assert is_whole(downloads)
    assert downloads.told.there == len(CONTENT)


def test_a_cut_where_ranges_are_ignored_begins_anew(hub: LoopbackHub, downloads: Downloads) -> None:
    file = listed(hub, CONTENT)
    hub.fail(FILE, NoRange())
    hub.fail(FILE, Cut(after=5 * PIECE), times=1)
    downloads.run(file)
    assert is_whole(downloads)
    assert downloads.told.there == len(CONTENT)
    assert downloads.told.lost == 5 * PIECE


@pytest.mark.promise(24)
def test_a_file_of_unknown_size_that_is_cut_goes_on_where_it_ended(hub: LoopbackHub, downloads: Downloads) -> None:
    file = listed(hub, CONTENT, algorithm="", sized=False)
    hub.fail(FILE, NoRange(), times=1)
    hub.fail(FILE, NoSize(), times=1)
    hub.fail(FILE, Cut(after=3 * PIECE + 10), times=1)
    assert downloads.run(file) == len(CONTENT)
    assert is_whole(downloads)


@pytest.mark.promise(24)
def test_a_file_that_is_replaced_meanwhile_begins_anew(hub: LoopbackHub, downloads: Downloads) -> None:
    file = listed(hub, CONTENT, algorithm="")
    hub.fail(FILE, Slow(bytes_per_s=4 * PIECE), times=6)
    hub.fail(FILE, ChangingETag(), times=1)
    downloads.run(file)
    assert is_whole(downloads)


@pytest.mark.promise(23)
@pytest.mark.parametrize("fault", [Corrupt(at=3 * PIECE + 5), Truncate(to=100), Oversize(by=3)])
def test_a_file_that_is_wrong_once_is_fetched_anew(
    hub: LoopbackHub, downloads: Downloads, fault: Corrupt | Truncate | Oversize
) -> None:
    file = listed(hub, CONTENT[: 3 * PIECE + 100])
    hub.fail(FILE, fault, times=4 if isinstance(fault, Corrupt) else 1)  # there are four pieces
    downloads.run(file)
    assert is_whole(downloads, CONTENT[: 3 * PIECE + 100])


@pytest.mark.promise(25)
def test_a_signed_url_that_ends_is_followed_by_a_fresh_one(hub: LoopbackHub, downloads: Downloads) -> None:
    file = signed(hub, CONTENT)
    hub.fail(FILE, Expire(after=3 * PIECE), times=2)
    asked: list[str] = []

    def fresh(over: ManifestFile, _cancel: Cancel) -> ManifestFile:
        asked.append(over.url)
        return signed(hub, CONTENT)

    downloads.run(file, fresh=fresh, connections=1)
    assert is_whole(downloads)
    assert len(asked) == len(set(asked)) == 2
    assert hub.wire_bytes(FILE) == len(CONTENT)


def test_where_a_redirect_led_is_asked_for_again_when_it_has_ended(hub: LoopbackHub, downloads: Downloads) -> None:
    file = listed(hub, CONTENT)
    hub.fail(FILE, Expire(after=3 * PIECE), times=2)
    downloads.run(file)
    assert is_whole(downloads)
    assert hub.wire_bytes(FILE) == len(CONTENT)


@pytest.mark.promise(26)
def test_a_connection_without_a_byte_is_given_up_for_another(hub: LoopbackHub, downloads: Downloads) -> None:
    file = listed(hub, CONTENT)
    hub.fail(FILE, Stall(after=1000, seconds=60.0), times=1)
    downloads.patience = msgspec.structs.replace(SOON, quiet_s=0.3)
    downloads.run(file)
    assert is_whole(downloads)
    assert downloads.told.retries == 1


@pytest.mark.promise(26)
def test_a_connection_that_is_too_slow_is_given_up_for_another(hub: LoopbackHub, downloads: Downloads) -> None:
    file = listed(hub, CONTENT)
    hub.fail(FILE, Slow(bytes_per_s=2000), times=1)
    downloads.patience = msgspec.structs.replace(SOON, slow_s=0.5)
    began = time.monotonic()
    downloads.run(file)
    assert is_whole(downloads)
    assert time.monotonic() - began < 10.0


# --- what does not pass -----------------------------------------------------------------------------------------------


@pytest.mark.promise(25)
@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, "unauthorized"), (403, "unauthorized"), (404, "file_not_found"), (418, "download_failed")],
)
def test_a_refusal_is_final_at_once(hub: LoopbackHub, downloads: Downloads, status: int, kind: str) -> None:
    file = listed(hub, CONTENT)
    hub.fail("resolve:*", Status(status))
    assert failure(downloads, file).kind == kind
    assert downloads.told.retries == 0


def test_a_failure_is_told_as_what_it_is_while_the_digest_still_follows(hub: LoopbackHub, downloads: Downloads) -> None:
    size = 256 << 20  # whose digest takes many times as long as an answer
    file = msgspec.structs.replace(listed(hub, CONTENT, algorithm="sha256"), size=size)
    count = size // PIECE
    part = Part(downloads.to)
    part.begin(Identity(size, "sha256", file.digest, "", PIECE, ""))
    os.truncate(part.path, size)
    for number in range(count - 1):
        part.note(number, PIECE)
    part.close()
    hub.fail(FILE, Status(404))
    assert failure(downloads, file).kind == "file_not_found"


def test_a_gated_file_is_told_as_such(hub: LoopbackHub, downloads: Downloads) -> None:
    commit = hub.add_repo("acme/tiny", {"unet/w.safetensors": CONTENT}, gated=True)
    file = manifest(CONTENT, f"{hub.url}/acme/tiny/resolve/{commit}/unet/w.safetensors")
    assert failure(downloads, file).kind == "gated"
    downloads.run(file, token=hub.token)
    assert is_whole(downloads)
    assert hub.leaks == []


@pytest.mark.promise(25)
def test_a_server_that_stays_busy_is_given_up_after_all_tries(hub: LoopbackHub, downloads: Downloads) -> None:
    file = listed(hub, CONTENT)
    hub.fail(FILE, Status(503))
    error = failure(downloads, file)
    assert (error.kind, error.retryable) == ("unreachable", True)
    assert downloads.told.retries == 29
    hub.heal()
    hub.fail(FILE, Status(429))
    assert failure(downloads, file).kind == "rate_limited"


def test_nobody_listening_is_told_after_all_tries(hub: LoopbackHub, downloads: Downloads) -> None:
    file = listed(hub, CONTENT)
    hub.close()
    error = failure(downloads, file)
    assert error.kind == "unreachable"
    assert "Connection refused" in str(error)
    assert "HTTPS_PROXY" in error.hint


@pytest.mark.promise(23)
@pytest.mark.parametrize("fault", [Corrupt(at=3 * PIECE + 5), Corrupt(at=0), Truncate(to=100), Oversize(by=3)])
def test_a_file_that_stays_wrong_is_never_seen(
    hub: LoopbackHub, downloads: Downloads, fault: Corrupt | Truncate | Oversize
) -> None:
    file = listed(hub, CONTENT)
    hub.fail(FILE, fault)
    error = failure(downloads, file)
    assert error.kind == "digest_mismatch"
    assert downloads.names == []
    assert downloads.told.there == 0
    assert downloads.told.retries == 2
    if isinstance(fault, Corrupt):
        assert file.digest in str(error)
        assert hub.wire_bytes(FILE) == 3 * len(CONTENT)


def test_a_pointer_instead_of_the_file_is_named(hub: LoopbackHub, downloads: Downloads) -> None:
    file = listed(hub, CONTENT)
    hub.fail(FILE, Pointer())
    error = failure(downloads, file)
    assert error.kind == "digest_mismatch"
    assert "Git LFS pointer" in str(error)
    assert downloads.names == []


def test_a_pointer_is_named_where_nobody_says_what_the_file_is(hub: LoopbackHub, downloads: Downloads) -> None:
    file = listed(hub, CONTENT, algorithm="", sized=False)
    hub.fail(FILE, Pointer())
    assert "Git LFS pointer" in str(failure(downloads, file))


@pytest.mark.promise(25)
def test_a_fresh_url_that_is_no_better_is_told(hub: LoopbackHub, downloads: Downloads) -> None:
    file = signed(hub, CONTENT)
    hub.fail(FILE, Expire())
    asked: list[ManifestFile] = []

    def fresh(over: ManifestFile, _cancel: Cancel) -> ManifestFile:
        asked.append(over)
        return signed(hub, CONTENT)

    assert failure(downloads, file, fresh=fresh).kind == "url_expired"
    assert len(asked) == 1
    assert failure(downloads, file).kind == "url_expired"


@pytest.mark.promise(26)
def test_a_server_that_says_nothing_is_told_as_stalled(hub: LoopbackHub, downloads: Downloads) -> None:
    file = listed(hub, CONTENT)
    hub.fail(FILE, Stall(after=1000, seconds=60.0))
    downloads.stall_timeout_s = 0.5
    downloads.config = FetchConfig(root="", hf_cache="", stall_timeout_s=0.5)
    began = time.monotonic()
    assert failure(downloads, file).kind == "stalled"
    assert time.monotonic() - began < 5.0


def test_what_came_before_it_was_canceled_is_not_fetched_again(hub: LoopbackHub, downloads: Downloads) -> None:
    file = listed(hub, CONTENT)
    cancel = Cancel()
    downloads.told = Told(at_bytes=5 * PIECE, then=cancel.set)
    with pytest.raises(ModelError, match="canceled"):
        downloads.run(file, cancel=cancel)
    assert downloads.names == ["blob.part", "blob.part.map"]
    downloads.told = Told()
    assert downloads.run(file) <= len(CONTENT) - 1 * PIECE
    assert is_whole(downloads)
    assert downloads.told.there == len(CONTENT)
    assert downloads.told.each[0] >= PIECE


@pytest.mark.parametrize("algorithm", ["sha256", ""])
def test_what_came_of_a_small_file_before_it_was_canceled_is_not_fetched_again(
    hub: LoopbackHub, downloads: Downloads, algorithm: Algorithm
) -> None:
    content = content_of(14 << 20)  # more than a socket holds after it was shut down
    file = listed(hub, content, algorithm=algorithm)
    cancel = Cancel()
    downloads.told = Told(at_bytes=3 << 20, then=cancel.set)
    with pytest.raises(ModelError, match="canceled"):
        downloads.run(file, cancel=cancel, piece_bytes=PIECE_BYTES)
    there = downloads.told.there
    downloads.told = Told()
    assert downloads.run(file, piece_bytes=PIECE_BYTES) == len(content) - there
    assert is_whole(downloads, content)
    assert downloads.told.each[0] == there


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [Stall(after=1000, seconds=60.0), Slow(bytes_per_s=2000), Status(503, {"Retry-After": "60"})]
)
def test_a_download_ends_soon_after_it_is_canceled(
    hub: LoopbackHub, downloads: Downloads, fault: Stall | Slow | Status
) -> None:
    file = listed(hub, CONTENT)
    hub.fail(FILE, fault)
    cancel = Cancel()
    ended: list[ModelError] = []

    def run() -> None:
        with pytest.raises(ModelError) as caught:
            downloads.run(file, cancel=cancel)
        ended.append(caught.value)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: any(request.origin == "cdn" and request.status for request in hub.requests), what="an answer")
    began = time.monotonic()
    cancel.set()
    thread.join()
    assert time.monotonic() - began < 0.2
    assert ended[0].kind == "canceled"
    assert not downloads.to.exists()
