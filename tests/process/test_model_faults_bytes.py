"""Bytes that do not come as they should: what passes is gone through, what stays is told, nothing bad is seen."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.models.errors import ModelErrorKind
from gen_worker.models.selection import SelectionOptions
from gen_worker.models.wanted import Wanted
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
    Stall,
    Status,
    Truncate,
)
from gen_worker.testing.faults import Fault
from gen_worker.wire.fetching import Fetch, Fetched, FetchFailed
from tests.fetchers import Having, config_for, contents, fetcher_for, refused, repository, size_of, supervising, visible
from tests.served import until

pytestmark = pytest.mark.process

TINY = Wanted("hf", "acme/tiny")
FILES = repository(1_000_000)  # 2 MB of weights


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo("acme/tiny", FILES)
        yield hub


@pytest.fixture
def config(hub: LoopbackHub, tmp_path: Path) -> FetchConfig:
    return config_for(tmp_path, hub.url, hf_token=hub.token)


@pytest.fixture
def fetcher(config: FetchConfig) -> Iterator[Having]:
    with fetcher_for(config) as fetcher:
        yield fetcher


WEIGHTS = "*.safetensors"  # the answers that carry their bytes, also those that the header is read from


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Status(503), id="503"),
        pytest.param(Status(500), id="500"),
        pytest.param(Status(429, {"Retry-After": "0.05"}), id="429"),
        pytest.param(Status(408), id="408"),
        pytest.param(Cut(0), id="cut at once"),
        pytest.param(Cut(700_000), id="cut in the middle"),
        pytest.param(Cut(1_999_999), id="cut before the end"),
        pytest.param(Corrupt(1_500_000), id="one byte is another"),
        pytest.param(Truncate(1_000_000), id="too short"),
        pytest.param(Oversize(10), id="too long"),
        pytest.param(BadRange(), id="another range"),
        pytest.param(NoRange(), id="ranges ignored"),
    ],
)
def test_what_passes_is_gone_through(hub: LoopbackHub, fetcher: Having, fault: Fault) -> None:
    hub.fail(WEIGHTS, fault, times=2)
    assert contents(fetcher.have(TINY).snapshot) == FILES


@pytest.mark.parametrize(
    "fault", [pytest.param(NoRange(), id="ranges ignored"), pytest.param(ChangingETag(), id="another etag each time")]
)
def test_what_a_server_cannot_do_better_is_lived_with(hub: LoopbackHub, fetcher: Having, fault: Fault) -> None:
    hub.fail(WEIGHTS, fault)
    assert contents(fetcher.have(TINY).snapshot) == FILES


def test_a_server_that_says_no_size_is_lived_with(hub: LoopbackHub, fetcher: Having) -> None:
    told: list[int | None] = []
    hub.fail("*", NoSize())
    found = fetcher.have(TINY, on_progress=lambda done, total, retries: told.append(total))
    assert contents(found.snapshot) == FILES
    assert set(told) == {None}


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        pytest.param(Corrupt(1_500_000), "digest_mismatch", "sha256", id="one byte is another"),
        pytest.param(Truncate(1_000_000), "digest_mismatch", "", id="too short"),
        pytest.param(Oversize(10), "digest_mismatch", "", id="too long"),
        pytest.param(Pointer(), "digest_mismatch", "Git LFS pointer", id="a pointer"),
        pytest.param(Status(404), "file_not_found", "404", id="404"),
        pytest.param(Status(503), "unreachable", "503", id="503"),
        pytest.param(Status(429), "rate_limited", "429", id="429"),
        pytest.param(Cut(0), "unreachable", "", id="cut at once"),
        pytest.param(Expire(0), "url_expired", "", id="expired"),
    ],
)
def test_what_does_not_pass_names_the_model_the_file_and_what_to_do(
    hub: LoopbackHub, config: FetchConfig, fetcher: Having, fault: Fault, kind: ModelErrorKind, words: str
) -> None:
    hub.add_repo(
        "acme/big", {"config.json": FILES["config.json"], "model.fp16.safetensors": FILES["model.safetensors"]}
    )
    hub.fail("acme/big/*.safetensors", fault)
    error = refused(fetcher, Wanted("hf", "acme/big"))
    assert error.kind == kind
    assert (error.ref, error.file) == ("acme/big", "model.fp16.safetensors")
    assert "`model.fp16.safetensors` of `acme/big`" in str(error)
    assert words in str(error)
    assert error.hint
    assert "?" not in f"{error}{error.hint}"
    assert visible(config) == []
    assert contents(fetcher.have(TINY).snapshot) == FILES
    hub.heal()
    assert size_of(contents(fetcher.have(Wanted("hf", "acme/big")).snapshot)) == size_of(FILES)


@pytest.mark.promise(25)
@pytest.mark.promise(26)
def test_a_url_that_ends_in_the_middle_is_replaced_and_no_byte_comes_twice(hub: LoopbackHub, fetcher: Having) -> None:
    files = {"config.json": FILES["config.json"], "model.fp16.safetensors": FILES["model.safetensors"]}
    hub.add_snapshot("acme/signed", files)
    hub.fail("acme/signed/*.safetensors", Expire(500_000), times=1)
    hub.fail("acme/signed/*.safetensors", Cut(1_000_000), times=1)
    found = fetcher.have(Wanted("tensorhub", "acme/signed"))
    assert contents(found.snapshot) == files
    assert [request.status for request in hub.requests].count(403) == 1
    assert found.fetched_bytes == size_of(files)


def test_a_cancel_ends_the_wait_for_a_new_url_at_once(hub: LoopbackHub, fetcher: Having) -> None:
    hub.add_snapshot("acme/signed", {"model.safetensors": FILES["model.safetensors"]})
    hub.fail("acme/signed/*.safetensors", Expire(500_000))
    hub.fail("acme/signed/*.safetensors", Cut(1_000_000), times=1)
    cancel = Cancel()

    def on_progress(done: int, _total: int | None, _retries: int) -> None:
        if done:
            hub.fail("api:*", Stall(0, 30.0))

    def asked() -> bool:
        """Whether the hub was asked for another URL."""
        requests = list(hub.requests)
        first = next((number for number, request in enumerate(requests) if request.status == 403), len(requests))
        return any(request.target.startswith("api:") for request in requests[first:])

    with ThreadPoolExecutor(1) as threads:
        wanted = Wanted("tensorhub", "acme/signed")
        ending = threads.submit(refused, fetcher, wanted, cancel=cancel, on_progress=on_progress)
        until(asked, what="the question for a new URL")
        began = time.monotonic()
        cancel.set()
        assert ending.result(20.0).kind == "canceled"
    assert time.monotonic() - began < 1.0


@pytest.mark.promise(26)
def test_a_server_that_stalls_is_asked_again(hub: LoopbackHub, fetcher: Having) -> None:
    hub.fail(WEIGHTS, Stall(700_000, 60.0), times=2)  # the first is where the header is read
    retries: list[int] = []
    found = fetcher.have(TINY, on_progress=lambda done, total, tried: retries.append(tried))
    assert contents(found.snapshot) == FILES
    assert max(retries) > 0


@pytest.mark.promise(26)
def test_a_model_of_which_no_byte_comes_fails_as_stalled(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fail(WEIGHTS, Stall(1_500_000, 60.0))
    config = config_for(tmp_path, hub.url, stall_timeout_s=0.5)
    with fetcher_for(config) as fetcher:
        error = refused(fetcher, TINY)
    assert (error.kind, error.retryable) == ("stalled", True)
    assert "`model.safetensors` of `acme/tiny`" in str(error)
    assert visible(config) == []


def test_a_model_that_takes_too_long_names_what_sets_the_limit(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fail(WEIGHTS, Stall(1_500_000, 60.0))
    config = config_for(tmp_path, hub.url, max_seconds=0.5)
    with fetcher_for(config) as fetcher:
        error = refused(fetcher, TINY)
    assert (error.kind, error.retryable) == ("download_failed", True)
    assert str(error) == "`acme/tiny` did not come within 0.5 s"
    assert "COZY_HF_DOWNLOAD_MAX_SECONDS" in error.hint


def test_one_bad_file_of_many_ends_the_others_and_what_came_is_kept(hub: LoopbackHub, tmp_path: Path) -> None:
    files = {f"part-{number}.dat": bytes([number]) * 1_000_000 for number in range(8)}
    hub.add_repo("acme/many", files)
    hub.fail("*/part-3.dat", Status(404))
    wanted = Wanted("hf", "acme/many", files=("*",))
    config = config_for(tmp_path, hub.url, files_at_once=1)  # one after the other, by name
    with fetcher_for(config) as fetcher:
        assert refused(fetcher, wanted).file == "part-3.dat"
        assert visible(config) == []
        assert hub.wire_bytes("acme/many/part-*.dat") < 3_100_000
        hub.heal()
        hub.requests.clear()
        assert contents(fetcher.have(wanted).snapshot) == files
    assert hub.wire_bytes("acme/many/part-*.dat") == 5_000_000


@pytest.mark.parametrize("provider", ["tensorhub", "civitai", "modelscope"])
def test_other_hubs_are_verified_and_leak_no_token_either(hub: LoopbackHub, tmp_path: Path, provider: str) -> None:
    files = {"model.safetensors": FILES["model.safetensors"]}
    hub.add_snapshot("acme/tiny", files)
    hub.add_civitai("4201", files, version="130072")
    hub.add_modelscope("acme/tiny", FILES)
    wanted = Wanted(provider, "4201" if provider == "civitai" else "acme/tiny")  # type: ignore[arg-type]
    tokens = dict.fromkeys(("hf_token", "cozy_hub_token", "civitai_token", "modelscope_token"), hub.token)
    hub.fail(WEIGHTS, Corrupt(1_500_000), times=1)
    with fetcher_for(config_for(tmp_path, hub.url, **tokens)) as fetcher:
        found = fetcher.have(wanted)
        assert contents(found.snapshot)["model.safetensors"] == FILES["model.safetensors"]
    assert hub.leaks == []


def test_what_an_orchestrator_describes_is_fetched_without_any_token(hub: LoopbackHub, tmp_path: Path) -> None:
    described = hub.signed_files("acme/tiny", FILES)
    wanted = Wanted("tensorhub", "acme/tiny", digest="blake3:" + "0" * 64)
    with fetcher_for(config_for(tmp_path, hub.url, cozy_hub_token=hub.token)) as fetcher:
        hub.requests.clear()
        assert contents(fetcher.have(wanted, snapshot=described).snapshot) == FILES
    assert not any(request.carries_credentials for request in hub.requests)


# --- on disk ----------------------------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    """Turn one bit of a file."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))
    path.chmod(0o444)


