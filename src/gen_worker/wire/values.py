"""Encode a value that holds big buffers so that each of them is copied once, straight to where it travels from."""

import copy
import os
from collections.abc import Callable, Iterable, Sized
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec

Piece: TypeAlias = bytes | memoryview

BIG_BUFFER = 64 * 1024  # below this a second copy costs less than splicing; from here msgpack has one form of header
COPY_BYTES = 4 << 20  # copied in one go: no other thread runs meanwhile, and after 5 ms one that waits wants its turn
_LOOKED_AT = 256  # big buffers sit near the top of a value; a long list of small things is not searched for them
_encode = msgspec.msgpack.Encoder().encode


def pieces(value: object) -> list[Piece]:
    """Encode `value` as msgpack, in pieces that give the encoding when joined; big buffers are pieces, not copied."""
    search = _Search()
    skeleton = search.without_buffers(value)
    if not search.found:
        return [_encode(value)]
    between = _encode(skeleton).split(search.token)
    parts: list[Piece] = []
    for text, buffer in zip(between, [*search.found, memoryview(b"")], strict=True):
        parts.append(text)
        parts.append(buffer)
    return [part for part in parts if len(part)]


def total_length(parts: Iterable[Piece]) -> int:
    """Return how many bytes the pieces have together."""
    return sum(map(len, parts))


def copy_into(target: memoryview, parts: Iterable[Piece]) -> int:
    """Copy the pieces one after the other to the start of `target`; return how many bytes that were."""
    end = 0
    for part in parts:
        view = memoryview(part)
        for first in range(0, len(view), COPY_BYTES):
            piece = view[first : first + COPY_BYTES]
            start, end = end, end + len(piece)
            target[start:end] = piece  # one memcpy; a bytearray as target would make a copy of its own first
    return end


@lru_cache(maxsize=256)
def keeps_views(type: Any) -> bool:
    """Whether a value decoded as `type` may point into the buffer it came from: `memoryview` and `msgspec.Raw` do."""
    import msgspec.inspect as inspect

    waiting: list[object] = [inspect.type_info(type)]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, inspect.MemoryViewType | inspect.RawType):
            return True
        if isinstance(node, list | tuple):
            waiting += node
        elif isinstance(node, inspect.Type | inspect.Field) and id(node) not in seen:
            seen.add(id(node))
            waiting += [getattr(node, name) for name in node.__struct_fields__]
    return False


class _Search:
    """One walk over a value that takes its big buffers out and leaves marks where they were."""

    def __init__(self) -> None:
        self.found: list[memoryview] = []
        self.token = b""
        self._left = _LOOKED_AT

    def without_buffers(self, value: Any) -> Any:
        """Return `value`, or where it holds big buffers a copy with a mark for each; `value` itself stays as it is."""
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind in _BUFFERS:
            return self._mark(value)
        if kind is dict:
            return self._walk(value, value, value.items(), dict.__setitem__)
        if kind is list:
            return self._walk(value, value, enumerate(value), list.__setitem__)
        if kind is tuple:
            members = self.without_buffers(list(value))
            return tuple(members) if any(new is not old for new, old in zip(members, value, strict=True)) else value
        if isinstance(value, msgspec.Struct):
            names = value.__struct_fields__
            members = ((name, getattr(value, name)) for name in names)
            return self._walk(value, names, members, msgspec.structs.force_setattr)
        return value

    def _walk(self, value: Any, sized: Sized, members: Iterable[tuple[Any, Any]], assign: Callable[..., None]) -> Any:
        if len(sized) > self._left:
            return value
        self._left -= len(sized)
        changed = [(key, new) for key, old in members if (new := self.without_buffers(old)) is not old]
        if not changed:
            return value
        clone = copy.copy(value)  # of a Struct: without its `__post_init__`, which may object to a mark
        for key, new in changed:
            assign(clone, key, new)
        return clone

    def _mark(self, buffer: bytes | bytearray | memoryview) -> Any:
        view = memoryview(buffer)
        if not BIG_BUFFER <= view.nbytes < 1 << 32 or not view.c_contiguous:
            return buffer
        self.token = self.token or os.urandom(16)  # nobody can put it into a value on purpose
        self.found.append(view.cast("B"))
        return msgspec.Raw(b"\xc6" + view.nbytes.to_bytes(4, "big") + self.token)


_PLAIN = frozenset((str, int, float, bool, type(None)))
_BUFFERS = frozenset((bytes, bytearray, memoryview))
