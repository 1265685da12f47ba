"""A client's stream socket: lines in, bytes out, with bounds on what is held for it and on how long.

Knows nothing of requests. Never blocks, and never works long for one client before others have their turn.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from gen_worker_supervisor.sockets.poller import GONE, READABLE, WRITABLE, Poller

PIECE_BYTES = 256 * 1024
FIRST_PIECE_BYTES = (
    64 * 1024
)  # asks the allocator for no pages: a longer one, cut to a short line, costs five times as much
PIECES_A_TURN = 8
LINES_A_TURN = 64
UNREAD_PIECES = 4096  # pieces a client may leave unread before nothing more is read from it
UNREAD_BYTES = 8 << 20  # and bytes
FAREWELL_S = 0.05  # a client that is turned away and sends nothing for so long has read why
LONGEST_FAREWELL_S = 2.0  # one that sends on has so long
LAST_WORD_S = 0.05  # and one that is turned away: it was told that it is heard no more

Then = Callable[[], None] | None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the connections of a link may hold, and for how long."""

    line_bytes: int = 16 << 20
    """The longest line; a longer one would hold the loop for over 50 ms while it is decoded."""

    partial_bytes: int = 256 << 20
    """What all connections together may have sent of lines that have not ended."""

    stranger_bytes: int = 32 << 20
    """What those of them may have sent that have not shown the token yet; one longest line always has room."""

    unsent_bytes: int = 256 << 20
    """What may wait for all connections together, without what lies in shared memory."""

    first_line_s: float = 30.0
    """A client that connects and says nothing is closed."""

    stalled_s: float = 60.0
    """A client that takes nothing for so long, while something waits for it, is closed."""


