"""Shared memory between processes: what a region promises to the side that did not make it."""

import fcntl
import mmap
import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.wire.messages import REGION_LIMIT
from gen_worker.wire.regions import SMALLEST, OwnRegion, RegionError, open_region, size_class


def sealed(size: int, seals: int) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_reader_sees_what_the_owner_writes_also_later() -> None:
    with OwnRegion.create(SMALLEST, shared_with_readers_only=True) as own:
        own.view[:5] = b"first"
        with open_region(os.dup(own.fd), 5, writable=False) as mapped:
            assert bytes(mapped.body(5)) == b"first"
            own.view[:5] = b"again"
            assert bytes(mapped.body(5)) == b"again"


@pytest.mark.promise(31)
def test_a_reader_can_neither_write_nor_cut_a_region_shared_with_readers_only() -> None:
    with OwnRegion.create(SMALLEST, shared_with_readers_only=True) as own:
        with pytest.raises(RegionError, match="cannot be mapped"):
            open_region(os.dup(own.fd), 1, writable=True)
        with pytest.raises(PermissionError):
            os.ftruncate(own.fd, 0)
        with pytest.raises(PermissionError):
            os.write(own.fd, b"x")
        with pytest.raises(PermissionError):
            fcntl.fcntl(own.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_a_region_shared_with_a_writer_takes_the_writers_bytes() -> None:
    with (
        OwnRegion.create(SMALLEST, shared_with_readers_only=False) as own,
        open_region(os.dup(own.fd), 0, writable=True) as mapped,
    ):
        mapped.view[:5] = b"there"
        assert bytes(own.body(5)) == b"there"


@pytest.mark.promise(31)
@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW])
def test_a_memfd_that_may_still_change_its_size_is_refused(seals: int) -> None:
    fd = sealed(SMALLEST, seals)
    with pytest.raises(RegionError, match="not sealed"):
        open_region(fd, 1, writable=False)
    assert not is_open(fd)


@pytest.mark.promise(31)
def test_a_file_that_is_no_memfd_is_refused() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 100)
        file.flush()
        with pytest.raises(RegionError, match=r"not a memfd|not sealed"):
            open_region(os.dup(file.fileno()), 1, writable=False)
    reader, writer = os.pipe()
    os.close(writer)
    with pytest.raises(RegionError, match="not a memfd"):
        open_region(reader, 1, writable=False)


@pytest.mark.promise(11)
@pytest.mark.parametrize("length", [-1, SMALLEST + 1, REGION_LIMIT + 1])
def test_a_body_that_the_region_cannot_hold_is_refused(length: int) -> None:
    fd = sealed(SMALLEST, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    with pytest.raises(RegionError, match="bytes"):
        open_region(fd, length, writable=False)
    assert not is_open(fd)


@pytest.mark.promise(11)
@pytest.mark.parametrize("size", [0, REGION_LIMIT + 1])
def test_a_region_of_an_absurd_size_is_refused(size: int) -> None:
    with pytest.raises(RegionError, match="1 to"):
        open_region(sealed(size, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW), 0, writable=False)
    with pytest.raises(RegionError, match="1 to"):
        OwnRegion.create(size, shared_with_readers_only=True)


def test_closing_leaves_no_descriptor() -> None:
    before = set(os.listdir("/proc/self/fd"))
    own = OwnRegion.create(mmap.PAGESIZE, shared_with_readers_only=True)
    mapped = open_region(os.dup(own.fd), 1, writable=False)
    mapped.close()
    own.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_region_knows_whether_its_bytes_are_still_looked_at() -> None:
    with OwnRegion.create(SMALLEST, shared_with_readers_only=True) as own:
        assert not own.lent
        lent = [own.lent]
        body = own.body(10)
        part = body[2:4]
        del body
        lent.append(own.lent)
        del part
        lent.append(own.lent)
        assert lent == [False, True, False]


def test_a_view_outlives_the_region_it_was_taken_from() -> None:
    own = OwnRegion.create(SMALLEST, shared_with_readers_only=True)
    own.view[:4] = b"body"
    body = own.body(4)
    own.close()
    assert bytes(body) == b"body"


@given(st.integers(0, REGION_LIMIT))
def test_a_size_class_holds_the_body_and_wastes_at_most_half(length: int) -> None:
    size = size_class(length)
    assert length <= size <= max(SMALLEST, 2 * length)
    assert size % mmap.PAGESIZE == 0
    assert size_class(size) == size


@given(st.integers(16 << 20, REGION_LIMIT))
def test_big_size_classes_waste_at_most_a_quarter(length: int) -> None:
    assert size_class(length) <= length * 5 // 4 + 1


def test_there_is_no_class_over_the_limit() -> None:
    assert size_class(REGION_LIMIT) == REGION_LIMIT
    with pytest.raises(RegionError):
        size_class(REGION_LIMIT + 1)
