"""A stand-in for the Acme API on this machine: `python fake_acme.py [PORT]` serves until it is interrupted.

Its key is `ACME_API_KEY`, or "demo". It says how many questions it worked on at once; the question "slow" is never
answered, "busy" gets a 503 and an empty one a 400.
"""

import asyncio
import json
import os
import sys


class FakeAcme:
    """Answers questions, each on a connection of its own."""

    def __init__(self, key: str, wait_for: int = 1) -> None:
        self.key = key
        self.in_flight = 0
        self._together = asyncio.Barrier(wait_for)  # nobody is answered before so many have asked

    async def serve(self, port: int = 0) -> asyncio.Server:
        return await asyncio.start_server(self._connection, "127.0.0.1", port)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.in_flight += 1
        try:
            headers, text = await self._request(reader)
            if text == "slow":
                await reader.read()  # until the client goes away
            status, document = await self._answer(headers, text)
            body = json.dumps(document).encode()
            writer.write(f"HTTP/1.1 {status} -\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went away
        finally:
            self.in_flight -= 1
            writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> tuple[dict[str, str], str]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(line.split(": ", 1) for line in head.splitlines()[1:] if line)
        body = await reader.readexactly(int(headers["Content-Length"]))
        return headers, json.loads(body)["text"]

    async def _answer(self, headers: dict[str, str], text: str) -> tuple[int, dict[str, object]]:
        if headers["Authorization"] != f"Bearer {self.key}":
            return 401, {"error": "wrong key"}
        if not text:
            return 400, {"error": "ask something"}
        if text == "busy":
            return 503, {"error": "busy"}
        await self._together.wait()
        return 200, {"text": f"{text}? Certainly.", "in_flight": self.in_flight}


async def main() -> None:
    acme = FakeAcme(os.environ.get("ACME_API_KEY", "demo"))
    server = await acme.serve(int(sys.argv[1]) if len(sys.argv) > 1 else 8900)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
