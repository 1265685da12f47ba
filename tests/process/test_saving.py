"""What a supervisor makes of the files that children hand over to be kept on this machine."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from gen_worker.wire.messages import Save, Saved
from gen_worker_supervisor.files.saving import THREADS, Saver
from gen_worker_supervisor.files.storing import OF_ONE_JOB
from tests.storing import memory

pytestmark = pytest.mark.process
JOB, OTHER = 7, 8
LONG = 1 << 40  # of holes: it takes hours to be kept
SOON = 10.0


def endless(folder: Path) -> int:
    """Return a descriptor with a file that is being kept for as long as somebody wants it."""
    path = folder / "endless"
    with open(path, "wb") as file:
        file.truncate(LONG)
    return os.open(path, os.O_RDONLY)


def running(body: Callable[[Saver, asyncio.Queue[Saved]], Coroutine[Any, Any, None]], folder: Path) -> None:
    """Run a body beside a `Saver`, which is closed, with what children are told in a queue."""

    async def run() -> None:
        saver = Saver(asyncio.get_running_loop(), folder / "kept")
        try:
            await asyncio.wait_for(body(saver, asyncio.Queue()), SOON)
        finally:
            saver.close()

    asyncio.run(run())
    assert list((folder / "kept").rglob(".saving-*")) == []


def is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


@pytest.mark.promise(32)
def test_a_job_that_saves_cannot_take_all_descriptors(tmp_path: Path) -> None:
    async def flood(saver: Saver, told: asyncio.Queue[Saved]) -> None:
        for token in range(OF_ONE_JOB):
            saver.save(Save(JOB, token, "long", 0), [endless(tmp_path)], told.put_nowait)
        one_more = endless(tmp_path)
        saver.save(Save(JOB, OF_ONE_JOB, "long", 0), [one_more], told.put_nowait)
        answer = await told.get()
        assert (answer.token, answer.error) == (OF_ONE_JOB, f"a job saves at most {OF_ONE_JOB} files at once")
        assert not is_open(one_more)

    running(flood, tmp_path)


def test_what_a_job_saves_ends_with_it_and_is_answered_once(tmp_path: Path) -> None:
    async def end(saver: Saver, told: asyncio.Queue[Saved]) -> None:
        files = [endless(tmp_path) for _ in range(THREADS + 3)]
        for token, fd in enumerate(files):
            saver.save(Save(JOB, token, "long", 0), [fd], told.put_nowait)
        saver.save(Save(OTHER, 99, "short", 5, b"short"), [], told.put_nowait)
        saver.forget(JOB)
        answers = {answer.token: answer.error for answer in [await told.get() for _ in range(len(files) + 1)]}
        assert answers == dict.fromkeys(range(len(files)), "the job has ended") | {99: ""}
        assert not any(map(is_open, files))

    running(end, tmp_path)
    assert os.listdir(tmp_path / "kept") == ["short"]


def test_jobs_have_their_files_kept_in_turn(tmp_path: Path) -> None:
    async def turns(saver: Saver, told: asyncio.Queue[Saved]) -> None:
        for token in range(THREADS):
            saver.save(Save(1, token, "long", 0), [endless(tmp_path)], told.put_nowait)
        for job, token in [(JOB, 10), (JOB, 11), (JOB, 12), (OTHER, 20)]:
            saver.save(Save(job, token, f"{token}", 0), [memory(b"x")], told.put_nowait)
        saver.forget(1)
        order = [(await told.get()).token for _ in range(THREADS + 4)]
        assert order.index(20) < order.index(12)

    running(turns, tmp_path)


@pytest.mark.parametrize("ref", ["a/" * 1500 + "b", "../b", "", "\udcff"])
def test_every_file_has_an_answer_whatever_it_is_called(tmp_path: Path, ref: str) -> None:
    async def save(saver: Saver, told: asyncio.Queue[Saved]) -> None:
        saver.save(Save(JOB, 1, ref, 1, b"x"), [], told.put_nowait)
        assert "ref" in (await told.get()).error

    running(save, tmp_path)


def test_what_nobody_thought_of_while_a_file_is_kept_is_told_too(tmp_path: Path) -> None:
    async def save(saver: Saver, told: asyncio.Queue[Saved]) -> None:
        saver.save(Save(JOB, 1, "a.txt", 1, 5), [], told.put_nowait)  # type: ignore[arg-type]
        assert (await told.get()).error.startswith("`a.txt` cannot be kept: TypeError")

    running(save, tmp_path)


def test_a_stop_does_not_wait_for_what_nobody_waits_for(tmp_path: Path) -> None:
    files = [endless(tmp_path) for _ in range(THREADS + 3)]

    async def begin(saver: Saver, told: asyncio.Queue[Saved]) -> None:
        for token, fd in enumerate(files):
            saver.save(Save(JOB, token, "long", 0), [fd], told.put_nowait)

    running(begin, tmp_path)
    assert not any(map(is_open, files))
