"""A folder of files behind HTTP on this machine: files of requests, whole, and uploads of jobs, in parts.

For the mock orchestrator. It keeps nothing but the files, and believes whoever has the token.
"""

import hashlib
import hmac
import mimetypes
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

import msgspec

from gen_worker.models.errors import ModelError
from gen_worker.models.paths import check_path

PART_BYTES = 64 << 20
PIECE_BYTES = 1 << 20  # what is in memory of a file at once
FILES = ("api", "v1", "file")
PARTS = "parts"
SILENCE_S = 60.0  # of a client in the middle of a request


class _Refused(Exception):
    """A request gets this status instead."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Begin(msgspec.Struct):
    ref: str
    blake3: str
    size_bytes: int
    request_id: str = ""
    content_type: str = ""
    job_id: str = ""


class _Part(msgspec.Struct):
    part_number: int
    etag: str


class _Complete(msgspec.Struct):
    parts: list[_Part]


@dataclass
class _Upload:
    wanted: _Begin
    folder: Path
    total_parts: int
    etags: dict[int, str] = field(default_factory=dict)


class FileApi:
    """The files of one folder, served until `close`; `tell` gets a line for each request."""

    def __init__(self, folder: Path, address: tuple[str, int], *, token: str, tell: Callable[[str], None]) -> None:
        self.folder = folder
        self.token = token
        self.tell = tell
        self._uploads: dict[str, _Upload] = {}
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._server = ThreadingHTTPServer(address, partial(_Handler, self))
        self._server.daemon_threads = True
        self._parts = tempfile.TemporaryDirectory(prefix="gen-worker-parts-")
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def __enter__(self) -> "FileApi":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where it is, as seen from this machine."""
        host, port = self._server.server_address[:2]
        return f"http://{'127.0.0.1' if host in ('0.0.0.0', '') else host!s}:{port}"

    def close(self) -> None:
        """Stop listening and forget uploads that were not completed."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._parts.cleanup()

    # --- files whole --------------------------------------------------------------------------------------------------

    def place(self, ref: str) -> Path:
        """Return where a file lies or would lie."""
        try:
            return self.folder / check_path(ref)
        except ModelError as error:
            raise _Refused(400, str(error)) from None

    def write(self, ref: str, body: "_Body", *, replace: bool) -> dict[str, Any]:
        """Keep a file and return what is said of it."""
        place = self.place(ref)
        if not replace and place.exists():
            raise _Refused(409, f"there is a file `{ref}`")
        with _Placed(place) as file:
            body.copy(file)
        return self.described(ref)

    def described(self, ref: str) -> dict[str, Any]:
        """Return what is said of a file that is there."""
        place = self.place(ref)
        if not place.is_file():
            raise _Refused(404, f"no file `{ref}`")
        with place.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        mime_type = mimetypes.guess_type(ref)[0] or "application/octet-stream"
        return {"ref": ref, "size_bytes": place.stat().st_size, "sha256": digest, "mime_type": mime_type}

    # --- uploads in parts ---------------------------------------------------------------------------------------------

    def begin(self, wanted: _Begin) -> dict[str, Any]:
        """Open an upload; who has its URLs may write its parts."""
        self.place(wanted.ref)
        name = secrets.token_hex(16)
        total = max(1, -(-wanted.size_bytes // PART_BYTES))
        folder = Path(self._parts.name, name)
        folder.mkdir()
        with self._lock:
            self._uploads[name] = _Upload(wanted, folder, total)
        urls = [f"{self.url}/{PARTS}/{name}/{number}" for number in range(1, total + 1)]
        return {"upload_id": name, "part_urls": urls, "part_size": PART_BYTES, "total_parts": total}

    def part(self, name: str, number: str, body: "_Body") -> str:
        """Keep a part and return its ETag."""
        upload = self._upload(name)
        if not number.isdecimal() or not 1 <= int(number) <= upload.total_parts:
            raise _Refused(404, "no such part")
        with _Placed(upload.folder / number) as file:
            etag = f'"{body.copy(file)}"'
        upload.etags[int(number)] = etag
        return etag

    def complete(self, name: str, parts: list[_Part]) -> dict[str, Any]:
        """Put a file together from its parts, if it is what was announced."""
        upload = self._upload(name)
        if {each.part_number: each.etag for each in parts} != upload.etags or len(parts) != upload.total_parts:
            raise _Refused(400, "these are not the parts that were stored")
        wanted = upload.wanted
        with _Placed(self.place(wanted.ref)) as file:
            digest = self._joined(upload, file)
            if (file.tell(), digest) != (wanted.size_bytes, wanted.blake3.removeprefix("blake3:")):
                raise _Refused(422, "the file is not the one that was announced")
        self.abort(name)
        found = self.described(wanted.ref)
        return {**found, "mime_type": wanted.content_type or found["mime_type"], "blake3": digest, "media_id": name}

    def abort(self, name: str) -> None:
        """Forget an upload."""
        with self._lock:
            upload = self._uploads.pop(name, None)
        if upload is not None:
            shutil.rmtree(upload.folder)

    def _joined(self, upload: _Upload, file: BinaryIO) -> str:
        from blake3 import blake3

        digest = blake3()
        for number in range(1, upload.total_parts + 1):
            with (upload.folder / str(number)).open("rb") as part:
                while piece := part.read(PIECE_BYTES):
                    digest.update(piece)
                    file.write(piece)
        return digest.hexdigest()

    def _upload(self, name: str) -> _Upload:
        with self._lock:
            upload = self._uploads.get(name)
        if upload is None:
            raise _Refused(404, "no such upload")
        return upload


class _Placed:
    """A file that is in its place, whole, when the body ends, and not at all when it raises."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __enter__(self) -> BinaryIO:
        self._place.parent.mkdir(parents=True, exist_ok=True)
        descriptor, self._name = tempfile.mkstemp(dir=self._place.parent, prefix=".part-")
        self._file: BinaryIO = os.fdopen(descriptor, "wb")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        self._file.close()
        if kind is None:
            os.replace(self._name, self._place)
        else:
            os.unlink(self._name)


