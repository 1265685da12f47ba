"""What lies in the caches, as the fetcher says it when it is asked: whole models, by what they were wanted as."""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from gen_worker.models.wanted import SnapshotFile, Wanted
from gen_worker.testing import LoopbackHub
from gen_worker.wire.fetching import Fetched, Stock, Stocked, TakeStock
from tests.fetchers import Supervisor, config_for, size_of, supervising

pytestmark = pytest.mark.process

FILES = {"config.json": b"{}", "weights.txt": b"a model of the platform's"}
DIGEST = "blake3:" + "d" * 64


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def described(supervisor: Supervisor, wanted: Wanted, files: list[SnapshotFile]) -> Fetched:
    """Fetch a model that an orchestrator describes."""
    fd = os.memfd_create("snapshot")
    with os.fdopen(fd, "wb") as memory:
        memory.write(msgspec.json.encode(files))
        memory.flush()
        end = supervisor.end_of(supervisor.fetch(wanted, attached=[fd]))
    assert isinstance(end, Fetched), end
    return end


def stock(supervisor: Supervisor) -> list[Stocked]:
    """Ask what is there."""
    supervisor.reports.clear()
    supervisor.process.send(TakeStock())
    supervisor.until(lambda: any(isinstance(each, Stock) and each.last for each in supervisor.reports))
    return [model for each in supervisor.reports if isinstance(each, Stock) for model in each.models]


def test_an_empty_cache_has_nothing(cache: Path, tmp_path: Path) -> None:
    with supervising(config_for(cache), tmp_path / "log") as supervisor:
        assert stock(supervisor) == []


def test_models_are_told_as_they_were_wanted_whoever_described_them(
    hub: LoopbackHub, cache: Path, tmp_path: Path
) -> None:
    hub.add_repo("acme/tiny", FILES)
    mine = Wanted("tensorhub", "acme/mine", tag="prod", digest=DIGEST, flavor="fp8", dtype="bf16")
    with supervising(config_for(cache, hub.url), tmp_path / "log") as supervisor:
        described(supervisor, mine, hub.signed_files("acme/mine", FILES))
        supervisor.fetched(Wanted("hf", "acme/tiny", files=("*",)))
    with supervising(config_for(cache, hub.url), tmp_path / "log") as supervisor:
        found = {each.wanted: each.size for each in stock(supervisor)}
        assert found == {
            Wanted("tensorhub", "acme/mine", tag="prod", digest=DIGEST, flavor="fp8"): size_of(FILES),
            Wanted("hf", "acme/tiny"): size_of(FILES),
        }


def test_what_is_not_whole_any_more_is_not_there(hub: LoopbackHub, cache: Path, tmp_path: Path) -> None:
    mine = Wanted("tensorhub", "acme/mine", tag="prod", digest=DIGEST)
    with supervising(config_for(cache), tmp_path / "log") as supervisor:
        fetched = described(supervisor, mine, hub.signed_files("acme/mine", FILES))
        Path(fetched.snapshot.path, "weights.txt").unlink()
        assert stock(supervisor) == []


def test_many_models_come_in_frames_that_each_have_room(hub: LoopbackHub, cache: Path, tmp_path: Path) -> None:
    with supervising(config_for(cache), tmp_path / "log") as supervisor:
        files = hub.signed_files("acme/mine", FILES)
        for number in range(60):
            described(
                supervisor, Wanted("tensorhub", f"acme/{'m' * 80}{number}", digest=f"blake3:{number:064x}"), files
            )
        found = stock(supervisor)
        assert len(found) == 60
        assert found[0].wanted.digest == f"blake3:{59:064x}", "the last used first"
        assert len([each for each in supervisor.reports if isinstance(each, Stock)]) == 2
