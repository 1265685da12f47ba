"""A job as its caller sees it: decodes what came, counts what was taken, and says how it ended. Never waits."""

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import msgspec

from gen_worker.client.conversation import JobError, RemoteJob

OnEvent: TypeAlias = Callable[[Literal["progress", "log"], dict[str, Any]], None]

MORE_EVERY = 8  # stream items taken between two notes of that to the supervisor, which has 32 on their way at most
MORE_AFTER_S = 5.0  # or sooner: it takes a reader of which it hears nothing for a minute for gone


class Handle(ABC):
    """What `Job` and `AsyncJob` have in common."""

    _taken = 0  # items, since the supervisor was last told
    _mismatch: Exception | None = None
    _settled = False
    _value: Any = None
    _error: Exception | None = None

    def __init__(self, remote: RemoteJob, type: Any, on_event: OnEvent | None, stream: bool) -> None:
        self.request_id = remote.request_id
        self._remote = remote
        self._decode = _decoder(Any if type is None else type)
        self._on_event = on_event
        self._stream = stream
        self._said_at = time.monotonic()  # when the supervisor was last told of items
        self._kept: deque[Any] = deque()  # items that were taken while the end was waited for

    @property
    def done(self) -> bool:
        """Whether the end has come. What comes to a blocking client comes while some thread waits for something."""
        return self._remote.ended

    @abstractmethod
    def _say_more(self, items: int) -> None:
        """Tell the supervisor that items were taken."""

    @abstractmethod
    def _say_settled(self, usable: bool) -> None:
        """Tell the supervisor that the caller has the end, or could not use it."""

    def _tell_events(self) -> None:
        events = self._remote.events
        while events:
            try:
                event = events.popleft()
            except IndexError:  # another thread has it
                return
            assert self._on_event is not None  # or there would be none
            self._on_event(event.kind, event.value)

    def _keep_items(self) -> None:
        """Take every item that came, so that more can come while the end is waited for."""
        self._tell_events()
        while self._remote.items:
            self._take_item(self._kept)
        self._say_taken()

    def _take_item(self, target: deque[Any]) -> None:
        try:
            item = self._remote.items.popleft()
        except IndexError:  # another thread has it
            return
        self._taken += 1
        try:
            target.append(self._decode(item))
        except msgspec.DecodeError as mismatch:  # the item is not of the type that the caller asked for
            self._mismatch = self._mismatch or mismatch

    def _say_taken(self) -> None:
        self._said_at = time.monotonic()
        taken, self._taken = self._taken, 0
        if self._stream and taken:
            self._say_more(taken)

    def _next_items(self) -> deque[Any]:
        """Return what `items()` gives next: one item at most, and none when it has to wait."""
        self._tell_events()
        found: deque[Any] = deque()
        if self._kept:
            found.append(self._kept.popleft())
        elif self._remote.items:
            self._take_item(found)
            if self._taken >= MORE_EVERY or time.monotonic() > self._said_at + MORE_AFTER_S:
                self._say_taken()
        return found

    def _outcome(self) -> Any:
        """Return the output, or what is left of the items; raise what the job ended with. For a settled job."""
        if self._error is not None:
            raise self._error
        return self._value if self._remote.yielded is None else list(self._kept)

    @property
    def _yields(self) -> bool:
        return self._remote.yielded is not None

    def _settle(self) -> None:
        """Take the end that has come, once."""
        while self._remote.items:
            self._take_item(self._kept)
        self._error = self._remote.error or self._mismatch
        if self._yields:
            self._count_items(self._remote.yielded or 0)
        elif self._error is None:
            self._value, self._error = self._decoded_end()
        self._settled = True
        self._say_settled(usable=not isinstance(self._error, msgspec.DecodeError))

    def _count_items(self, yielded: int) -> None:
        while len(self._kept) > yielded:  # the first are of a run that died with its child
            self._kept.popleft()
        if lost := max(0, yielded - self._remote.came):
            self._error = self._error or JobError(
                "retryable", f"{lost} of {yielded} items went to an earlier connection", True
            )

    def _decoded_end(self) -> tuple[Any, Exception | None]:
        body, self._remote.body = self._remote.body, None
        if body is None:
            return None, None
        try:
            return self._decode(body), None
        except msgspec.DecodeError as mismatch:
            return None, mismatch


@lru_cache(maxsize=256)
def _decoder(type: Any) -> Callable[[Any], Any]:
    return msgspec.msgpack.Decoder(type).decode
