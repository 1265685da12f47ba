"""Which pieces of a file are there, and what an answer brings of them."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.fetch.network.answers import Body, ChangedError, Known, WrongError, read_answer, strong
from gen_worker.fetch.network.digests import digest_of
from gen_worker.fetch.network.part import Identity, matches
from gen_worker.fetch.network.pieces import Piece, Pieces
from gen_worker.models.manifest import ManifestFile

# --- pieces -----------------------------------------------------------------------------------------------------------


@given(size=st.integers(0, 200), piece_bytes=st.integers(1, 50), seed=st.randoms())
def test_every_byte_is_claimed_once_and_the_prefix_grows_to_the_size(size: int, piece_bytes: int, seed: object) -> None:
    pieces = Pieces(size, piece_bytes)
    claimed: list[Piece] = []
    while (piece := pieces.claim()) is not None:
        claimed.append(piece)
    assert [at for piece in claimed for at in range(piece.start, piece.end or 0)] == list(range(size))
    seed.shuffle(claimed)  # type: ignore[attr-defined]
    prefix = pieces.prefix
    for piece in claimed:
        assert not pieces.complete
        pieces.finish(piece.number)
        assert pieces.prefix >= prefix
        prefix = pieces.prefix
    assert pieces.complete
    assert pieces.prefix == size


@given(size=st.integers(1, 200), piece_bytes=st.integers(1, 50), data=st.data())
def test_what_was_there_before_is_not_claimed_again(size: int, piece_bytes: int, data: st.DataObject) -> None:
    count = -(-size // piece_bytes)
    numbers = data.draw(st.sets(st.integers(0, count - 1)))
    there = {each: data.draw(st.integers(1, min(piece_bytes, size - each * piece_bytes))) for each in numbers}
    pieces = Pieces(size, piece_bytes, there)
    assert pieces.found_bytes == sum(there.values())
    claimed: list[Piece] = []
    while (piece := pieces.claim()) is not None:
        claimed.append(piece)
    found = {at for number, came in there.items() for at in range(number * piece_bytes, number * piece_bytes + came)}
    lacking = [at for piece in claimed for at in range(piece.start, piece.end or 0)]
    assert lacking == sorted(set(range(size)) - found)
    assert pieces.complete == (not claimed)
    for piece in claimed:
        pieces.finish(piece.number)
    assert pieces.complete


def test_a_piece_of_which_some_is_there_is_not_gone_on_with_from_the_one_before_it() -> None:
    pieces = Pieces(30, 10, {1: 4})
    assert pieces.claim() == Piece(0, 0, 10)
    assert pieces.claim_this(1) is None
    assert pieces.claim() == Piece(1, 14, 20)


def test_a_file_of_unknown_size_is_one_piece_until_its_size_is_known() -> None:
    pieces = Pieces(None, 10)
    assert pieces.claim() == Piece(0, 0, None)
    assert pieces.claim() is None
    pieces.size = 25
    assert pieces.piece(0) == Piece(0, 0, 10)
    assert pieces.claim_this(2) == Piece(2, 20, 25)
    assert pieces.claim() == Piece(1, 10, 20)
    assert (pieces.claim(), pieces.claim_this(2), pieces.claim_this(3)) == (None, None, None)
    for number in range(3):
        pieces.finish(number)
    assert pieces.complete


# --- answers ----------------------------------------------------------------------------------------------------------

KNOWN = Known(wanted_size=100, size=None, etag='"a"')


def ranged(text: str, **headers: str) -> Mapping[str, str]:
    return {"content-range": text, **headers}


def test_a_range_that_was_asked_for_is_taken() -> None:
    assert read_answer(206, ranged("bytes 10-19/100", etag='"a"'), 10, 20, KNOWN) == Body(10, 20, 100, '"a"', True)
    assert read_answer(206, ranged("bytes 10-14/*"), 10, 20, KNOWN) == Body(10, 15, None, "", True)


def test_the_whole_file_is_taken_where_nothing_came_before() -> None:
    assert read_answer(200, {"content-length": "100"}, 0, 20, KNOWN) == Body(0, 100, 100, "", False)
    assert read_answer(200, {}, 0, None, Known()) == Body(0, None, None, "", False)


@pytest.mark.parametrize("length", ["\xb2", "-5", "5, 5", "0x5", "", "9" * 19, "9" * 5000])
def test_a_length_that_is_no_number_of_bytes_is_none(length: str) -> None:
    assert read_answer(200, {"content-length": length}, 0, None, Known()) == Body(0, None, None, "", False)
    part = read_answer(206, ranged("bytes 10-19/100", **{"content-length": length}), 10, 20, KNOWN)
    assert part == Body(10, 20, 100, "", True)


def test_an_empty_file_has_no_range() -> None:
    assert read_answer(416, ranged("bytes */0"), 0, 10, Known()) == Body(0, 0, 0, "", False)


@pytest.mark.parametrize(
    ("status", "headers", "start"),
    [
        (200, {"content-length": "100"}, 10),
        (200, {"content-encoding": "gzip"}, 0),
        (206, {}, 10),
        (206, ranged("bytes 11-19/100"), 10),
        (206, ranged("bytes 10-20/100"), 10),
        (206, ranged("bytes 10-9/100"), 10),
        (206, ranged("bytes 10-19/15"), 10),
        (206, ranged("bytes */100"), 10),
        (206, ranged("items 10-19/100"), 10),
        (206, ranged("bytes 10-19/100", **{"content-length": "5"}), 10),
        (206, ranged("bytes 10-19/100", etag='"b"'), 10),
        (206, ranged("bytes 10-1" + "9" * 30 + "/100"), 10),
        (416, ranged("bytes */100"), 10),
        (416, {}, 0),
    ],
)
def test_what_does_not_fit_to_what_came_before_is_a_change(status: int, headers: Mapping[str, str], start: int) -> None:
    with pytest.raises(ChangedError):
        read_answer(status, headers, start, 20, KNOWN)


def test_another_size_is_wrong_where_a_manifest_says_it_and_a_change_where_an_answer_did() -> None:
    with pytest.raises(WrongError, match="it has 101 bytes there, not 100"):
        read_answer(206, ranged("bytes 10-19/101"), 10, 20, KNOWN)
    with pytest.raises(ChangedError, match="it has 101 bytes now, not 100"):
        read_answer(206, ranged("bytes 10-19/101"), 10, 20, Known(size=100))


@given(st.integers(100, 599), st.dictionaries(st.sampled_from(["content-range", "etag", "content-length"]), st.text()))
def test_no_answer_is_taken_for_bytes_that_were_not_asked_for(status: int, headers: dict[str, str]) -> None:
    try:
        body = read_answer(status, headers, 10, 20, KNOWN)
    except (ChangedError, WrongError):
        return
    assert body.start == 10
    assert body.end is not None
    assert body.end <= 20


@pytest.mark.parametrize("etag", ["", "a", '"', '""', 'W/"a"', '"a\n"', '"ä"', '"a'])
def test_only_a_strong_etag_stands_for_the_content(etag: str) -> None:
    assert strong(etag) == ""
    assert strong('"a"') == '"a"'


# --- parts ------------------------------------------------------------------------------------------------------------

DIGEST = "a" * 64
FOUND = Identity(100, "blake3", DIGEST, '"a"', 10, "boot")
UNDIGESTED = Identity(100, "", "", '"a"', 10, "boot")


@pytest.mark.parametrize(
    ("identity", "file", "boot", "expected"),
    [
        (FOUND, ManifestFile("f", 100, "blake3", DIGEST), "boot", True),
        (FOUND, ManifestFile("f", 100, "blake3", DIGEST), "another", True),
        (FOUND, ManifestFile("f", None, "blake3", DIGEST), "boot", True),
        (FOUND, ManifestFile("f", 101, "blake3", DIGEST), "boot", False),
        (FOUND, ManifestFile("f", 100, "sha256", DIGEST), "boot", False),
        (FOUND, ManifestFile("f", 100, "blake3", "b" * 64), "boot", False),
        (FOUND, ManifestFile("f", 100), "boot", False),
        (UNDIGESTED, ManifestFile("f", 100), "boot", True),
        (UNDIGESTED, ManifestFile("f", 100), "another", False),
        (UNDIGESTED, ManifestFile("f", 100), "", False),
        (UNDIGESTED, ManifestFile("f", 100, "blake3", DIGEST), "boot", False),
        (Identity(100, "", "", "", 10, "boot"), ManifestFile("f", 100), "boot", False),
    ],
)
def test_a_part_is_used_for_what_it_is_a_part_of(
    identity: Identity, file: ManifestFile, boot: str, expected: bool
) -> None:
    assert matches(identity, file, boot) is expected


def test_a_digest_of_git_is_that_of_a_blob() -> None:
    digest = digest_of("git-sha1", 6)
    digest.update(memoryview(b"hello\n"))
    assert digest.hexdigest() == "ce013625030ba8dba906f756967f9e9ca394464a"  # `echo hello | git hash-object --stdin`
