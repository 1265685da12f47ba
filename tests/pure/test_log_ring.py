"""The last lines in memory: which are remembered, which are given to whom, and who is told that some are missing."""

import json

import pytest

from gen_worker.log_files import Line
from gen_worker.wire.messages import Level
from gen_worker_supervisor.logs.ring import ENTRY_BYTES, LOOKED_AT, PAGE_BYTES, Filter, Page, Ring

ALL = Filter()


def line(message: str = "x", level: Level = "info", *, source: str = "cpu:0", job: str | None = None) -> Line:
    return Line(1.5, level, source, message, job, source)


def filled(count: int, limit_bytes: int = 1 << 20) -> Ring:
    ring = Ring(limit_bytes)
    for number in range(1, count + 1):
        ring.add(line(f"line {number}"))
    return ring


def numbers(page: Page) -> list[int]:
    return [json.loads(text)["seq"] for text in page.lines]


def test_a_line_is_one_json_object_with_its_number() -> None:
    ring = Ring()
    ring.add(line("a\nb", "warning", job="r1"))
    (text,) = ring.page(0, ALL, 10).lines
    assert text.endswith(b"\n")
    assert text.count(b"\n") == 1
    assert json.loads(text) == {
        "ts": 1.5,
        "level": "warning",
        "source": "cpu:0",
        "message": "a\nb",
        "job": "r1",
        "child": "cpu:0",
        "seq": 1,
    }


def test_who_has_read_some_gets_the_others_and_nothing_twice() -> None:
    ring = filled(10)
    first = ring.page(0, ALL, 4)
    second = ring.page(first.last, ALL, 4)
    third = ring.page(second.last, ALL, 4)
    assert [numbers(page) for page in (first, second, third)] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    assert [page.more for page in (first, second, third)] == [True, True, False]
    assert ring.page(third.last, ALL, 4) == Page([], 10, 0, False)


def test_old_lines_go_and_who_comes_too_late_is_told_how_many() -> None:
    ring = filled(100, limit_bytes=20 * (ENTRY_BYTES + 90))
    page = ring.page(10, ALL, 1000)
    assert numbers(page)[-1] == 100
    assert page.left_out == numbers(page)[0] - 11 > 0


def test_a_line_longer_than_everything_is_remembered_all_the_same() -> None:
    ring = filled(3, limit_bytes=10)
    assert numbers(ring.page(0, ALL, 10)) == [3]


def test_the_last_lines_that_are_meant_are_counted_and_no_others() -> None:
    ring = filled(10)
    for number in range(5):
        ring.add(line("of the other", source="cpu:1", job=f"r{number}"))
        ring.add(line("more"))
    assert numbers(ring.page(-2, Filter(device="cpu:1"), 10)) == [17, 19]
    assert numbers(ring.page(-100, Filter(device="cpu:1"), 10)) == [11, 13, 15, 17, 19]


@pytest.mark.parametrize(
    ("meant", "found"),
    [
        (ALL, [1, 2, 3, 4]),
        (Filter(events=True), [3, 4]),
        (Filter(device="cuda:0"), [1, 3]),
        (Filter(request_id="r1"), [1, 4]),
        (Filter(level="warning"), [2, 4]),
        (Filter(events=True, level="error"), [4]),
        (Filter(device="cuda:1", request_id="r1"), []),
    ],
)
def test_each_filter_leaves_what_is_meant(meant: Filter, found: list[int]) -> None:
    ring = Ring()
    ring.add(line(source="cuda:0", job="r1"))
    ring.add(line(level="warning", source="cuda:1"))
    ring.add(Line(1.5, "info", "cuda:0", "began", event=True))
    ring.add(Line(1.5, "error", "serve", "ended", "r1", event=True))
    page = ring.page(0, meant, 10)
    assert (numbers(page), page.last) == (found, 4)


def test_one_look_is_at_so_many_lines_and_says_that_there_are_more() -> None:
    ring = filled(LOOKED_AT + 10, limit_bytes=64 << 20)
    page = ring.page(0, Filter(device="nobody"), 10)
    assert page == Page([], LOOKED_AT, 0, True)
    assert ring.page(page.last, Filter(device="nobody"), 10) == Page([], LOOKED_AT + 10, 0, False)


def test_a_page_has_so_many_bytes_at_most_but_one_line_at_least() -> None:
    ring = Ring()
    for _ in range(3):
        ring.add(line("x" * (PAGE_BYTES * 2 // 3)))
    assert numbers(ring.page(0, ALL, 10)) == [1]
    ring.add(line("x" * (PAGE_BYTES + 1)))
    assert numbers(ring.page(3, ALL, 10)) == [4]


def test_a_number_of_a_supervisor_before_this_one_is_no_reason_to_wait_for_ever() -> None:
    ring = filled(3)
    assert ring.page(1000, ALL, 10).last == 3
