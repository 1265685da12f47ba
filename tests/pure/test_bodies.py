"""Where payloads and outputs lie, and who may write to which memory when."""

import os
from collections.abc import Callable, Iterator

import pytest

from gen_worker.wire.messages import REGION_LIMIT, Region, Release, Unmap
from gen_worker.wire.regions import RegionError
from gen_worker_supervisor.core.bodies import (
    GRANT_LIMIT,
    KEPT_FREE,
    KEPT_FREE_BYTES,
    LENT_LIMIT,
    InlinePayload,
    InputRegions,
    OutputRegions,
)

BIG = 100_000


@pytest.fixture(autouse=True)
def _no_descriptor_stays() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def outputs(send: Callable[[Release | Unmap], None] = lambda order: None) -> OutputRegions:
    """The output regions of a child."""
    return OutputRegions(3, send)


def granted(regions: OutputRegions, size: int = BIG) -> int:
    """Grant a region; return its index."""
    found = regions.grant(size)
    assert found is not None
    return found[0]


def test_a_payload_lies_in_a_region_of_its_own_until_it_is_released() -> None:
    regions = InputRegions()
    first, first_fd = regions.place(InlinePayload(b"a" * BIG))
    second, second_fd = regions.place(InlinePayload(b"b" * BIG))
    assert os.pread(first_fd, 1, 0) == b"a"
    assert os.pread(second_fd, 1, 0) == b"b"
    assert first.index != second.index
    regions.released(first.index)
    third, third_fd = regions.place(InlinePayload(b"c" * BIG))
    assert third_fd == first_fd
    assert third.index not in (first.index, second.index)
    regions.close()


def test_releases_that_mean_nothing_free_nothing() -> None:
    regions = InputRegions()
    placed, fd = regions.place(InlinePayload(b"a" * BIG))
    for index in (0, -1, placed.index + 1, 2**60):
        regions.released(index)
    _, other = regions.place(InlinePayload(b"b" * BIG))
    assert other != fd
    regions.released(placed.index)
    regions.released(placed.index)
    fds = {regions.place(InlinePayload(b"c" * BIG))[1] for _ in range(2)}
    assert len(fds) == 2, "released twice, lent once"
    regions.close()


def test_only_a_few_free_regions_are_kept() -> None:
    regions = InputRegions()
    placed = [regions.place(InlinePayload(b"a" * BIG)) for _ in range(3 * KEPT_FREE)]
    for region, _ in placed:
        regions.released(region.index)
    assert sum(os.path.exists(f"/proc/self/fd/{fd}") for _, fd in placed) == KEPT_FREE
    regions.close()


@pytest.mark.parametrize("size", [0, -1, REGION_LIMIT + 1, 1 << 62])
def test_a_region_of_an_absurd_size_is_not_granted(size: int) -> None:
    regions = outputs()
    assert regions.grant(size) is None
    regions.close()


def test_a_child_is_granted_so_much_and_no_more() -> None:
    regions = outputs()
    grants = [regions.grant(REGION_LIMIT) for _ in range(GRANT_LIMIT // REGION_LIMIT + 1)]
    assert [found is None for found in grants] == [False] * (len(grants) - 1) + [True]
    regions.close()


def test_while_readers_hold_too_much_the_next_output_waits() -> None:
    regions = outputs()
    held = [granted(regions, REGION_LIMIT) for _ in range(LENT_LIMIT // REGION_LIMIT)]
    for index in held:
        regions.lend(Region(index, 5))
    with pytest.raises(RegionError, match="4 outputs before it are still being read"):
        regions.grant(BIG)
    regions.lent(held[0]).release()
    granted(regions)
    regions.close()
    for index in held[1:]:
        regions.lent(index).release()


def test_an_output_may_lie_only_in_a_region_the_child_holds() -> None:
    regions = outputs()
    index = granted(regions)
    size = 1 << 17
    refused = [Region(index + 1, 1), Region(0, 1), Region(-1, 1), Region(index, -1), Region(index, size + 1)]
    assert [regions.lend(body) for body in refused] == [False] * len(refused)
    assert regions.lend(Region(index, size))
    assert not regions.lend(Region(index, 5)), "it is being read"
    regions.lent(index).release()
    assert regions.lend(Region(index, 5))
    regions.lent(index).release()
    regions.close()


def test_a_region_goes_back_to_its_child_when_it_was_read() -> None:
    freed: list[Release | Unmap] = []
    regions = outputs(freed.append)
    index = granted(regions)
    regions.lend(Region(index, 5))
    output = regions.lent(index)
    assert freed == []
    output.release()
    assert freed == [Release(index)]
    regions.close()


def test_a_child_keeps_only_so_much_memory_that_nobody_reads() -> None:
    told: list[Release | Unmap] = []
    regions = outputs(told.append)
    size = 8 << 20
    burst = [granted(regions, size) for _ in range(20)]
    for index in burst:
        regions.lend(Region(index, size))
        assert not told
    for index in burst:
        regions.lent(index).release()
    kept = [order.index for order in told if isinstance(order, Release)]
    assert len(kept) == KEPT_FREE_BYTES // size
    assert [order.index for order in told if isinstance(order, Unmap)] == burst[len(kept) :]
    assert not regions.lend(Region(burst[-1], size)), "it is gone"
    assert regions.lend(Region(kept[0], size))
    regions.lent(kept[0]).release()
    regions.close()


def test_one_region_of_any_size_is_kept_for_the_next_output() -> None:
    told: list[Release | Unmap] = []
    regions = outputs(told.append)
    index = granted(regions, 4 * KEPT_FREE_BYTES)
    for _ in range(3):
        regions.lend(Region(index, 5))
        regions.lent(index).release()
    assert told == [Release(index)] * 3
    regions.close()


def test_an_output_outlives_its_child_while_somebody_reads_it() -> None:
    freed: list[Release | Unmap] = []
    regions = outputs(freed.append)
    found = regions.grant(BIG)
    assert found is not None
    index, region = found
    region.view[:5] = b"hello"
    regions.lend(Region(index, 5))
    output = regions.lent(index)
    regions.close()
    assert bytes(output.view()) == b"hello"
    output.release()
    assert freed == [], "nobody is left to write to it"


def test_a_payload_that_is_closed_keeps_its_length_and_none_of_its_bytes() -> None:
    payload = InlinePayload(b"x" * 100)
    payload.close()
    assert (payload.length, payload.data) == (100, b"")
