"""A ref on the wire names no provider: which model it means follows from what functions bind."""

import pytest

from gen_worker.models.refs import RefError
from gen_worker.models.wanted import SnapshotFile, Wanted
from gen_worker.wire.scheduler import Snapshot
from gen_worker_supervisor.link.refs import digest_of, providers, wanted_of

BOUND = [
    Wanted("tensorhub", "acme/plain"),
    Wanted("tensorhub", "acme/tagged", tag="beta", flavor="fp8"),
    Wanted("tensorhub", "acme/pinned", digest="blake3:" + "a" * 64),
    Wanted("hf", "org/base"),
    Wanted("hf", "org/dev", revision="v1", flavor="bf16"),
    Wanted("civitai", "42", version="7"),
    Wanted("modelscope", "scope/m", revision="v3"),
]
KNOWN = providers(BOUND)
DIGEST = "c" * 64


@pytest.mark.parametrize(
    ("ref", "meant"),
    [
        ("acme/plain", Wanted("tensorhub", "acme/plain", tag="prod")),
        ("acme/plain:prod", Wanted("tensorhub", "acme/plain", tag="prod")),
        (" acme/plain ", Wanted("tensorhub", "acme/plain", tag="prod")),
        ("acme/plain:v2", Wanted("tensorhub", "acme/plain", tag="v2")),
        ("acme/tagged:beta#fp8", Wanted("tensorhub", "acme/tagged", tag="beta", flavor="fp8")),
        ("acme/tagged:beta#fp8?x=1", Wanted("tensorhub", "acme/tagged", tag="beta", flavor="fp8")),
        (f"acme/pinned@blake3:{'a' * 64}", Wanted("tensorhub", "acme/pinned", digest="blake3:" + "a" * 64)),
        ("org/base", Wanted("hf", "org/base")),
        ("org/base:latest", Wanted("hf", "org/base")),
        ("org/base@main", Wanted("hf", "org/base", revision="main")),
        ("org/dev@v1#bf16", Wanted("hf", "org/dev", revision="v1", flavor="bf16")),
        ("org/dev#bf16", Wanted("hf", "org/dev", flavor="bf16")),
        ("42", Wanted("civitai", "42")),
        ("scope/m", Wanted("modelscope", "scope/m")),
        ("who/knows", Wanted("tensorhub", "who/knows", tag="prod")),
        ("hf:who/knows", Wanted("hf", "who/knows")),
    ],
)
def test_a_ref_has_the_provider_of_the_binding_that_it_names(ref: str, meant: Wanted) -> None:
    assert wanted_of(ref, KNOWN) == meant


@pytest.mark.parametrize("bound", BOUND, ids=lambda bound: bound.provider + " " + bound.ref)
def test_the_ref_that_a_binding_has_on_the_wire_means_that_binding(bound: Wanted) -> None:
    meant = wanted_of(bound.wire_ref, KNOWN)
    assert (meant.provider, meant.wire_ref) == (bound.provider, bound.wire_ref)


def test_of_two_providers_of_one_repository_the_exact_ref_decides() -> None:
    known = providers([Wanted("hf", "a/b", revision="v1"), Wanted("tensorhub", "a/b")])
    assert wanted_of("a/b", known).provider == "tensorhub"
    assert wanted_of("a/b@v1", known).provider == "hf"


@pytest.mark.parametrize(
    "ref", ["", "  ", "plain", "a/b@main", "a/b#", "../b", "a/../b", "a/b\n/c", "https://a/b", "é/b"]
)
def test_what_is_no_ref_is_refused(ref: str) -> None:
    with pytest.raises(RefError):
        wanted_of(ref, KNOWN)


# --- snapshots --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (DIGEST, f"blake3:{DIGEST}"),
        (f"blake3:{DIGEST.upper()}", f"blake3:{DIGEST}"),
        (f"sha256:{DIGEST}", f"sha256:{DIGEST}"),
    ],
)
def test_a_digest_names_a_snapshot_in_one_way(said: str, meant: str) -> None:
    assert digest_of(Snapshot(digest=said)) == meant


def test_a_name_that_is_no_digest_stands_for_one_and_cannot_lead_out_of_the_cache() -> None:
    names = ["../../etc", "v1", "sha256:xyz", "md5:" + "a" * 64, "a" * 4000]
    found = [digest_of(Snapshot(digest=name)) for name in names]
    assert all(name.startswith("sha256:") and len(name) == 71 and name[7:].isalnum() for name in found)
    assert len(set(found)) == len(names)


def test_a_snapshot_without_a_name_is_named_by_its_files_whatever_their_urls() -> None:
    def described(url: str, digest: str = DIGEST) -> Snapshot:
        return Snapshot(files=(SnapshotFile("a", 1, digest, url),))

    assert digest_of(described("http://x/1")) == digest_of(described("http://x/2")) != ""
    assert digest_of(described("http://x/1")) != digest_of(described("http://x/1", "d" * 64))
    assert digest_of(Snapshot()) == ""
