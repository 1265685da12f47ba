"""Back-pressure of one stream."""

import asyncio
import threading

from hypothesis import given
from hypothesis import strategies as st

from gen_worker.wire.messages import WINDOW_BYTES, WINDOW_ITEMS
from gen_worker_child.windows import Window


def waits(window: Window) -> threading.Thread:
    """Start a thread that waits for room."""
    thread = threading.Thread(target=window.wait, daemon=True)
    thread.start()
    return thread


def full(*, size: int = 1) -> Window:
    """A window with no room."""
    window = Window()
    for _ in range(min(WINDOW_ITEMS, WINDOW_BYTES // size)):
        window.wait()
        window.add(size)
    return window


def test_a_full_window_waits_until_an_item_is_taken() -> None:
    for window in (full(), full(size=WINDOW_BYTES // 4)):
        thread = waits(window)
        thread.join(0.02)
        assert thread.is_alive()
        window.taken(1)
        thread.join(10)
        assert not thread.is_alive()


def test_closing_ends_every_wait() -> None:
    window = full()
    threads = [waits(window) for _ in range(3)]
    window.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_on_the_loop_a_full_window_waits_too() -> None:
    async def story() -> None:
        empty, crowded, closed = Window(), full(), full()
        assert empty.wait_async() is None
        waiting, ended = crowded.wait_async(), closed.wait_async()
        assert waiting is not None
        assert ended is not None
        crowded.taken(1)
        closed.close()
        await asyncio.wait_for(asyncio.gather(waiting, ended), 10)

    asyncio.run(story())


def test_a_handler_that_was_cancelled_while_it_waited_upsets_nobody() -> None:
    async def story() -> None:
        window = full()
        waiting = window.wait_async()
        assert waiting is not None
        waiting.cancel()
        window.taken(1)
        await asyncio.sleep(0)
        assert window.wait_async() is None

    asyncio.run(story())


@given(st.lists(st.integers(0, WINDOW_BYTES), max_size=40), st.integers(0, 2**62))
def test_a_reader_that_says_it_took_more_than_there_was_makes_no_more_room(sizes: list[int], items: int) -> None:
    window = Window()
    for size in sizes:
        window.add(size)
    window.taken(items)
    window.taken(len(sizes))
    for _ in range(WINDOW_ITEMS):
        assert window._has_room()
        window.add(1)
    assert not window._has_room()
