"""An engine server without a model: it stands where `vllm` or `llama-server` stands and speaks as OpenAI's API does.

    PATH=$(python -m gen_worker.testing.engine --install bin):$PATH gen-worker serve

`python -m gen_worker.testing.engine serve MODEL --port 8000` starts one by hand. It answers `/health`, `/v1/models` and
`/v1/chat/completions`, whole or as a stream: the last message of the conversation again, word by word. Options make it
fail as engines do; those after `--install` go into the programs that it writes.
"""

import argparse
import json
import os
import signal
import stat
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAMES = ("vllm", "llama-server")


def install_engine(folder: str | os.PathLike[str], *options: str, names: Sequence[str] = NAMES) -> Path:
    """Write programs of these names into a folder that are this server with these options; return the folder.

    Put it at the front of `PATH`.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for name in names:
        words = " ".join(
            f"'{word}'" for word in (sys.executable, "-m", "gen_worker.testing.engine", "--name", name, *options)
        )
        program = place / name
        program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return place.resolve()


class Engine(ThreadingHTTPServer):
    """The server and how it is to fail."""

    daemon_threads = True

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__((options.host, options.port), _Handler)
        self.options = options
        self.up_at = time.monotonic() + options.boot_s
        self.asked = 0
        self.counting = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say what went wrong, unless it is that the client has gone."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            traceback.print_exc()

    def count(self) -> None:
        """Count a request; die with the last one that it may answer begun."""
        with self.counting:
            self.asked += 1
            last = self.options.die_after and self.asked >= self.options.die_after
        if last:
            print("engine: a fatal error, as it was asked for", flush=True)
            os.kill(os.getpid(), self.options.die_of)


class _Handler(BaseHTTPRequestHandler):
    server: Engine
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        print(f"{self.command} {self.path}", flush=True)

    def do_GET(self) -> None:
        if self.path == "/health":
            up = time.monotonic() >= self.server.up_at
            self._answer(200 if up else 503, {} if up else {"error": {"message": "Loading model", "code": 503}})
        elif self.path == "/v1/models":
            self._answer(200, {"object": "list", "data": [{"id": self.server.options.model, "object": "model"}]})
        else:
            self._answer(404, {"error": {"message": f"no {self.path}", "code": 404}})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.path != "/v1/chat/completions":
            self._answer(404, {"error": {"message": f"no {self.path}", "code": 404}})
            return
        try:
            asked = json.loads(body)
            said = str(asked["messages"][-1]["content"])
        except (ValueError, LookupError, TypeError) as error:
            self._answer(400, {"error": {"message": f"bad request: {error}", "code": 400}})
            return
        words = [word if place == 0 else f" {word}" for place, word in enumerate(said.split())]
        words = words[: asked.get("max_tokens") or len(words)]
        if asked.get("stream"):
            self._stream(asked, words)
        else:
            self._whole(asked, words)

    def _whole(self, asked: dict[str, Any], words: list[str]) -> None:
        said = "".join(self._paced(words))
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        usage = {"prompt_tokens": len(words), "completion_tokens": len(words), "total_tokens": 2 * len(words)}
        self._answer(200, {**_envelope(asked, "chat.completion"), "choices": [choice], "usage": usage})

    def _stream(self, asked: dict[str, Any], words: list[str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for word in self._paced(words):
            self._event(asked, {"content": word}, None)
        self._event(asked, {}, "stop")
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _paced(self, words: list[str]) -> Iterator[str]:
        for place, word in enumerate(words):
            if place == 1 or len(words) == 1:
                self.server.count()  # in the middle of its answer, where it has one
            yield word
            time.sleep(self.server.options.token_s)

    def _event(self, asked: dict[str, Any], delta: dict[str, str], finish: str | None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        event = {**_envelope(asked, "chat.completion.chunk"), "choices": [choice]}
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _envelope(asked: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": int(time.time()), "model": str(asked.get("model", ""))}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gen_worker.testing.engine", allow_abbrev=False)
    parser.add_argument("--install", metavar="FOLDER", help="write programs that start this server into a folder")
    parser.add_argument("--name", default="engine", choices=(*NAMES, "engine"), help="what it stands for")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("-m", "--model", default="")
    parser.add_argument("--boot-s", type=float, default=0.0, help="seconds until it is healthy")
    parser.add_argument("--token-s", type=float, default=0.0, help="seconds that each word takes")
    parser.add_argument("--crash-at-boot", action="store_true", help="end with status 1 instead of coming up")
    parser.add_argument("--die-after", type=int, default=0, metavar="N", help="die in the middle of answer N")
    parser.add_argument("--die-of", type=int, default=int(signal.SIGKILL), metavar="SIGNAL")
    parser.add_argument("--deaf", action="store_true", help="take no notice of SIGTERM")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="fork processes that never end")
    parser.add_argument("--strays", type=int, default=0, metavar="N", help="the same, each in a session of its own")
    return parser


def _fork_worker(*, stray: bool) -> None:
    if os.fork() != 0:
        return
    if stray:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until it is ended, or write the programs that do."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, rest = _parser().parse_known_args(given)
    if options.install is not None:
        at = given.index("--install")
        print(install_engine(options.install, *given[:at], *given[at + 2 :]))
        return 0
    options.model = options.model or next((word for word in rest if word != "serve" and word[:1] != "-"), "")
    for stray in [False] * options.workers + [True] * options.strays:
        _fork_worker(stray=stray)
    print(f"{options.name}: loading {options.model}", flush=True)
    if options.crash_at_boot:
        print("RuntimeError: engine core initialization failed", file=sys.stderr, flush=True)
        return 1
    signal.signal(signal.SIGTERM, signal.SIG_IGN if options.deaf else lambda *_: os._exit(0))
    with Engine(options) as engine:
        engine.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
