"""A ref in text becomes the model that is meant, or an error that says how to write one."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.models.refs import RefError, meant_by, parse_ref, valid_repo, version_id
from gen_worker.models.wanted import Provider, Wanted

HEX = "ab" * 32


@pytest.mark.parametrize(
    ("text", "provider", "wanted"),
    [
        ("a/b", "", Wanted("tensorhub", "a/b", tag="latest")),
        (" a/b:v2 ", "tensorhub", Wanted("tensorhub", "a/b", tag="v2")),
        ("a/b:v2#fp8", "", Wanted("tensorhub", "a/b", tag="v2", flavor="fp8")),
        ("a/b#fp8?x=1", "", Wanted("tensorhub", "a/b", tag="latest", flavor="fp8")),
        (f"a/b@blake3:{HEX.upper()}", "", Wanted("tensorhub", "a/b", digest=f"blake3:{HEX}")),
        (f"a/b:v2@sha256:{HEX}#q", "", Wanted("tensorhub", "a/b", digest=f"sha256:{HEX}", flavor="q")),
        ("cozy:a/b", "hf", Wanted("tensorhub", "a/b", tag="latest")),
        ("a/b", "hf", Wanted("hf", "a/b")),
        ("a/b@refs/pr/3", "hf", Wanted("hf", "a/b", revision="refs/pr/3")),
        ("a/b@v1#fp16", "hf", Wanted("hf", "a/b", revision="v1", flavor="fp16")),
        ("hf:a/b@v1", "", Wanted("hf", "a/b", revision="v1")),
        ("hf:hf:a/b", "tensorhub", Wanted("hf", "a/b")),
        ("4201", "civitai", Wanted("civitai", "4201")),
        ("4201@130072", "civitai", Wanted("civitai", "4201", version="130072")),
        ("civitai:4201", "", Wanted("civitai", "4201")),
        ("versions/130072", "civitai", Wanted("civitai", "versions/130072")),
        ("https://civitai.com/models/4201/x?modelVersionId=7", "civitai", Wanted("civitai", "4201", version="7")),
        ("https://civitai.com/models/4201/x-y", "civitai", Wanted("civitai", "4201")),
        ("modelscope:a/b@v1", "", Wanted("modelscope", "a/b", revision="v1")),
        ("a/b", "modelscope", Wanted("modelscope", "a/b")),
    ],
)
def test_a_ref_is_read_as_its_provider_writes_it(text: str, provider: str, wanted: Wanted) -> None:
    assert parse_ref(text, provider) == wanted


@pytest.mark.parametrize(
    ("text", "provider", "message"),
    [
        ("", "", "the ref is empty"),
        ("  ", "hf", "the ref is empty"),
        ("a", "", "`a` has no owner"),
        ("a", "hf", "`a` has no owner; write `owner/name`"),
        ("a/b#", "hf", "the flavor of `a/b#` is empty"),
        ("a/b#", "", "the flavor of `a/b#` is empty"),
        ("a/b@", "", "the digest of `a/b@` is not `sha256:` or `blake3:`"),
        ("a/b@sha256:", "", "the digest of"),
        ("a/b@main", "", "the digest of"),
        ("a/b@md5:00", "", "the digest of"),
        ("a/b", "oci", "no provider `oci`; there is: `hf`, `tensorhub`, `civitai`, `modelscope`"),
        ("../b", "hf", "is no ref of hf"),
        ("a/..", "hf", "is no ref of hf"),
        ("a/b/c", "hf", "is no ref of hf"),
        ("a/b@../../x", "hf", "is no ref of hf"),
        ("a/b/c", "", "`a/b/c` is no ref of the platform's hub"),
        ("a/b\n", "hf:", "no provider"),
        ("ünï/cödé", "hf", "is no ref of hf"),
    ],
)
def test_a_text_that_is_no_ref_is_refused_with_how_to_write_one(text: str, provider: str, message: str) -> None:
    with pytest.raises(RefError, match=re.escape(message)):
        parse_ref(text, provider)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("https://huggingface.co/acme/x", "hf:acme/x"),
        ("huggingface.co/acme/x/tree/main", "hf:acme/x"),
        ("https://hf.co/acme/x?library=diffusers", "hf:acme/x"),
        ("huggingface:acme/x@main", "hf:acme/x@main"),
        ("tensorhub:acme/x:prod", "cozy:acme/x:prod"),
        ("https://modelscope.cn/models/acme/x/summary", "modelscope:acme/x"),
        ("https://civitai.com/models/4201/x?modelVersionId=7", "civitai:4201@7"),
        ("https://huggingface.co/acme", ""),
        ("https://elsewhere.org/acme/x", ""),
        ("acme/x", ""),
    ],
)
def test_what_people_paste_stands_for_a_ref(text: str, ref: str) -> None:
    assert meant_by(text) == ref
    if ref:
        assert parse_ref(ref).provider


def test_a_missing_tag_stands_for_what_the_caller_says() -> None:
    assert parse_ref("a/b", tag="prod").ref == "a/b"
    assert parse_ref("a/b").ref == "a/b:latest"


_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,8}", fullmatch=True)


@given(
    st.builds(
        Wanted,
        st.sampled_from(["hf", "tensorhub", "modelscope"]),
        st.builds("{}/{}".format, _NAMES, _NAMES),
        tag=_NAMES,
    )
)
def test_what_a_model_is_called_is_read_as_that_model(wanted: Wanted) -> None:
    assert parse_ref(wanted.ref, wanted.provider, tag="prod").ref == wanted.ref
    assert valid_repo(wanted)


@pytest.mark.parametrize("repo", ["a", "a/b/c", "../b", "a/..", "a b/c", "a/b?x", "a/b#x", "a/b%2e", ""])
@pytest.mark.parametrize("provider", ["hf", "tensorhub", "modelscope"])
def test_what_is_no_repository_never_becomes_part_of_a_url(provider: Provider, repo: str) -> None:
    assert not valid_repo(Wanted(provider, repo))


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("130072", "130072"),
        ("versions/130072", "130072"),
        ("https://civitai.com/models/1?modelVersionId=7", "7"),
        ("model_version_id=8", "8"),
        ("x?version_id=9&y", "9"),
        ("v1", ""),
        ("", ""),
    ],
)
def test_a_version_of_civitai_is_read_from_all_its_spellings(text: str, version: str) -> None:
    assert version_id(text) == version
