import asyncio

from gen_worker.orchestrator.views import JobEvent
from gen_worker.orchestrator.watching import EVENT_BYTES, KEPT_BYTES, WATCHED_BYTES, WATCHED_EVENTS, Log, Watch


def event(number: int, body: bytes = b"") -> JobEvent:
    return JobEvent(number=number, kind="chunk", attempt=1, body=body)


def test_what_is_kept_of_a_long_stream_is_bounded_whatever_its_pieces_are() -> None:
    for size in (0, 1000, 3 << 20):
        log = Log()
        kept_from = 0
        for _ in range(4 * KEPT_BYTES // (EVENT_BYTES + size)):
            if old := log.add(size):
                assert old > kept_from
                kept_from = old
            assert (log.last - kept_from) * (EVENT_BYTES + size) <= 2 * KEPT_BYTES + 2 * (EVENT_BYTES + size)
        assert kept_from
        assert (log.last - kept_from) * (EVENT_BYTES + size) >= KEPT_BYTES / 2


def test_a_restart_goes_on_counting() -> None:
    log = Log(last=7)
    log.add(1)
    assert log.last == 8


def test_a_watcher_gets_what_happens_in_order() -> None:
    async def watched() -> list[JobEvent | None]:
        watch = Watch()
        watch.tell(event(1))  # before it looks at what is kept, which has this one
        watch.resume()
        watch.tell(event(2))
        watch.tell(event(3))
        return [await watch.next(), await watch.next()]

    assert asyncio.run(watched()) == [event(2), event(3)]


def test_a_watcher_that_does_not_read_falls_behind_instead_of_filling_the_memory() -> None:
    async def watched() -> list[JobEvent | None]:
        watch = Watch()
        watch.resume()
        for number in range(WATCHED_EVENTS + 2):
            watch.tell(event(number))
        behind = await watch.next()
        watch.resume()
        watch.tell(event(5000))
        return [behind, await watch.next()]

    assert asyncio.run(watched()) == [None, event(5000)]


def test_large_events_fill_a_watcher_s_memory_no_more_than_small_ones_and_one_of_any_size_arrives() -> None:
    large = bytes(WATCHED_BYTES // 2)

    async def watched() -> list[JobEvent | None]:
        watch = Watch()
        watch.resume()
        watch.tell(event(1, large + large + large))
        first = await watch.next()
        for number in (2, 3):
            watch.tell(event(number, large))
        read = await watch.next()
        watch.tell(event(4, large))
        watch.tell(event(5, b"x"))
        return [first, read, await watch.next()]

    assert asyncio.run(watched()) == [event(1, 3 * large), event(2, large), None]
