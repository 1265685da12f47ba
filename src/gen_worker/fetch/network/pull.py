"""Have all pieces of a file come over several connections, while its digest follows what is there in a row."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPException
from typing import NamedTuple

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.network.answers import Body, ChangedError, Known, WrongError, read_answer
from gen_worker.fetch.network.digests import BLOCK_BYTES, POINTER, POINTER_BYTES, digest_of
from gen_worker.fetch.network.links import Link
from gen_worker.fetch.network.part import Identity, Part, boot_id
from gen_worker.fetch.network.patience import Patience, Tries
from gen_worker.fetch.network.pieces import Piece, Pieces
from gen_worker.fetch.network.traffic import Traffic
from gen_worker.fetch.network.transport import FAILURES, CutError, Response, translated
from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import ManifestFile

BUFFER_BYTES = 256 << 10  # stays in a core's cache between the socket and the file
NOTE_BYTES = 2 << 20  # what a connection may lose to SIGKILL
_UNDIVIDED = 1 << 62


class PointerError(Exception):
    """A Git LFS pointer comes instead of the file."""


class Means(NamedTuple):
    """What a file is pulled with; the same for all attempts at it."""

    link: Link
    traffic: Traffic
    patience: Patience
    cancel: Cancel
    on_retry: Callable[[], None]
    connections: int
    piece_bytes: int


class Pull:
    """One attempt at a file: all it gets is of one content, or it ends with `ChangedError`."""

    def __init__(self, file: ManifestFile, part: Part, means: Means, *, ranges: bool) -> None:
        """Take up what is there of the file; without `ranges`, begin anew and ask for the whole of it at once."""
        self.means = means
        self._file = file
        self._part = part
        self._ranges = ranges
        there = part.resume(file) if ranges else {}
        found = part.identity
        if found is None:
            part.discard()
        self._known = Known(file.size, found.size if found else None, found.etag if found else "")
        piece_bytes = found.piece_bytes if found else means.piece_bytes if ranges else _UNDIVIDED
        self._pieces = Pieces(found.size if found else file.size, piece_bytes, there)
        self._state = threading.Condition()  # guards what follows and the two above
        self._fresh_urls = means.link.fresh_urls
        self._threads = ThreadPoolExecutor(means.connections, "pieces")
        self._started = 0
        self._error: BaseException | None = None
        means.traffic.found(self._pieces.found_bytes)

    @property
    def size(self) -> int:
        """Bytes of the file, once all have come."""
        assert self._pieces.size is not None
        return self._pieces.size

    def run(self) -> str:
        """Have the file come whole; return its digest, in the manifest's algorithm."""
        with self.means.cancel.part() as self.cancel:
            try:
                if self._pieces.count == 1 and self._pieces.size is not None:
                    _Worker(self).run()  # a small file takes no thread
                elif not self._pieces.complete:
                    self._start(1)
                return self._follow()
            finally:
                self.cancel.set()
                self._threads.shutdown()

    # --- the digest ---

    def _follow(self) -> str:
        pieces = self._pieces
        if not self._file.digest:
            self._await(lambda: pieces.complete)
            return ""
        self._await(lambda: pieces.size is not None)
        digest = digest_of(self._file.algorithm, self.size)
        buffer = memoryview(bytearray(BLOCK_BYTES))
        at = 0

        def more_came() -> bool:
            return pieces.prefix > at

        while at < self.size:
            self._await(more_came)
            until = pieces.prefix
            while at < until:
                self._raise_if_ended()
                count = self._part.read(buffer[: until - at], at)
                digest.update(buffer[:count])
                at += count
        return digest.hexdigest()

    def _await(self, ready: Callable[[], bool]) -> None:
        with self._state:
            self._state.wait_for(lambda: self._error is not None or ready())
            if self._error is not None:
                raise self._error

    def _raise_if_ended(self) -> None:
        if self.cancel.is_set():
            self._await(lambda: True)  # a worker that failed has set it, and said why before
            self.cancel.raise_if_set()

    # --- the threads ---

    def _start(self, count: int) -> None:
        self._started += count
        for _ in range(count):
            self._threads.submit(_Worker(self).run).add_done_callback(self._ended)

    def _ended(self, worker: "Future[None]") -> None:
        error = worker.exception()
        if error is not None:
            with self._state:
                self._error = self._error or error
                self._state.notify_all()
            self.cancel.set()

    # --- what a worker asks of it ---

    def claim(self, number: int | None = None) -> Piece | None:
        """Return the first piece that nobody has claimed, or a certain one, if there is one to have."""
        with self._state:
            return self._pieces.claim() if number is None else self._pieces.claim_this(number)

    def headers(self, piece: Piece, at: int) -> dict[str, str]:
        """Return the headers that ask for a piece from a byte on."""
        with self._state:
            if self._file.digest and self._fresh_urls != self.means.link.fresh_urls:
                self._known = self._known._replace(etag="")  # the digest decides whether it is the same content
                self._fresh_urls = self.means.link.fresh_urls
            size, etag, piece_bytes = self._pieces.size, self._known.etag, self._pieces.piece_bytes
        if not self._ranges:
            if at:
                raise ChangedError("it is cut short, and cannot be had in ranges")
            return {}
        if at == 0 and piece.end is not None and piece.end == size:
            return {}
        last = "" if piece.end is None and at else (piece.end or piece_bytes) - 1
        return {"Range": f"bytes={at}-{last}", **({"If-Range": etag} if etag else {})}

    def settle(self, response: Response, piece: Piece, at: int) -> tuple[Piece, int | None]:
        """Compare an answer with what is known of the file.

        Return the piece, whose end may be known now, and the byte before which the answer ends; None: nobody says.
        """
        with self._state:
            body = read_answer(response.status, response.headers, at, piece.end, self._known)
            if self._pieces.size is None and body.size is not None:
                self._pieces.size = body.size
            if self._pieces.size is None and body.ranged:
                raise ChangedError("the server sends a range of it, and does not say of how much")
            if at == 0 and self._ranges and self._part.identity is None and self._worth_noting:
                self._part.begin(self._identity(self.size, body))
            self._known = Known(self._file.size, self._pieces.size, self._known.etag or body.etag)
            if body.ranged and self._started == 1:
                self._start(min(self.means.connections - 1, self._pieces.left))
            self._state.notify_all()
            return self._pieces.piece(piece.number), body.end

    @property
    def _worth_noting(self) -> bool:
        return (self._pieces.size or 0) > min(NOTE_BYTES, self._pieces.piece_bytes)

    def _identity(self, size: int, body: Body) -> Identity:
        algorithm = self._file.algorithm if self._file.digest else ""
        return Identity(size, algorithm, self._file.digest, body.etag, self._pieces.piece_bytes, boot_id())

    def write(self, view: memoryview, at: int) -> None:
        """Take some bytes of the file."""
        size = self._pieces.size
        if size is not None and at + len(view) > size:
            raise WrongError(f"more than its {size} bytes come")
        self._part.write(view, at)
        self.means.traffic.came(len(view))

    def note(self, piece: Piece, at: int) -> None:
        """Take note of a piece that is there to before a byte."""
        self._part.note(piece.number, at - piece.number * self._pieces.piece_bytes)

    def finish(self, piece: Piece) -> None:
        """Take note of a piece that is there."""
        assert piece.end is not None
        self.note(piece, piece.end)
        with self._state:
            self._pieces.finish(piece.number)
            self._state.notify_all()
        if self._started:  # it may have to wait for the disk; a small file is flushed at once
            self._part.begin_to_flush(piece.start, piece.end)

    def end(self, piece: Piece, size: int) -> Piece:
        """Take note of how long a file turned out to be that nobody had told the size of; return its piece."""
        with self._state:
            self._pieces.size = size
            self._state.notify_all()
            return self._pieces.piece(piece.number)


