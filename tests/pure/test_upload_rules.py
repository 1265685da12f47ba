"""How large files may be, how long tries wait, and what is read from a token."""

import base64
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.fetcher import Fetcher
from gen_worker.fetch.platform.calls import Calls
from gen_worker.fetch.uploading.asking import Answer
from gen_worker.fetch.uploading.failure import UploadError
from gen_worker.fetch.uploading.journal import Journal
from gen_worker.fetch.uploading.limits import Claims, check_size, claims_of
from gen_worker.fetch.uploading.pace import Pace, may_pass, pause_after
from gen_worker.fetch.uploading.places import grant_of
from gen_worker.fetch.uploading.source import Digests
from gen_worker.fetch.uploading.store import refusal_code
from gen_worker.wire.fetching import Destination, RenewToken, Uploaded, UploadFailed
from gen_worker.wire.messages import Save, Saved, Stored
from gen_worker_supervisor.files.storing import saved


def jwt(payload: object) -> str:
    parts = (json.dumps(each).encode() for each in ({"alg": "none"}, payload))
    return ".".join([*(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts), "signature"])


@pytest.mark.parametrize(
    ("token", "claims"),
    [
        (jwt({"max_total_bytes": 10, "max_bytes_per_file": 5}), Claims(10, 5)),
        (jwt({"max_bytes_per_file": 5.0, "sub": "x"}), Claims(0, 5)),
        (jwt({"max_total_bytes": None, "max_bytes_per_file": -1}), Claims()),
        (jwt({"max_total_bytes": "10"}), Claims()),
        (jwt([1, 2]), Claims()),
        ("opaque", Claims()),
        ("a.b.c", Claims()),
        ("..", Claims()),
        ("", Claims()),
    ],
)
def test_a_token_says_how_much_it_allows(token: str, claims: Claims) -> None:
    assert claims_of(token) == claims


@given(st.text())
def test_no_token_makes_reading_it_fail(token: str) -> None:
    claims_of(token)
    claims_of(f"a.{token}.c")


NESTED = b'{"x":' + b"[" * 100_000


def test_what_is_nested_without_end_says_nothing() -> None:
    assert refusal_code(Answer(500, {}, NESTED, "platform")) == ""
    assert claims_of(f"a.{base64.urlsafe_b64encode(NESTED).decode()}.c") == Claims()


@pytest.mark.parametrize("address", ["platform:8080", "ftp://platform", "http://[::1", "http://platform:99999"])
def test_a_platform_that_nobody_can_ask_ends_nothing_but_its_own_jobs_calls(address: str, tmp_path: Path) -> None:
    calls = Calls(Fetcher(FetchConfig(root=str(tmp_path), hf_cache=str(tmp_path))))
    to = Destination(address, "token", "r", 1)
    calls.end(to)
    assert "not a URL that can be fetched" in calls.renew(RenewToken(1, to, "worker's"), Cancel()).error


@pytest.mark.parametrize(
    ("claims", "operators", "limit", "named"),
    [
        (Claims(), 99, 99, "`WORKER_MAX_UPLOAD_BYTES`"),
        (Claims(max_bytes_per_file=50), 0, 50, "`max_bytes_per_file` of the job's token"),
        (Claims(max_total_bytes=60, max_bytes_per_file=200), 300, 60, "`max_total_bytes` of the job's token"),
    ],
)
def test_a_file_over_a_limit_is_refused_with_the_name_of_the_limit(
    claims: Claims, operators: int, limit: int, named: str
) -> None:
    with pytest.raises(UploadError) as raised:
        check_size("a.bin", 100, claims, operators)
    assert str(raised.value) == f"`a.bin` has 100 bytes, the limit is {limit}: {named}"
    assert (raised.value.kind, raised.value.limit_bytes) == ("too_large", limit)


