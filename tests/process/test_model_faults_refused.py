"""Models that a hub does not give, or whose listing cannot be meant: told apart, before a byte is written."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gen_worker.fetch.fetcher import Fetcher
from gen_worker.models.errors import ModelErrorKind
from gen_worker.models.wanted import Wanted
from gen_worker.testing import ETag, LoopbackHub, Name, Status
from tests.fetchers import QUICK, config_for, contents, fetcher_for, refused, repository, visible

pytestmark = pytest.mark.process

TINY = Wanted("hf", "acme/tiny")
BAD_TOKEN = "hf_not_the_one_0123456789"


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.mark.parametrize("provider", ["hf", "tensorhub", "civitai", "modelscope"])
def test_a_model_that_is_not_there_is_not_found(hub: LoopbackHub, tmp_path: Path, provider: str) -> None:
    repo = "4201" if provider == "civitai" else "acme/none"
    config = config_for(tmp_path, hub.url)
    with fetcher_for(config) as fetcher:
        error = refused(fetcher, Wanted(provider, repo))  # type: ignore[arg-type]  # each of them is one
    assert error.kind == "not_found"
    assert f"`{repo}`" in str(error)
    assert error.hint
    assert not error.retryable
    assert visible(config) == []


def test_a_revision_that_is_not_there_is_told_from_a_repository_that_is_not(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_repo("acme/tiny", repository())
    with fetcher_for(config_for(tmp_path, hub.url)) as fetcher:
        error = refused(fetcher, Wanted("hf", "acme/tiny", revision="v9"))
    assert error.kind == "revision_not_found"
    assert "`v9`" in str(error)
    assert "/acme/tiny" in error.hint


@pytest.mark.parametrize(
    ("token", "gated", "private", "kind", "hint"),
    [
        ("", True, False, "gated", "accept them at"),
        ("denied", True, False, "gated", "accept them at"),
        ("", False, True, "not_found", "`HF_TOKEN`"),
        (BAD_TOKEN, False, False, "unauthorized", "`HF_TOKEN`"),
    ],
)
def test_who_may_not_have_a_model_reads_what_to_do(
    hub: LoopbackHub, tmp_path: Path, token: str, gated: bool, private: bool, kind: ModelErrorKind, hint: str
) -> None:
    hub.add_repo("acme/tiny", repository(), gated=gated, private=private)
    hub.denied.add("denied")
    config = config_for(tmp_path, hub.url, hf_token=token)
    with fetcher_for(config) as fetcher:
        error = refused(fetcher, TINY)
    assert error.kind == kind
    assert "acme/tiny" in str(error)
    assert hint in error.hint
    assert BAD_TOKEN not in f"{error} {error.hint} {error!r}"
    assert visible(config) == []
    assert hub.leaks == []


def test_with_the_right_token_a_gated_model_comes_and_only_the_hub_sees_the_token(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    files = repository()
    hub.add_repo("acme/tiny", files, gated=True)
    with fetcher_for(config_for(tmp_path, hub.url, hf_token=hub.token)) as fetcher:
        assert contents(fetcher.have(TINY).snapshot) == files
    assert any(request.origin == "cdn" for request in hub.requests)
    assert any(request.carries_credentials for request in hub.requests)
    assert hub.leaks == []


@pytest.mark.promise(37)
@pytest.mark.parametrize(
    "name",
    [
        "../../escaped.safetensors",
        "/etc/escaped.safetensors",
        "a/../../escaped.safetensors",
        "C:\\escaped.safetensors",
        "a\\..\\escaped.safetensors",
        "nul\0.safetensors",
        "CONFIG.json",
        "config.json/weights.safetensors",
        "x" * 300 + ".safetensors",
        "",
        ".",
    ],
)
def test_a_hostile_name_in_a_listing_is_refused_before_anything_is_written(
    hub: LoopbackHub, tmp_path: Path, name: str
) -> None:
    hub.add_repo("acme/tiny", repository())
    hub.fail("*.safetensors", Name(name))
    config = config_for(tmp_path / "cache", hub.url)
    with fetcher_for(config) as fetcher:
        error = refused(fetcher, Wanted("hf", "acme/tiny", files=("*",)))
    assert error.kind == "bad_manifest"
    assert not error.retryable
    assert hub.wire_bytes("acme/tiny/model.safetensors") == 0
    assert visible(config) == []
    assert not list(tmp_path.rglob("*escaped*"))


def test_the_snapshot_of_an_orchestrator_is_checked_like_any_listing(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fail("*.safetensors", Name("../escaped.safetensors"))
    described = hub.signed_files("acme/tiny", repository())
    wanted = Wanted("tensorhub", "acme/tiny", digest="blake3:" + "0" * 64)
    with fetcher_for(config_for(tmp_path / "cache", hub.url)) as fetcher:
        error = refused(fetcher, wanted, snapshot=described)
    assert error.kind == "bad_manifest"
    assert not list(tmp_path.rglob("*escaped*"))


@pytest.mark.promise(37)
@pytest.mark.parametrize("etag", ["../../../escaped", "/tmp/escaped", "a" * 5000, "not hex", ""])
def test_a_hostile_etag_names_no_file(hub: LoopbackHub, tmp_path: Path, etag: str) -> None:
    files = repository()
    hub.add_repo("acme/tiny", files)
    hub.fail("*", ETag(etag))
    with fetcher_for(config_for(tmp_path / "cache", hub.url)) as fetcher:
        assert contents(fetcher.have(TINY).snapshot) == files
    assert not list(tmp_path.rglob("*escaped*"))
    assert not Path("/tmp/escaped").exists()


def test_a_hub_that_is_silent_is_not_taken_for_one_that_has_no_such_model(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_repo("acme/tiny", repository())
    hub.fail("api:*", Status(503))
    config = config_for(tmp_path, hub.url)
    with fetcher_for(config) as fetcher:
        error = refused(fetcher, TINY)
    assert (error.kind, error.retryable) == ("unreachable", True)
    assert len([each for each in hub.requests if each.status == 503]) == QUICK.tries
    hub.heal()
    hub.fail("api:*", Status(429))
    with fetcher_for(config) as fetcher:
        assert refused(fetcher, TINY).kind == "rate_limited"


# --- without a network ------------------------------------------------------------------------------------------------


def test_offline_what_is_not_here_is_named_with_what_fetches_it(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_repo("acme/tiny", repository())
    with fetcher_for(config_for(tmp_path, hub.url, offline=True)) as fetcher:
        error = refused(fetcher, TINY)
    assert (error.kind, error.ref) == ("offline", "acme/tiny")
    assert str(error) == "`acme/tiny` is not on this machine, and nothing may be fetched"
    assert error.hint == "`gen-worker prefetch hf:acme/tiny` fetches it while there is a network"
    assert hub.requests == []


@pytest.mark.parametrize(
    "narrowed", [{"files": ("*.json",)}, {"dtype": "fp32"}, {"subfolder": "unet"}, {"trust_remote_code": True}]
)
def test_offline_what_no_ref_can_name_is_fetched_where_its_endpoint_is(
    hub: LoopbackHub, tmp_path: Path, narrowed: dict[str, Any]
) -> None:
    with fetcher_for(config_for(tmp_path, hub.url, offline=True)) as fetcher:
        error = refused(fetcher, msgspec.structs.replace(TINY, **narrowed))
    assert error.hint == "`gen-worker prefetch` in its endpoint's folder fetches it while there is a network"


def test_offline_what_is_here_is_used_and_nobody_is_asked(hub: LoopbackHub, tmp_path: Path) -> None:
    files = repository()
    hub.add_repo("acme/tiny", files)
    config = config_for(tmp_path, hub.url)
    with fetcher_for(config) as fetcher:
        fetcher.have(TINY)
        hub.requests.clear()
        found = fetcher.have(TINY, offline=True)
        assert contents(found.snapshot) == files
        assert found.fetched_bytes == 0
    assert hub.requests == []


def outages(hub: LoopbackHub) -> list[Callable[[], None]]:
    return [lambda: hub.fail("api:*", Status(503)), lambda: hub.fail("api:*", Status(429)), hub.close]


@pytest.mark.parametrize("outage", range(3))
def test_a_model_on_disk_is_good_enough_while_its_hub_is_out_and_says_so(
    hub: LoopbackHub, tmp_path: Path, outage: int
) -> None:
    files = repository()
    hub.add_repo("acme/tiny", files)
    with fetcher_for(config_for(tmp_path, hub.url)) as fetcher:
        fetcher.have(TINY)
        outages(hub)[outage]()
        found = fetcher.have(TINY)
        assert contents(found.snapshot) == files
        assert "`acme/tiny` is used as it is on disk" in found.snapshot.notes[-1]
        assert refused(fetcher, Wanted("hf", "acme/other")).kind in ("unreachable", "rate_limited")


def test_a_model_on_disk_waits_a_second_at_most_for_a_hub_that_is_not_there_and_names_it(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.add_repo("acme/tiny", repository())
    with fetcher_for(config_for(tmp_path, hub.url)) as fetcher:
        fetcher.have(TINY)
    with closing(Fetcher(config_for(tmp_path, "http://127.0.0.1:1"))) as patient:
        began = time.monotonic()
        found = patient.fetch(TINY)
        assert time.monotonic() - began < 1.0
    os.close(found.lease)
    asked = "`127.0.0.1:1` cannot be reached: Connection refused"
    assert found.snapshot.notes == (f"`acme/tiny` is used as it is on disk: {asked}; with `--offline` nobody is asked",)


def refusals(hub: LoopbackHub) -> dict[str, Callable[[], object]]:
    return {
        "not_found": lambda: hub.add_repo("acme/tiny", repository(seed=2), private=True),
        "gated": lambda: hub.add_repo("acme/tiny", repository(seed=2), gated=True),
        "unauthorized": lambda: hub.fail("api:*", Status(403)),
    }


@pytest.mark.parametrize("refusal", ["not_found", "gated", "unauthorized"])
def test_a_model_on_disk_is_used_while_its_hub_refuses_it_and_says_so(
    hub: LoopbackHub, tmp_path: Path, refusal: str
) -> None:
    files = repository()
    hub.add_repo("acme/tiny", files)
    with fetcher_for(config_for(tmp_path, hub.url)) as fetcher:
        fetcher.have(TINY)
        refusals(hub)[refusal]()
        found = fetcher.have(TINY)
        assert contents(found.snapshot) == files
        assert "`acme/tiny` is used as it is on disk: " in found.snapshot.notes[-1]
    with fetcher_for(config_for(tmp_path / "another", hub.url)) as fetcher:
        assert refused(fetcher, TINY).kind == refusal


def test_a_branch_that_moved_is_fetched_and_a_commit_is_for_good(hub: LoopbackHub, tmp_path: Path) -> None:
    old, new = repository(seed=1), repository(seed=2)
    commit = hub.add_repo("acme/tiny", old)
    with fetcher_for(config_for(tmp_path, hub.url)) as fetcher:
        assert contents(fetcher.have(TINY).snapshot) == old
        hub.add_repo("acme/tiny", new)
        assert contents(fetcher.have(TINY).snapshot) == new
        hub.requests.clear()
        fixed = Wanted("hf", "acme/tiny", revision=commit)
        assert contents(fetcher.have(fixed).snapshot) == old
        assert contents(fetcher.have(fixed).snapshot) == old
        assert hub.wire_bytes("*.safetensors") == 0


def test_a_hub_without_an_address_is_named_with_its_variable(tmp_path: Path) -> None:
    with fetcher_for(config_for(tmp_path)) as fetcher:
        error = refused(fetcher, Wanted("tensorhub", "acme/tiny"))
    assert error.kind == "not_configured"
    assert "COZY_HUB_URL" in f"{error} {error.hint}"


@pytest.mark.parametrize("endpoint", ["nonsense", "http://", "ftp://models.example", "http://127.0.0.1:1"])
def test_an_address_that_leads_nowhere_is_told_with_the_model(tmp_path: Path, endpoint: str) -> None:
    with fetcher_for(config_for(tmp_path, endpoint)) as fetcher:
        error = refused(fetcher, TINY)
    assert error.ref == "acme/tiny"
    assert "`acme/tiny`" in str(error)
    assert error.hint
