"""The status page between a child that writes and whoever reads."""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.wire.page import PAGE_BYTES, PageReader, PageWriter, create_page


@contextmanager
def page() -> Iterator[tuple[int, PageReader]]:
    """A page and its reader."""
    fd = create_page()
    reader = PageReader(fd)
    yield fd, reader
    reader.close()
    os.close(fd)


def test_what_a_child_writes_is_read() -> None:
    with page() as (fd, reader):
        writer = PageWriter(fd)
        writer.beat(1 << 20)
        writer.job(7)
        writer.progress(7, 0.5, "denoising")
        writer.loop()
        reading = reader.read()
        assert reading is not None
        assert (reading.beats, reading.rss, reading.job) == (1, 1 << 20, 7)
        assert (reading.progress_job, reading.fraction, reading.stage) == (7, 0.5, "denoising")
        assert (reading.loop_at >= reading.beat_at > 0, reading.loop_tid) == (True, os.getpid())


@given(st.text(max_size=80))
def test_a_stage_of_any_length_and_script_is_cut_to_its_place(stage: str) -> None:
    with page() as (fd, reader):
        PageWriter(fd).progress(1, 0.1, stage)
        reading = reader.read()
        assert reading is not None
        assert stage.startswith(reading.stage.rstrip("\0")) or "\0" in stage


def test_a_page_whose_writer_stopped_in_the_middle_is_not_believed() -> None:
    with page() as (fd, reader):
        memory = mmap.mmap(fd, PAGE_BYTES)
        memory[0] = 1
        assert reader.read() is None
        memory.close()


@given(st.binary(max_size=300))
def test_whatever_a_child_writes_its_page_can_be_read(rubbish: bytes) -> None:
    with page() as (fd, reader):
        memory = mmap.mmap(fd, PAGE_BYTES)
        memory[1 : 1 + len(rubbish)] = rubbish
        assert reader.read() is not None
        memory.close()


@pytest.mark.promise(31)
def test_a_child_cannot_shrink_its_page_under_its_reader() -> None:
    with page() as (fd, _), pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
