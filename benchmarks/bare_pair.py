"""The floor of dispatch: one asyncio process that relays each request to one worker process and back.

It speaks the same NDJSON over a Unix socket as `gen-worker serve` and has nothing else: no supervision, no limits, no
second worker, no cancel. `python -m benchmarks.bare_pair SOCKET` prints `ready` and serves until its input closes.
"""

import asyncio
import os
import socket
import sys
from collections import deque
from typing import cast

import msgspec

FRAME_BYTES = 64 * 1024  # the longest frame the pair relays; it is a floor for small requests
OK_HEAD = b'{"ok":true,"events":[{"event":"result","value":'
OK_TAIL = b"}]}\n"
BAD_REQUEST = b'{"ok":false,"error":{"kind":"usage","message":"not a request of the pair\'s"}}\n'


class Request(msgspec.Struct, gc=False):
    function: str
    payload: msgspec.Raw


class Job(msgspec.Struct, array_like=True, gc=False):
    number: int
    function: str
    payload: msgspec.Raw | bytes


class Answer(msgspec.Struct, array_like=True, gc=False):
    number: int
    value: bytes


class Prompt(msgspec.Struct):
    prompt: str


def echo(payload: Prompt) -> Prompt:
    return payload


def work(link: socket.socket) -> None:
    """Answer jobs until the front is gone."""
    job = msgspec.msgpack.Decoder(Job)
    payload = msgspec.json.Decoder(Prompt)
    pack = msgspec.msgpack.Encoder().encode
    text = msgspec.json.Encoder().encode
    while frame := link.recv(FRAME_BYTES):
        order = job.decode(frame)
        value = echo(payload.decode(bytes(order.payload)))
        link.send(pack(Answer(order.number, text(value))))


class Front:
    """Clients on one side, the worker on the other; `waiting` says whose answer each number is."""

    def __init__(self, link: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self.link = link
        self.loop = loop
        self.waiting: dict[int, asyncio.Transport] = {}
        self.unsent: deque[bytes] = deque()
        self.number = 0
        self.request = msgspec.json.Decoder(Request).decode
        self.answer = msgspec.msgpack.Decoder(Answer).decode
        self.pack = msgspec.msgpack.Encoder().encode
        loop.add_reader(link, self.on_answer)

    def submit(self, line: bytes, client: asyncio.Transport) -> None:
        try:
            request = self.request(line)
        except msgspec.DecodeError:
            client.write(BAD_REQUEST)
            return
        self.number += 1
        self.waiting[self.number] = client
        frame = self.pack(Job(self.number, request.function, bytes(request.payload)))
        if self.unsent:
            self.unsent.append(frame)
            return
        try:
            self.link.send(frame)
        except BlockingIOError:
            self.unsent.append(frame)
            self.loop.add_writer(self.link, self.on_room)

    def on_room(self) -> None:
        while self.unsent:
            try:
                self.link.send(self.unsent[0])
            except BlockingIOError:
                return
            self.unsent.popleft()
        self.loop.remove_writer(self.link)

    def on_answer(self) -> None:
        while self.waiting:  # nobody waits, no further frame: one client costs one `recv`
            try:
                frame = self.link.recv(FRAME_BYTES)
            except BlockingIOError:
                return
            if not frame:
                self.loop.stop()
                return
            answer = self.answer(frame)
            client = self.waiting.pop(answer.number)
            client.write(b"%b%b%b" % (OK_HEAD, answer.value, OK_TAIL))


class Client(asyncio.Protocol):
    """One connection: cuts its bytes into lines."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self.rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self.rest and data.find(b"\n") == len(data) - 1:  # the usual case: one whole line
            self.front.submit(data, self.transport)
            return
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.front.submit(line, self.transport)


async def relay(path: str, link: socket.socket) -> None:
    """Serve until standard input closes."""
    loop = asyncio.get_running_loop()
    front = Front(link, loop)
    over = asyncio.Event()
    loop.add_reader(0, over.set)
    async with await loop.create_unix_server(lambda: Client(front), path, backlog=256):
        print("ready", flush=True)
        await over.wait()
    loop.remove_reader(link)


def main() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker = os.fork()
    if worker == 0:
        ours.close()
        work(theirs)
        os._exit(0)
    theirs.close()
    ours.setblocking(False)
    asyncio.run(relay(sys.argv[1], ours))
    ours.close()
    os.waitpid(worker, 0)


if __name__ == "__main__":
    main()
