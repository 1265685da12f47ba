"""No name from outside ever leads out of the folder that it is put into."""

import os.path
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import Algorithm
from gen_worker.models.paths import check_commit, check_digest, check_path, check_paths

HOSTILE = [
    "",
    ".",
    "..",
    "../x",
    "a/../../x",
    "a/..",
    "a/./b",
    "/etc/passwd",
    "//x",
    "a//b",
    "a/",
    "a\\b",
    "..\\x",
    "C:x",
    "c:/x",
    "a\0b",
    "a\nb",
    "a\x7fb",
    "a\x9bb",
    "a\u2028b",
    "a\ud800b",
    "x" * 256,
    "ä" * 128,
    "/".join(["x" * 200] * 6),
]


@pytest.mark.promise(37)
@pytest.mark.parametrize("path", HOSTILE)
def test_a_hostile_path_is_refused(path: str) -> None:
    with pytest.raises(ModelError, match="the provider names a file") as caught:
        check_path(path)
    assert caught.value.kind == "bad_manifest"
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "path", ["a", "a/b.c", ".gitattributes", "unet/模型 (1).safetensors", "..a/b..", "aa:b", "x" * 255]
)
def test_an_ordinary_path_is_taken_as_it_is(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.promise(37)
@given(st.text(alphabet=st.sampled_from("ab./\\:\0\n é\u0301~C"), max_size=30) | st.text(max_size=30))
def test_nothing_that_is_accepted_escapes(path: str) -> None:
    try:
        check_path(path)
    except ModelError:
        return
    whole = os.path.normpath(os.path.join("/cache/snapshot", path))
    assert whole == f"/cache/snapshot/{path}"
    assert not any(unicodedata.category(letter) == "Cc" for letter in path)
    assert all(0 < len(os.fsencode(part)) <= 255 for part in path.split("/"))


@pytest.mark.promise(37)
@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/b", "a/b"], "a/b"),
        (["a/Model.json", "A/model.JSON"], "model.JSON"),
        (["é", "e\u0301"], "e\u0301"),
        (["straße", "STRASSE"], "STRASSE"),
        (["a", "a/b"], "a/b"),
        (["A/x", "a"], "A/x"),
        (["a/b/c", "a/b"], "a/b/c"),
    ],
)
def test_paths_that_cannot_lie_together_are_refused(paths: list[str], names: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_paths(paths)
    assert caught.value.kind == "bad_manifest"
    assert names in str(caught.value)


def test_paths_that_can_lie_together_are_taken() -> None:
    paths = ("a/b", "a/c", "ab", "a.b", "unet/config.json", "vae/config.json")
    assert check_paths(paths) == paths
    assert check_paths([]) == ()


@given(st.lists(st.text(alphabet="aAbB/", min_size=1, max_size=5), max_size=6))
def test_no_accepted_path_is_below_another(paths: list[str]) -> None:
    try:
        accepted = check_paths(paths)
    except ModelError:
        return
    folded = [path.casefold() for path in accepted]
    assert len(set(folded)) == len(folded)
    assert not any(other.startswith(f"{path}/") for path in folded for other in folded)


# --- digests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "digits"), [("blake3", 64), ("sha256", 64), ("git-sha1", 40)])
def test_a_digest_has_its_algorithms_length_and_lower_case(algorithm: Algorithm, digits: int) -> None:
    assert check_digest(algorithm, "AB" * (digits // 2)) == "ab" * (digits // 2)
    assert check_digest(algorithm, f"{algorithm}:{'a' * digits}") == "a" * digits
    assert check_digest(algorithm, "") == ""
    for bad in ("a" * (digits - 1), "a" * (digits + 1), "g" * digits, "../" + "a" * (digits - 3), "٣" * digits):
        with pytest.raises(ModelError) as caught:
            check_digest(algorithm, bad)
        assert caught.value.kind == "bad_manifest"


def test_a_commit_is_hex_or_a_number() -> None:
    assert check_commit("130072") == "130072"
    assert check_commit("AB" * 20) == "ab" * 20
    for bad in ("", "main", "../x", "a" * 65):
        with pytest.raises(ModelError, match="names a commit"):
            check_commit(bad)
