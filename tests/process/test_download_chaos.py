"""Whatever goes wrong in whatever order: the file is right, or there is none and the error says why."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gen_worker.fetch.cancel import Cancel
from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import Algorithm, ManifestFile
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
    Status,
    Truncate,
)
from gen_worker.testing.faults import Fault
from tests.downloading import PIECE, Downloads, Told, content_of, listed, signed

pytestmark = pytest.mark.process

CONTENT = content_of(9 * PIECE + 99)
FILE = "*.safetensors"
FAULTS: list[Fault] = [
    Status(503),
    Status(429),
    Cut(after=0),
    Cut(after=1),
    Cut(after=PIECE // 2),
    Cut(after=PIECE + 1),
    NoRange(),
    NoSize(),
    BadRange(),
    ChangingETag(),
    Corrupt(at=0),
    Corrupt(at=5 * PIECE),
    Truncate(to=0),
    Truncate(to=4 * PIECE),
    Oversize(by=1),
    Expire(after=PIECE),
]


PASSING: list[Fault] = [Status(503), Cut(after=1), Cut(after=PIECE // 2), NoRange()]


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.mark.promise(23, 24)
@pytest.mark.parametrize("seed", range(40))
def test_faults_in_any_order_end_in_the_file_or_a_reason(hub: LoopbackHub, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    algorithm: Algorithm = chance.choice(("blake3", "sha256", "git-sha1"))
    of_orchestrator = seed % 2 == 0
    file = signed(hub, CONTENT) if of_orchestrator else listed(hub, CONTENT, algorithm=algorithm)
    for fault in chance.choices(FAULTS, k=6):
        hub.fail(FILE, fault, times=chance.randrange(1, 5))

    def fresh(over: ManifestFile, _cancel: Cancel) -> ManifestFile:
        return signed(hub, CONTENT)

    def attempt(downloads: Downloads) -> str:
        try:
            downloads.run(file, fresh=fresh if of_orchestrator else None, connections=chance.randrange(1, 6))
        except ModelError as error:
            return error.kind
        return "there"

    downloads = Downloads(tmp_path)
    for _ in range(20):  # each fault hits a few times at most
        if (ended := attempt(downloads)) == "there":
            break
        assert ended in ("digest_mismatch", "url_expired")
        assert not downloads.to.exists()
        downloads.told = Told()
    assert downloads.names == ["blob"]
    assert downloads.to.read_bytes() == CONTENT
    assert downloads.told.there == len(CONTENT)


@pytest.mark.parametrize("seed", range(20))
def test_a_cancel_at_any_moment_leaves_nothing_running_and_what_can_be_resumed(
    hub: LoopbackHub, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    file = listed(hub, CONTENT)
    for fault in chance.choices(PASSING, k=2):
        hub.fail(FILE, fault, times=2)
    cancel = Cancel()
    threads = threading.active_count()
    downloads = Downloads(tmp_path, told=Told(at_bytes=chance.randrange(1, len(CONTENT)), then=cancel.set))
    with pytest.raises(ModelError) as caught:
        downloads.run(file, cancel=cancel, connections=chance.randrange(1, 6))
    assert caught.value.kind == "canceled"
    assert not downloads.to.exists()
    assert threading.active_count() <= threads + 2 * 6  # those of the hub
    assert not [each for each in threading.enumerate() if each.name.startswith("pieces")]
    downloads.told = Told()
    downloads.run(file)
    assert downloads.to.read_bytes() == CONTENT
