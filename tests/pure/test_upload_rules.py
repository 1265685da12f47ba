"""How large files may be, how long tries wait, and what is read from a token."""

import base64
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.fetch.uploading.failure import UploadError
from gen_worker.fetch.uploading.journal import Journal
from gen_worker.fetch.uploading.limits import Claims, check_size, claims_of
from gen_worker.fetch.uploading.pace import Pace, may_pass, pause_after
from gen_worker.fetch.uploading.places import grant_of
from gen_worker.fetch.uploading.source import Digests
from gen_worker.wire.fetching import Uploaded, UploadFailed
from gen_worker.wire.messages import Save, Saved, Stored
from gen_worker_supervisor.storing import saved


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
