"""How far fetches are, when several of them wait for the same blob."""

from pathlib import Path

from gen_worker.fetch.progress import Ongoing, Progress
from gen_worker_supervisor.processes.companion import LONGEST_PAUSE_S, pause_before

A, B, C = Path("a"), Path("b"), Path("c")
Told = list[tuple[int, int | None, int]]


def counting(total: int | None) -> tuple[Progress, Told]:
    told: Told = []
    return Progress(total, lambda *now: told.append(now)), told


def test_every_fetch_that_waits_for_a_blob_counts_it() -> None:
    ongoing = Ongoing()
    (first, told), (second, also_told) = counting(30), counting(10)
    ongoing.join({A: 10, B: 20}, first)
    ongoing.add(A, 4)
    ongoing.join({A: 10}, second)
    ongoing.add(A, 6)
    ongoing.add(B, 5)
    assert [done for done, _, _ in told] == [0, 4, 10, 15]
    assert [done for done, _, _ in also_told] == [4, 10]


def test_a_download_that_fails_takes_back_what_it_counted() -> None:
    ongoing = Ongoing()
    progress, told = counting(10)
    ongoing.join({A: 10}, progress)
    ongoing.add(A, 7)
    ongoing.settle(A, 0)
    ongoing.add(A, 7)  # its successor finds them in the part
    ongoing.settle(A, 10)
    assert [done for done, _, _ in told] == [0, 7, 0, 7, 10]


def test_what_other_fetches_have_yet_to_write_is_known() -> None:
    ongoing = Ongoing()
    first, second, third = (counting(None)[0] for _ in range(3))
    assert ongoing.join({A: 10, B: 20}, first) == 0
    ongoing.add(A, 4)
    assert ongoing.join({B: 20, C: 5}, second) == 6
    ongoing.leave({A: 10, B: 20}, first)
    assert ongoing.join({A: 10}, third) == 25


def test_retries_are_counted_beside_the_bytes() -> None:
    progress, told = counting(None)
    progress.retried()
    progress.add(3)
    assert told == [(0, None, 1), (3, None, 1)]


def test_a_fetcher_that_dies_again_and_again_is_replaced_later_and_later() -> None:
    assert [pause_before(death) for death in range(1, 6)] == [0.0, 1.0, 2.0, 4.0, 8.0]
    assert pause_before(1000) == LONGEST_PAUSE_S
