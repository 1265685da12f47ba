"""Functions that send their requests to an engine server, which is `gen_worker.testing.engine` in tests."""

import asyncio
import http.client
import json
import os
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from gen_worker import HF, IncrementalTokenDelta, RequestContext, Resources, endpoint
from gen_worker.runtimes.server import ServerHandle


class Ask(msgspec.Struct):
    text: str


class Said(msgspec.Struct):
    text: str
    model: str
    setups: int = 0


def body_of(payload: Ask, *, stream: bool = False) -> bytes:
    said = {"messages": [{"role": "user", "content": payload.text}], "model": "m", "stream": stream}
    return json.dumps(said).encode()


def note(text: str) -> None:
    """Leave a line where tests look."""
    if folder := os.environ.get("FAULTY_FOLDER"):
        with Path(folder, "hooks").open("a") as notes:
            notes.write(f"{text}\n")


def spin() -> None:
    """Leave other threads a turn now and then, as a busy author's code may."""
    while True:
        pass


if os.environ.get("ENGINED_IS_BUSY"):
    sys.setswitchinterval(0.05)
    threading.Thread(target=spin, daemon=True).start()


class Proxy:
    """What both classes below have in common."""

    def _say(self, payload: Ask) -> str:
        host = self.engine.base_url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=30)
        try:
            connection.request("POST", "/v1/chat/completions", body_of(payload))
            return str(json.load(connection.getresponse())["choices"][0]["message"]["content"])
        finally:
            connection.close()

    engine: ServerHandle


@endpoint(model=HF("acme/first"), runtime="vllm", resources=Resources(gpu=True))
class Chat(Proxy):
    engine_args = ("--max-model-len", 128)

    def setup(self, model: str, engine: ServerHandle) -> None:
        assert engine.alive
        self.model, self.engine = model, engine
        note(f"setup {engine.base_url}")

    def shutdown(self) -> None:
        note(f"shutdown {self.engine.alive}")
        if os.environ.get("ENGINED_ENDS_IT"):
            self.engine.process.terminate()
            self.engine.process.wait()

    def chat(self, ctx: RequestContext, payload: Ask) -> Said:
        return Said(self._say(payload), self.model)

    async def stream(self, ctx: RequestContext, payload: Ask) -> AsyncIterator[IncrementalTokenDelta]:
        host, _, port = self.engine.base_url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = body_of(payload, stream=True)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        try:
            while (line := await reader.readline()) != b"data: [DONE]\n":
                if not line:
                    raise ConnectionError("the engine's answer broke off")
                if line.startswith(b"data: ") and (delta := json.loads(line[6:])["choices"][0]["delta"]):
                    yield IncrementalTokenDelta(text=delta["content"])
        finally:
            writer.close()


@endpoint(model=HF("acme/second"), runtime="llama-server")
class Other(Proxy):
    def setup(self, engine: "ServerHandle", weights: Path) -> None:
        self.engine, self.weights = engine, weights

    def other(self, ctx: RequestContext, payload: Ask) -> Said:
        return Said(self._say(payload), str(self.weights))
