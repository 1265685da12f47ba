"""A fetcher that is killed at any moment: nothing bad is ever visible, and the next one goes on where it was."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gen_worker.models.wanted import Wanted
from gen_worker.testing import LoopbackHub, Slow
from gen_worker.wire.fetching import Fetch, Fetched
from tests.fetchers import Bare, config_for, contents, size_of, visible, weights
from tests.served import until

pytestmark = pytest.mark.process

KILLS = 24
PIECE_BYTES = 16 << 20  # what a connection may have to begin again
CONNECTIONS = 4  # of each file
HEADER_BYTES = 1 << 20  # of weights that are looked at by every fetcher that begins, at most
MODEL = Wanted("hf", "acme/model")


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.mark.promise(28)
def test_killed_at_any_moment_a_fetcher_shows_nothing_bad_and_its_successor_goes_on(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    files = {
        "config.json": b'{"model_type": "bert"}',
        "model-00001-of-00002.safetensors": weights(24 << 20, seed=1),
        "model-00002-of-00002.safetensors": weights(1 << 20, seed=2),
        "model.safetensors.index.json": b'{"weight_map": {"a": "model-00001-of-00002.safetensors", '
        b'"b": "model-00002-of-00002.safetensors"}}',
    }
    hub.add_repo("acme/model", files)
    hub.fail("*.safetensors", Slow(32.0 * (1 << 20)))  # a connection's pace
    config = config_for(tmp_path / "cache", hub.url)
    moments = random.Random(0)
    kills = 0
    for _ in range(KILLS):
        with Bare(config) as bare:
            bare.channel.send(Fetch(1, MODEL))
            ended = reported_within(bare, 0.1 + moments.random() * 0.5)
            bare.process.kill()
            bare.process.wait()
        kills += not ended
        if ended:
            break
        assert visible(config) == []
    assert kills > 0
    hub.heal()
    with Bare(config) as bare:
        last = bare.fetched(MODEL)
    assert contents(last.snapshot) == files
    begun_again = (kills + 1) * (HEADER_BYTES + 2 * CONNECTIONS * PIECE_BYTES)
    assert hub.wire_bytes("*.safetensors") <= size_of(files) + begun_again
    assert last.fetched_bytes < size_of(files)
    assert not list((tmp_path / "cache").rglob("*.part*"))


def reported_within(bare: Bare, seconds: float) -> bool:
    """Whether the fetch has ended within so long."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if isinstance(bare.report(left), Fetched):
            return True
    return False


def test_what_was_whole_when_the_fetcher_was_killed_is_not_fetched_again(hub: LoopbackHub, tmp_path: Path) -> None:
    files = {f"part-{number}.dat": bytes([number]) * 2_000_000 for number in range(6)}
    hub.add_repo("acme/model", files)
    hub.fail("*/part-5.dat", Slow(200_000.0))
    wanted = Wanted("hf", "acme/model", files=("*",))
    config = config_for(tmp_path / "cache", hub.url, files_at_once=6)
    with Bare(config) as bare:
        bare.channel.send(Fetch(1, wanted))
        until(lambda: len(blobs(tmp_path)) == 5, what="five whole files")
        os.kill(bare.process.pid, signal.SIGKILL)
    assert visible(config) == []
    hub.heal()
    hub.requests.clear()
    with Bare(config) as bare:
        assert contents(bare.fetched(wanted).snapshot) == files
    assert hub.wire_bytes("acme/model/*") <= 2_000_000


def blobs(root: Path) -> list[Path]:
    """Whole blobs."""
    return [path for path in root.glob("cache/hub/*/blobs/*") if len(path.name) == 64]