class Budget:
    """Bytes that all connections hold together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[LineSocket, int] = {}
        self._total = 0

    def hold(self, holder: "LineSocket", size: int) -> "LineSocket | None":
        """Note what one holds now; return who holds most when it is too much for all."""
        self._total += size - self._held.pop(holder, 0)
        if size:
            self._held[holder] = size
        if self._total <= self._limit:
            return None
        return max(self._held, key=self._held.__getitem__)


class Pool:
    """What the connections of a link share."""

    def __init__(self, limits: Limits, on_problem: Callable[[str], None]) -> None:
        self.limits = limits
        self.on_problem = on_problem
        self.connections: set[LineSocket] = set()
        self.partial = Budget(limits.partial_bytes)
        self.strangers = Budget(max(limits.stranger_bytes, limits.line_bytes))
        self.unsent = Budget(limits.unsent_bytes)


class LineSocket:
    """One connection on a non-blocking stream socket; subclasses say what becomes of its lines."""

    unlimited = False
    """Whether it may say and take nothing for as long as it likes."""

    window = 0
    """How much may be in hand before nothing more is read; 0: any amount."""

    trusted = True
    """Whether its unfinished line may take the memory that all clients share."""

    def __init__(self, sock: socket.socket, poller: Poller, pool: Pool) -> None:
        self._sock = sock
        self._poller = poller
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._scanned = 0
        self._piece = FIRST_PIECE_BYTES
        self._backlog = False  # whole lines that wait for their turn
        self._turn_comes = False
        self._outbox: deque[tuple[memoryview, Then]] = deque()
        self._unsent = 0
        self._unsent_plain = 0  # not in shared memory
        self._took_at = 0.0
        self._stall: asyncio.TimerHandle | None = None
        self._ended = False
        self._deaf = False  # what comes is read and dropped
        self._babbles = False  # though it is deaf
        self._farewell: asyncio.TimerHandle | None = None
        self._skips = False  # until the next line feed
        self._gone = False
        self._silent: asyncio.TimerHandle | None = None
        if not self.unlimited:
            self._silent = self._loop.call_later(pool.limits.first_line_s, self.hang_up)
        pool.connections.add(self)
        poller.watch(sock.fileno(), self._on_events)

    # --- for subclasses ---

    def on_line(self, line: bytes) -> None:
        """Take a line, with or without its line feed."""
        raise NotImplementedError

    def on_bad_line(self, reason: str) -> None:
        """A line cannot be taken."""
        raise NotImplementedError

    def on_gone(self) -> None:
        """The connection is closed."""
        raise NotImplementedError

    @property
    def unanswered(self) -> int:
        """How many requests have no answer yet."""
        raise NotImplementedError

    @property
    def in_hand(self) -> int:
        """How much was taken that its client still waits for; bounded by the window."""
        return self.unanswered

    # --- in ---

    def _on_events(self, events: int) -> None:
        if events & READABLE:
            self._read()
        if events & WRITABLE and not self._gone:
            self._pump()
        if events & GONE and (self._ended or not events & READABLE):
            self.hang_up()  # only after everything it sent was read

    def _read(self) -> None:
        try:
            data = self._sock.recv(self._piece)
        except BlockingIOError:
            return
        except OSError:
            self.hang_up()
            return
        self._piece = FIRST_PIECE_BYTES if len(data) < self._piece else PIECE_BYTES
        if not data:
            self._on_end()
        elif self._deaf:
            self._babbles = True
        elif not self._buffer and not self.window and data.find(b"\n") == len(data) - 1:  # the usual case
            self._take(data)
        else:
            self._split(data)

    def _take(self, line: bytes) -> None:
        if self._silent is not None:
            self._silent.cancel()
            self._silent = None
        limit = self._pool.limits.line_bytes
        if len(line) > limit:
            self.on_bad_line(f"a line of {len(line)} bytes, the limit is {limit}")
        else:
            self.on_line(line)

    def _split(self, data: bytes) -> None:
        """Take the whole lines, but not more than a few before others have their turn."""
        if self._skips:
            _, found, data = data.partition(b"\n")
            self._skips = not found
        self._buffer += data
        for _ in range(LINES_A_TURN):
            if not self._has_room():
                self._leave_backlog()
                return
            end = self._buffer.find(b"\n", self._scanned)
            if end < 0:
                break
            line = bytes(memoryview(self._buffer)[:end])
            del self._buffer[: end + 1]
            self._scanned = 0
            self._take(line)
            if self._gone or self._deaf:
                return
        else:
            self._leave_backlog()
            return
        self._scanned = len(self._buffer)
        if self._scanned > self._pool.limits.line_bytes:
            self._refuse_rest(f"a line of over {self._pool.limits.line_bytes} bytes")
            return
        shared = self._pool.partial if self.trusted else self._pool.strangers
        if (biggest := shared.hold(self, len(self._buffer))) is not None:
            biggest._refuse_rest(f"no memory for a line of over {len(biggest._buffer)} bytes: too many are unfinished")

    def _refuse_rest(self, reason: str) -> None:
        self._drop_buffer()
        self.on_bad_line(f"{reason}; bigger values travel over the control socket")
        if self.unlimited:
            self._skips = True  # the rest of its line only: what follows shall be answered
        elif not self._gone:
            self._deaf = True
            self._watch()
            self.close_if_done()

    def _drop_buffer(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._pool.partial.hold(self, 0)
        self._pool.strangers.hold(self, 0)

    def _leave_backlog(self) -> None:
        self._backlog = True
        self._watch()
        self.go_on()

    def go_on(self) -> None:
        """Take the lines that waited, if there are any and if there is room for their answers now."""
        if self._backlog and not self._turn_comes and self._has_room():
            self._turn_comes = True
            self._loop.call_soon(self._split_on)

    def _split_on(self) -> None:
        self._turn_comes = self._backlog = False
        if not (self._gone or self._deaf):
            self._split(b"")
        if not self._gone and not self._backlog:
            self._watch()

    def _has_room(self) -> bool:
        return self.is_read and (not self.window or self.in_hand < self.window)

    @property
    def is_read(self) -> bool:
        """Whether the client takes its answers, as far as one can tell."""
        return len(self._outbox) <= UNREAD_PIECES and self._unsent <= UNREAD_BYTES

    def _on_end(self) -> None:
        """The client sends no more, or shall not be read any more; it may still wait for answers."""
        self._ended = True
        self._watch()
        if self._buffer and not self._deaf:
            line = bytes(self._buffer)
            self._drop_buffer()
            self._take(line)
        self.close_if_done()

    def turn_away(self, last: bytes) -> None:
        """Say one thing more, end our half at once, and hang up as soon as the client can have read it."""
        if self._gone or self._deaf:
            return
        self._deaf = True  # what it still sends is read and dropped: to leave it unread would cost it the answer
        self._drop_buffer()
        self.write([last], self._end_half)
        if not self._gone:
            self._watch()
            self._take_leave(LAST_WORD_S)

    def _end_half(self) -> None:
        with suppress(OSError):  # it has gone already
            self._sock.shutdown(socket.SHUT_WR)

    def _take_leave(self, longest_s: float = LONGEST_FAREWELL_S) -> None:
        if self._farewell is None:
            soonest_s = min(FAREWELL_S, longest_s)
            self._farewell = self._loop.call_later(soonest_s, self._leave, self._loop.time() + longest_s)

    def _leave(self, at_the_latest: float) -> None:
        if not self._babbles or self._loop.time() >= at_the_latest:
            self.hang_up()
            return
        self._babbles = False
        self._farewell = self._loop.call_later(FAREWELL_S, self._leave, at_the_latest)

    # --- out ---

    @property
    def idle(self) -> bool:
        """Whether the client has taken everything so far."""
        return not self._outbox

    def write(self, parts: list[Any], then: Then) -> None:
        """Write the parts one after the other as the client takes them, then call `then`."""
        if self._gone:
            if then is not None:
                then()
            return
        if not self._outbox and sum(map(len, parts)) <= PIECE_BYTES:
            whole = b"".join(parts) if len(parts) > 1 else parts[0]
            sent = self._send(whole)
            if sent == len(whole):
                if then is not None:
                    then()
                return
            parts = [memoryview(whole)[sent:]]
        self._keep(parts, then)

    def _keep(self, parts: list[Any], then: Then) -> None:
        if not self._outbox:
            self._took_at = self._loop.time()
            if self._stall is None and not self.unlimited:
                self._stall = self._loop.call_later(self._pool.limits.stalled_s, self._look_for_stall)
        last = len(parts) - 1
        for at, part in enumerate(parts):
            view = memoryview(part)
            self._outbox.append((view, then if at == last else None))
            self._count(view, len(view))
        self._watch()
        self._bound()

    def set_aside(self, size: int) -> None:
        """Count bytes that wait elsewhere until they may be written; a negative size takes them off again."""
        if self._gone:
            return
        self._unsent += size
        self._unsent_plain += size
        self._watch()
        self._bound()

    def _bound(self) -> None:
        if (biggest := self._pool.unsent.hold(self, self._unsent_plain)) is not None:
            self._pool.on_problem(f"too much waits for clients: the one with {biggest._unsent} bytes is cut off")
            self._pool.unsent.hold(biggest, 0)
            self._loop.call_soon(biggest.hang_up)  # not in the middle of a write

    def _count(self, view: memoryview, size: int) -> None:
        self._unsent += size
        if isinstance(view.obj, bytes):
            self._unsent_plain += size

    def _look_for_stall(self) -> None:
        self._stall = None
        if self._gone or not self._outbox:
            return
        limit = self._pool.limits.stalled_s
        left = self._took_at + limit - self._loop.time()
        if left > 0:
            self._stall = self._loop.call_later(left, self._look_for_stall)
            return
        self._pool.on_problem(f"a client has taken nothing for {limit:g} s, {self._unsent} bytes wait: it is cut off")
        self.hang_up()

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._sock.send(data)
        except OSError:  # full, or gone: the poller tells which
            return 0

    def _pump(self) -> None:
        """Write as much as the client takes, but not more than a few pieces before others have their turn."""
        for _ in range(PIECES_A_TURN):
            if not self._outbox or self._gone:
                break
            part, then = self._outbox[0]
            sent = self._send(part[:PIECE_BYTES])
            if sent == 0 and part:
                break
            self._took_at = self._loop.time()
            self._count(part, -sent)
            if sent < len(part):
                self._outbox[0] = (part[sent:], then)
                continue
            self._outbox.popleft()
            if then is not None:
                then()
        if not self._gone:
            self._pool.unsent.hold(self, self._unsent_plain)
            self._watch()
            self.go_on()
            self.close_if_done()

    def _watch(self) -> None:
        reading = not self._ended and (self._deaf or not (self._backlog or not self._has_room()))
        self._poller.change(self._sock.fileno(), (READABLE if reading else 0) | (WRITABLE if self._outbox else 0))

    # --- its end ---

    def close_if_done(self) -> None:
        """Hang up on a client that sends no more, or is heard no more, once it has all answers."""
        if self.unanswered or self._outbox:
            return
        if self._ended:
            self.hang_up()
        elif self._deaf:
            self._take_leave()

    def hang_up(self) -> None:
        """Close the socket; what was asked for through it is asked for no more."""
        if self._gone:
            return
        self._gone = True
        for timer in (self._silent, self._stall, self._farewell):
            if timer is not None:
                timer.cancel()
        self._poller.forget(self._sock.fileno())
        self._sock.close()
        self._pool.connections.discard(self)
        self._pool.unsent.hold(self, 0)
        self._drop_buffer()
        outbox, self._outbox = self._outbox, deque()
        for _, then in outbox:
            if then is not None:
                then()
        self.on_gone()

    def close(self) -> None:
        """Close the connection after what its socket still takes."""
        if not self._gone:
            self._pump()
        self.hang_up()
