"""Waiting for what happens to a job while its reader may leave and the server may end."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

from starlette.types import Receive

ALIVE_S = 15.0  # a stream of events says so often that it is still there

Event = TypeVar("Event")


async def hung_up(receive: Receive) -> None:
    """Return when whoever asked has gone; what comes of a body is not read any more."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def closing(events: AsyncIterator[Event]) -> AsyncIterator[Event]:
    """Yield what another iterator does, and close that however this ends."""
    try:
        async for event in events:
            yield event
    finally:
        await _close(events)


async def until_closed(
    events: AsyncIterator[Event], closed: asyncio.Event, alive_s: float = ALIVE_S
) -> AsyncIterator[Event | None]:
    """Yield what another iterator does until that ends or `closed` is set, and None where nothing comes for a while."""
    ended = asyncio.ensure_future(closed.wait())
    coming: asyncio.Future[Event] | None = None
    try:
        while not ended.done():
            coming = coming or asyncio.ensure_future(anext(events))
            await asyncio.wait((coming, ended), timeout=alive_s, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                yield None
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            yield event
    finally:
        left: list[asyncio.Future[Any]] = [ended, *([coming] if coming is not None else [])]
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await _close(events)


async def _close(events: AsyncIterator[Any]) -> None:
    if isinstance(events, AsyncGenerator):
        await events.aclose()