def test_so_much_is_sent_at_once_and_so_often_is_tried() -> None:
    pace = Pace()
    assert (pace.files, pace.parts_of_a_file, pace.parts, pace.lent_keys_files) == (4, 4, 8, 2)
    assert (pace.part_tries, pace.complete_tries, pace.ask_again_s) == (5, 5, 0.5)
    assert (pace.connect_s, pace.quiet_s, pace.complete_s, pace.poll_s, pace.poll_for_s) == (30, 120, 600, 5, 600)
    assert (pace.shortest_pause_s, pace.longest_pause_s, pace.object_part_bytes) == (0.5, 20, 64 << 20)


def test_a_file_as_long_as_the_limits_is_taken() -> None:
    check_size("a.bin", 100, Claims(100, 100), 100)
    check_size("a.bin", 100, Claims(), 0)


@pytest.mark.parametrize(("failures", "longest"), [(1, 1.5), (2, 4.5), (3, 13.5), (4, 20.0), (50, 20.0)])
def test_a_part_waits_longer_after_each_failure(failures: int, longest: float) -> None:
    asked: list[tuple[float, float]] = []

    def chance(least: float, most: float) -> float:
        asked.append((least, most))
        return most

    assert pause_after(failures, Pace(chance=chance)) == longest
    assert asked == [(0.5, longest)]


@pytest.mark.parametrize(
    ("status", "passes"),
    [(429, True), (500, True), (503, True), (400, False), (403, False), (404, False)],
)
def test_only_some_statuses_are_met_with_another_try(status: int, passes: bool) -> None:
    assert may_pass(status) == passes


def test_what_is_no_grant_is_refused_without_showing_it() -> None:
    with pytest.raises(UploadError) as raised:
        grant_of({"secretAccessKey": "very-secret", "bucket": 1}, "store:1")
    assert "very-secret" not in str(raised.value)
    assert "store:1" in str(raised.value)


ORDER = Save(7, 3, "a.png", 100)


@pytest.mark.parametrize(
    ("report", "told"),
    [
        (
            Uploaded(1, Stored("a.png", 100, sha256="s")),
            Saved(7, 3, "", 100, "s", stored=Stored("a.png", 100, sha256="s")),
        ),
        (
            UploadFailed(1, "auth", "no", retryable=False),
            Saved(7, 3, size_bytes=100, error="no", failure="auth"),
        ),
        (
            UploadFailed(1, "transfer", "no", retryable=True),
            Saved(7, 3, size_bytes=100, error="no", failure="transfer", retryable=True),
        ),
        (
            UploadFailed(1, "too_large", "no", retryable=False, limit_bytes=9),
            Saved(7, 3, size_bytes=100, error="no", failure="too_large", limit_bytes=9),
        ),
        (
            UploadFailed(1, "canceled", "no", retryable=True),
            Saved(7, 3, size_bytes=100, error="no", failure="transfer", retryable=True),
        ),
    ],
)
def test_a_child_is_told_how_its_upload_ended(report: Uploaded | UploadFailed, told: Saved) -> None:
    assert saved(ORDER, report) == told


def test_a_journal_is_read_wherever_its_writer_died() -> None:
    whole = os.memfd_create("journal")
    journal = Journal(whole)
    journal.note_digests(Digests("b" * 64, "s" * 64))
    journal.note_created('{"upload_id":"u"}')
    for number in (2, 1, 3):
        journal.note_part(number, f'"{number}"')
    text = os.pread(whole, 1 << 20, 0)
    lengths = []
    for end in range(len(text) + 1):
        cut = os.memfd_create("cut")
        os.write(cut, text[:end])
        read = Journal(cut)
        read.note_part(9, "later")
        again = Journal(cut)
        assert again.etags == read.etags == {**{at: f'"{at}"' for at in (2, 1, 3)[: len(read.etags) - 1]}, 9: "later"}
        assert (again.digests, again.created) == (read.digests, read.created)
        lengths.append(len(read.etags))
        os.close(cut)
    os.close(whole)
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (1, 4)
