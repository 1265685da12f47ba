"""A download that is killed at any byte is resumed by the next one, and nobody ever sees half a file."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import msgspec
import pytest
from blake3 import blake3

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.network.joining import put_together
from gen_worker.fetch.network.part import Part
from gen_worker.fetch.network.pieces import PIECE_BYTES
from gen_worker.fetch.network.pull import BUFFER_BYTES, NOTE_BYTES
from gen_worker.models.manifest import Algorithm, ManifestFile
from gen_worker.testing import ChangingETag, LoopbackHub
from tests.downloading import PIECE, Downloads, content_of, listed

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
CONTENT = content_of(24 * PIECE + 77)
CONNECTIONS = 3
FILE = "*.safetensors"
POINTS = [*random.Random(1).sample(range(1, len(CONTENT)), 40), 1, len(CONTENT)]

# For each number of bytes a process of its own, with a folder of its own, that is killed once they are there. This one
# has no threads and may fork, which is ten times as fast as to start them.
_KILLED = """
import os, signal, sys
from pathlib import Path
import msgspec
from gen_worker.models.manifest import ManifestFile
from tests.downloading import Downloads, Told
file, connections, piece_bytes, *folders = sys.argv[1:]
file = msgspec.json.decode(file, type=ManifestFile)
for folder, at_bytes in zip(folders[::2], map(int, folders[1::2])):
    pid = os.fork()
    if pid == 0:
        told = Told(at_bytes=at_bytes, then=lambda: os.kill(os.getpid(), signal.SIGKILL))
        Downloads(Path(folder), told=told).run(file, connections=int(connections), piece_bytes=int(piece_bytes))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
