"""Blobs behind presigned URLs, from an origin that misbehaves on demand."""

import threading
from collections import Counter, defaultdict, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

SIGNATURE = "X-Amz-Signature=canary-5a17e0"


class Blobs:
    """An HTTP server on the loopback; `hits` counts the requests for each name."""

    def __init__(self) -> None:
        self.hits: Counter[str] = Counter()
        self._contents: dict[str, bytes] = {}
        self._faults: defaultdict[str, deque[str | int]] = defaultdict(deque)
        blobs = self

        class Exchange(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                blobs._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Exchange)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def __enter__(self) -> "Blobs":
        return self

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def snapshot(self, contents: dict[str, bytes], *faults: str | int) -> dict[str, Any]:
        """Return the description of a snapshot of these files as an orchestrator sends it.

        The first answers for its first file go wrong in this way: `corrupt`, `truncated`, or a status; once they are
        used up all is well, and `always` at the end repeats the one before it.
        """
        import blake3

        files: list[dict[str, Any]] = []
        for path, content in contents.items():
            digest = blake3.blake3(content).hexdigest()
            if not files:
                self._faults[digest] = deque(faults)
            self._contents[digest] = content
            url = f"{self.url}/{digest}?{SIGNATURE}"
            files.append({"path": path, "size_bytes": len(content), "blake3": digest, "url": url})
        named = "".join(each["blake3"] for each in files).encode()
        return {"digest": blake3.blake3(named).hexdigest(), "files": files}

    def _next_fault(self, name: str) -> str | int | None:
        faults = self._faults[name]
        if not faults:
            return None
        if faults[-1] == "always" and len(faults) == 2:
            return faults[0]
        return faults.popleft()

    def _answer(self, exchange: BaseHTTPRequestHandler) -> None:
        name, _, query = exchange.path.lstrip("/").partition("?")
        self.hits[name] += 1
        fault = self._next_fault(name)
        content = self._contents.get(name)
        if isinstance(fault, int) or content is None or query != SIGNATURE:
            exchange.send_error(fault if isinstance(fault, int) else 404)
            return
        start = int(exchange.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        end = exchange.headers.get("Range", "").rpartition("-")[2]
        body = content[start : int(end) + 1 if end else None]
        exchange.send_response(206 if "Range" in exchange.headers else 200)
        exchange.send_header("Content-Length", str(len(body)))
        exchange.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(content)}")
        exchange.end_headers()
        if fault == "corrupt":
            body = bytes([body[0] ^ 255]) + body[1:]
        exchange.wfile.write(body[: len(body) // 2] if fault == "truncated" else body)
        exchange.close_connection = True