@pytest.mark.parametrize("fixed", [True, False])
def test_a_file_that_lies_damaged_on_disk_comes_anew_where_it_is_asked_to_be_looked_at(
    hub: LoopbackHub, fetcher: Having, fixed: bool
) -> None:
    commit = hub.add_repo("acme/tiny", FILES)
    wanted = Wanted("hf", "acme/tiny", revision=commit) if fixed else TINY
    first = fetcher.have(wanted).snapshot
    damage(Path(first.path) / "model.safetensors")
    assert fetcher.have(wanted).fetched_bytes == 0
    again = fetcher.have(wanted, verify=True)
    assert contents(again.snapshot) == FILES
    assert again.fetched_bytes == len(FILES["model.safetensors"])
    assert fetcher.have(wanted, verify=True).fetched_bytes == 0


def test_a_model_of_which_a_file_is_damaged_counts_as_absent_for_who_looks_at_it(
    hub: LoopbackHub, config: FetchConfig, tmp_path: Path
) -> None:
    with supervising(config, tmp_path / "log") as supervisor:
        first = supervisor.fetched(TINY).snapshot
        damage(Path(first.path) / "model.safetensors")
        supervisor.process.send(Fetch(100, TINY, probe=True))
        assert isinstance(supervisor.end_of(100), Fetched)
        supervisor.process.send(Fetch(101, TINY, probe=True, verify=True))
        absent = supervisor.end_of(101)
        assert isinstance(absent, FetchFailed)
        assert absent.kind == "absent"
        assert contents(supervisor.fetched(TINY).snapshot) == FILES


def test_other_options_choose_the_files_of_a_commit_anew_and_the_same_ask_nobody(
    hub: LoopbackHub, config: FetchConfig
) -> None:
    files = {**FILES, "model.fp16.safetensors": repository(5_000)["model.safetensors"]}
    fixed = Wanted("hf", "acme/whole", revision=hub.add_repo("acme/whole", files))
    few, all_of_it = config, msgspec.structs.replace(config, selection=SelectionOptions(full_repo=True))
    for options, count in ((few, 2), (all_of_it, 3), (few, 2)):
        with fetcher_for(options) as fetcher:
            first = contents(fetcher.have(fixed).snapshot)
            assert len(first) == count
            hub.requests.clear()
            assert contents(fetcher.have(fixed).snapshot) == first
            assert contents(fetcher.have(fixed, offline=True).snapshot) == first
            assert hub.requests == []
