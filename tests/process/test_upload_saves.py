"""What a supervisor makes of the files that a child hands over for a store."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gen_worker.testing import LoopbackStore, Stall
from gen_worker.wire.messages import Save, Saved
from gen_worker_supervisor.files.storing import OF_ONE_JOB
from gen_worker_supervisor.files.storing import Storing as Saves
from tests.storing import Storing, destination, memory, storing

pytestmark = pytest.mark.process
JOB = 7


class Bench(NamedTuple):
    """The saves of a supervisor, what they go through, and what the child was told."""

    saves: Saves
    supervisor: Storing
    store: LoopbackStore
    told: list[Saved]

    def save(self, order: Save, *descriptors: int) -> None:
        self.saves.save(order, destination(self.store), list(descriptors), self.told.append)

    def answer(self) -> Saved:
        """Wait for the first answer."""
        return self.supervisor.until(lambda: self.told and self.told[0], what="an answer")  # type: ignore[return-value]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with LoopbackStore() as store, storing(tmp_path) as supervisor:
        yield Bench(Saves(supervisor.uploads), supervisor, store, [])


def inline(content: bytes, ref: str = "a/b.txt", token: int = 1) -> Save:
    return Save(JOB, token, ref, len(content), content)


def test_a_short_content_comes_in_the_frame_itself(bench: Bench) -> None:
    bench.save(inline(b"short"))
    saved = bench.answer()
    assert (saved.job, saved.token, saved.error, saved.failure) == (JOB, 1, "", "")
    assert saved.stored is not None
    assert (saved.stored.ref, saved.stored.mime_type, saved.size_bytes) == ("a/b.txt", "text/plain", 5)
    assert bench.store.files["a/b.txt"].content == b"short"


def test_a_long_one_in_a_descriptor(bench: Bench) -> None:
    bench.save(Save(JOB, 1, " /a//b.bin", 100_000), memory(bytes(100_000)))
    assert bench.answer().error == ""
    assert bench.store.files["a/b.bin"].content == bytes(100_000)


@pytest.mark.parametrize("ref", ["", "../x", "a/../b", "http://x/y", "a\\b", "a\0b", "x" * 300])
def test_a_child_cannot_name_a_place_elsewhere_and_its_file_is_closed(bench: Bench, ref: str) -> None:
    fd = memory(b"x")
    bench.save(Save(JOB, 1, ref, 1), fd)
    assert "ref" in bench.answer().error
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("count", [0, 2])
def test_a_content_is_one_descriptor(bench: Bench, count: int) -> None:
    bench.save(Save(JOB, 1, "a", 1), *(memory(b"x") for _ in range(count)))
    assert bench.answer().error == "the content is not a file"


def test_a_content_in_the_frame_is_as_long_as_it_says(bench: Bench) -> None:
    bench.save(Save(JOB, 1, "a", 9, b"short"))
    assert bench.answer().error == "the content has 5 bytes, not 9"


def test_what_is_on_its_way_ends_with_its_job_and_is_answered_once(bench: Bench) -> None:
    bench.store.fail("part:*", Stall(1, 60.0))
    bench.save(inline(b"mine"))
    others: list[Saved] = []
    bench.saves.save(Save(JOB + 1, 1, "other", 5, b"other"), destination(bench.store), [], others.append)
    bench.supervisor.until(lambda: len(bench.store.seen("part:*")) == 2, what="two parts on their way")
    bench.saves.forget(JOB)
    assert [(answer.token, answer.error) for answer in bench.told] == [(1, "the job has ended")]
    bench.supervisor.until(lambda: len(bench.store.uploads) == 1, what="the store's being told")
    assert (len(bench.told), others) == (1, [])


def test_a_job_cannot_take_all_descriptors(bench: Bench) -> None:
    bench.store.fail("part:*", Stall(1, 60.0))
    for token in range(OF_ONE_JOB + 1):
        bench.save(inline(b"x" * (token + 2), f"{token}.bin", token))
    assert [answer.error for answer in bench.told] == [f"a job saves at most {OF_ONE_JOB} files at once"]
    bench.saves.forget(JOB)