"""


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


def killed(file: ManifestFile, folders: Sequence[Path], at_bytes: Sequence[int], piece_bytes: int = PIECE) -> None:
    """Download into each folder until so many bytes are there, and be killed."""
    points = [str(each) for point in zip(folders, at_bytes, strict=True) for each in point]
    numbers = [str(CONNECTIONS), str(piece_bytes)]
    command = [sys.executable, "-c", _KILLED, msgspec.json.encode(file).decode(), *numbers, *points]
    subprocess.run(command, check=True, timeout=60, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_what_came_before_a_kill_is_not_fetched_again(hub: LoopbackHub, tmp_path: Path) -> None:
    file = listed(hub, CONTENT)
    folders = [tmp_path / str(point) for point in range(len(POINTS))]
    for folder in folders:
        folder.mkdir()
    killed(file, folders, POINTS)
    for folder, at_bytes in zip(folders, POINTS, strict=True):
        downloads = Downloads(folder)
        assert not downloads.to.exists()
        came = downloads.run(file, connections=CONNECTIONS)
        assert came <= len(CONTENT) - at_bytes + CONNECTIONS * PIECE
        assert downloads.names == ["blob"]
        assert downloads.to.read_bytes() == CONTENT
        assert downloads.told.there == len(CONTENT)
        assert (downloads.told.retries, downloads.told.lost) == (0, 0)


@pytest.mark.parametrize("algorithm", ["blake3", ""])
@pytest.mark.parametrize("size", [9 << 20, 40 << 20], ids=["one piece", "three pieces"])
def test_a_kill_costs_a_connection_little_of_its_piece(
    hub: LoopbackHub, tmp_path: Path, size: int, algorithm: Algorithm
) -> None:
    content = content_of(size)
    file = listed(hub, content, algorithm=algorithm)
    at_bytes = size - (1 << 20)
    killed(file, [tmp_path], [at_bytes], PIECE_BYTES)
    downloads = Downloads(tmp_path)
    came = downloads.run(file, piece_bytes=PIECE_BYTES)
    assert came <= size - at_bytes + min(CONNECTIONS, -(-size // PIECE_BYTES)) * (NOTE_BYTES + BUFFER_BYTES)
    assert downloads.to.read_bytes() == content
    assert (downloads.told.there, downloads.told.lost) == (size, 0)


@pytest.mark.promise(28)
def test_a_download_that_is_killed_again_and_again_comes_to_its_end(hub: LoopbackHub, tmp_path: Path) -> None:
    file = listed(hub, CONTENT, algorithm="sha256")
    at_bytes = range(4 * PIECE, len(CONTENT), 4 * PIECE)
    killed(file, [tmp_path] * len(at_bytes), at_bytes)
    downloads = Downloads(tmp_path)
    assert not downloads.to.exists()
    downloads.run(file, connections=CONNECTIONS)
    assert downloads.to.read_bytes() == CONTENT
    assert hub.wire_bytes(FILE) <= len(CONTENT) + (len(at_bytes) + 1) * 2 * CONNECTIONS * PIECE


@pytest.mark.promise(28)
def test_a_part_that_somebody_damaged_does_not_end_in_the_file(hub: LoopbackHub, tmp_path: Path) -> None:
    file = listed(hub, CONTENT)
    killed(file, [tmp_path], [12 * PIECE])
    part = tmp_path / "blob.part"
    with part.open("r+b") as damaged:
        damaged.seek(5)
        damaged.write(b"\0\0\0\0")
    downloads = Downloads(tmp_path)
    downloads.run(file)
    assert downloads.to.read_bytes() == CONTENT
    assert downloads.told.there == len(CONTENT)


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"\xff\n0 1", b'{"etag":"\xff"}\n0 1', b"[]\n1 1", b'{"size":1}\n', b"[" * 100_000],
    ids=["empty", "torn", "binary", "no text", "a list", "incomplete", "deep"],
)
def test_a_map_that_cannot_be_read_means_that_nothing_is_there(hub: LoopbackHub, tmp_path: Path, damage: bytes) -> None:
    file = listed(hub, CONTENT)
    killed(file, [tmp_path], [12 * PIECE])
    (tmp_path / "blob.part.map").write_bytes(damage)
    downloads = Downloads(tmp_path)
    assert downloads.run(file) == len(CONTENT)
    assert downloads.names == ["blob"]
    assert downloads.to.read_bytes() == CONTENT


@pytest.mark.promise(28)
def test_a_part_that_is_shorter_than_its_map_says_is_not_believed(hub: LoopbackHub, tmp_path: Path) -> None:
    file = listed(hub, CONTENT)
    killed(file, [tmp_path], [12 * PIECE])
    os.truncate(tmp_path / "blob.part", 100)
    downloads = Downloads(tmp_path)
    assert downloads.run(file) == len(CONTENT)
    assert downloads.to.read_bytes() == CONTENT


@pytest.mark.promise(28)
@pytest.mark.parametrize("torn", [b"\n", b"\n2", b"\n24 ", b"\n24 7", b"\n99 1", b"\n0 9999999"])
def test_a_record_that_is_cut_short_or_says_too_much_ends_in_no_wrong_file(
    hub: LoopbackHub, tmp_path: Path, torn: bytes
) -> None:
    file = listed(hub, CONTENT, algorithm="")
    killed(file, [tmp_path], [12 * PIECE])
    with (tmp_path / "blob.part.map").open("ab") as record:
        record.write(torn)
    downloads = Downloads(tmp_path)
    downloads.run(file)
    assert downloads.to.read_bytes() == CONTENT
    assert downloads.told.there == len(CONTENT)


@pytest.mark.promise(28)
@pytest.mark.parametrize("in_parts", [False, True])
def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_is_on_the_disk_after(
    tmp_path: Path, in_parts: bool
) -> None:
    file = ManifestFile("whole", 3, "blake3", digest=blake3(b"abc").hexdigest())
    part = Part(tmp_path / "whole.0.part" if in_parts else tmp_path / "whole")
    calls: list[str] = []

    def note(_frame: FrameType, event: str, called: object) -> None:
        if event == "c_call" and called in (os.fsync, os.rename, os.replace):
            calls.append(called.__name__)

    def bring(_file: ManifestFile, _to: Path) -> int:
        part.write(memoryview(b"abc"), 0)
        part.publish(3)
        part.close()
        return 3

    sys.setprofile(note)
    try:
        if in_parts:
            whole = ManifestFile("whole", 3, parts=(file,))
            put_together(whole, tmp_path / "whole", bring, on_bytes=lambda _: None, cancel=Cancel())
        else:
            bring(file, tmp_path / "whole")
    finally:
        sys.setprofile(None)
    assert (tmp_path / "whole").read_bytes() == b"abc"
    assert calls == ["fsync", "rename", "fsync", *(("fsync", "replace", "fsync") if in_parts else ())]


def test_a_part_of_another_content_is_not_used(hub: LoopbackHub, tmp_path: Path) -> None:
    killed(listed(hub, CONTENT), [tmp_path], [12 * PIECE])
    other = content_of(len(CONTENT), seed=1)
    downloads = Downloads(tmp_path)
    assert downloads.run(listed(hub, other)) == len(other)
    assert downloads.to.read_bytes() == other


@pytest.mark.promise(24)
def test_a_part_without_a_digest_is_resumed_by_its_etag(hub: LoopbackHub, tmp_path: Path) -> None:
    file = listed(hub, CONTENT, algorithm="")
    killed(file, [tmp_path], [12 * PIECE])
    downloads = Downloads(tmp_path)
    assert downloads.run(file) <= len(CONTENT) - 12 * PIECE + CONNECTIONS * PIECE
    assert downloads.to.read_bytes() == CONTENT


@pytest.mark.promise(24)
def test_a_part_without_a_digest_of_a_file_that_was_replaced_begins_anew(hub: LoopbackHub, tmp_path: Path) -> None:
    killed(listed(hub, CONTENT, algorithm=""), [tmp_path], [12 * PIECE])
    other = content_of(len(CONTENT), seed=1)
    downloads = Downloads(tmp_path)
    downloads.run(listed(hub, other, algorithm=""))
    assert downloads.to.read_bytes() == other
    assert downloads.told.there == len(other)


@pytest.mark.promise(24)
def test_a_part_whose_etag_changed_begins_anew(hub: LoopbackHub, tmp_path: Path) -> None:
    file = listed(hub, CONTENT)
    killed(file, [tmp_path], [12 * PIECE])
    hub.fail(FILE, ChangingETag())
    downloads = Downloads(tmp_path)
    downloads.run(file)
    assert downloads.to.read_bytes() == CONTENT
    assert downloads.told.there == len(CONTENT)
    assert downloads.told.lost > 0
