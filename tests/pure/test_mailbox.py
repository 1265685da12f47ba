"""What a realtime peer says, on its way to the handler."""

import asyncio

from gen_worker_child.realtime import Mailbox, Session


def test_a_handler_takes_what_its_peer_said_in_order_and_then_its_end() -> None:
    taken: list[int] = []
    mailbox = Mailbox(taken.append)

    async def handler() -> list[bytes | str]:
        heard: list[bytes | str] = []
        while (message := await mailbox.take()) is not None:
            heard.append(message)
        return heard

    async def conversation() -> list[bytes | str]:
        listening = asyncio.create_task(handler())
        await asyncio.sleep(0)  # it waits now
        for message in (b"a", "b"):
            await asyncio.to_thread(mailbox.put, message)
        await asyncio.to_thread(mailbox.hang_up)
        mailbox.put(b"too late")
        return await listening

    assert asyncio.run(conversation()) == [b"a", "b"]
    assert taken == [1, 1]


def test_a_session_that_its_handler_closed_says_and_hears_nothing_more() -> None:
    sent: list[tuple[bytes, bool]] = []

    async def send(data: bytes, is_text: bool) -> None:
        sent.append((data, is_text))

    async def conversation() -> str:
        session = Session(Mailbox(lambda count: None), send)
        session.mailbox.put(b"unheard")
        await session.send("hello")
        await session.send(b"\x00")
        session.close()
        assert await session.receive() is None
        try:
            await session.send(b"late")
        except ConnectionError as error:
            return str(error)
        return ""

    assert asyncio.run(conversation()) == "the session is closed"
    assert sent == [(b"hello", True), (b"\x00", False)]