class _Body:
    """The body of one request."""

    def __init__(self, stream: BufferedIOBase, length: str | None) -> None:
        if length is None or not length.isdecimal():
            raise _Refused(411, "a body needs its `Content-Length`")
        self._stream = stream
        self._left = int(length)

    def copy(self, file: BinaryIO) -> str:
        """Write all of it and return its MD5, which is what stores take for an ETag."""
        digest = hashlib.md5(usedforsecurity=False)
        while self._left:
            piece = self._stream.read(min(PIECE_BYTES, self._left))
            if not piece:
                raise _Refused(400, "the body ended early")
            self._left -= len(piece)
            digest.update(piece)
            file.write(piece)
        return digest.hexdigest()

    def document(self, kind: type[Any]) -> Any:
        """Return it as JSON."""
        try:
            return msgspec.json.decode(self._stream.read(self._left), type=kind)
        except msgspec.MsgspecError as error:
            raise _Refused(400, str(error)) from None


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = SILENCE_S

    def __init__(self, api: FileApi, *arguments: Any) -> None:
        self._api = api
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Read a file."""
        self._answer(self._get)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        """Write a file or a part."""
        self._answer(self._put)

    def do_POST(self) -> None:
        """Write a new file; begin or complete an upload."""
        self._answer(self._post)

    def do_DELETE(self) -> None:
        """Forget an upload."""
        self._answer(self._delete)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing here: what is told goes to `tell`."""

    # --- routes ---

    def _get(self, path: list[str]) -> None:
        ref = self._ref(path)
        described = self._api.described(ref)
        self.send_response(200)
        self.send_header("Content-Type", described["mime_type"])
        self.send_header("Content-Length", str(described["size_bytes"]))
        self.send_header("X-Checksum-Sha256", described["sha256"])
        self.send_header("X-Cozy-SHA256", described["sha256"])
        self.send_header("X-Cozy-Size-Bytes", str(described["size_bytes"]))
        self.send_header("X-Cozy-Mime-Type", described["mime_type"])
        self.end_headers()
        if self.command == "GET":
            with self._api.place(ref).open("rb") as file:
                shutil.copyfileobj(file, self.wfile, PIECE_BYTES)

    def _put(self, path: list[str]) -> None:
        match path:
            case [folder, name, number] if folder == PARTS:
                self._reply({}, ETag=self._api.part(name, number, self._body()))
            case _:
                self._reply(self._api.write(self._ref(path), self._body(), replace=True))

    def _post(self, path: list[str]) -> None:
        match path:
            case ["api", "v1", "media", _owner, "uploads"]:
                self._reply(self._api.begin(self._body().document(_Begin)))
            case ["api", "v1", "media", _owner, "uploads", name, "complete"]:
                self._reply(self._api.complete(name, self._body().document(_Complete).parts))
            case _:
                self._reply(self._api.write(self._ref(path), self._body(), replace=False))

    def _delete(self, path: list[str]) -> None:
        match path:
            case ["api", "v1", "media", _owner, "uploads", name]:
                self._api.abort(name)
                self._reply({})
            case _:
                raise _Refused(404, "nothing is here")

    def _ref(self, path: list[str]) -> str:
        if tuple(path[:3]) != FILES or len(path) < 4:
            raise _Refused(404, "nothing is here")
        return "/".join(path[3:])

    def _body(self) -> _Body:
        return _Body(self.rfile, self.headers.get("Content-Length"))

    # --- answers ---

    def _answer(self, route: Callable[[list[str]], None]) -> None:
        self._status = 0
        path = [unquote(part) for part in self.path.partition("?")[0].strip("/").split("/")]
        try:
            self._check(path)
            route(path)
        except _Refused as refused:
            self.close_connection = True  # what is left of the body would look like the next request
            self._reply({"error": {"message": str(refused)}}, status=refused.status)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except OSError as error:  # of the folder
            self.close_connection = True
            self._reply({"error": {"message": str(error.strerror)}}, status=500)
        shown = "/".join(path if path[0] != PARTS else [PARTS, "-", path[-1]])  # who knows a part's URL may write it
        self._api.tell(f"{self.command} /{quote(shown)} {self._status or 'ended early'}")

    def _check(self, path: list[str]) -> None:
        """Refuse who does not have the token; a part's URL is a token of its own."""
        given = self.headers.get("Authorization", "")
        expected = f"Bearer {self._api.token}"
        if self._api.token and path[0] != PARTS and not hmac.compare_digest(given.encode(), expected.encode()):
            raise _Refused(401, "the token is not the one that is expected")

    def send_response(self, code: int, message: str | None = None) -> None:
        """Remember the status, too."""
        self._status = code
        super().send_response(code, message)

    def _reply(self, document: dict[str, Any], status: int = 200, **headers: str) -> None:
        body = msgspec.json.encode(document)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