class _Worker:
    """What one connection at a time is used for."""

    def __init__(self, pull: Pull) -> None:
        self._pull = pull
        self._means = pull.means
        self._tries = Tries(pull.means.patience)
        self._gains = 0
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._piece: Piece | None = None
        self._at = 0
        self._noted = 0  # the byte before which it is recorded that the piece is there

    def run(self) -> None:
        """Fetch pieces until none is left; however it ends, what came is recorded."""
        try:
            while (piece := self._pull.claim()) is not None:
                self._piece, self._at, self._noted = piece, piece.start, piece.start
                while self._piece is not None:
                    try:
                        self._fetch(self._piece)
                    except FAILURES as error:
                        self._wait(error)
        finally:
            self._note(at_least=1)

    def _note(self, at_least: int) -> None:
        if self._piece is not None and self._at - self._noted >= at_least:
            self._pull.note(self._piece, self._at)
            self._noted = self._at

    def _fetch(self, piece: Piece) -> None:
        pull = self._pull
        traffic = self._means.traffic
        with self._means.link.ask(
            lambda: pull.headers(piece, self._at), pull.cancel, lambda: traffic.received
        ) as response:
            try:
                self._piece, until = pull.settle(response, piece, self._at)
            except WrongError:
                _raise_if_pointer(response)
                raise
            self._pass_ends()  # an empty file ends where it begins
            while count := response.read_into(self._buffer):
                if self._piece is None:
                    raise WrongError("more comes than was asked for")
                pull.write(self._buffer[:count], self._at)
                self._at += count
                self._pass_ends()
                self._note(at_least=NOTE_BYTES)
        if self._piece is not None and self._piece.end is None:
            self._piece = pull.end(self._piece, self._at)
            self._pass_ends()
        elif self._piece is not None and (until is None or self._at < until):
            raise CutError("the answer ended too soon")

    def _pass_ends(self) -> None:
        while self._piece is not None and self._piece.end is not None and self._at >= self._piece.end:
            self._noted = self._piece.end
            self._pull.finish(self._piece)
            self._piece = self._pull.claim(self._piece.number + 1)

    def _wait(self, error: Exception) -> None:
        cancel, traffic = self._pull.cancel, self._means.traffic
        cancel.raise_if_set()
        traffic.failed(error)
        if traffic.gains != self._gains:
            self._gains = traffic.gains
            self._tries.gained()
        try:
            seconds = self._tries.failed(error)
        except (OSError, HTTPException) as last:
            raise translated(last, self._means.link.url) from last
        self._means.on_retry()
        cancel.wait(seconds)


def _raise_if_pointer(response: Response) -> None:
    try:
        content = response.read(POINTER_BYTES)
    except (*FAILURES, ModelError):  # it is long, or cut short: no pointer
        return
    if content.startswith(POINTER):
        raise PointerError
