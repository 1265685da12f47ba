"""What the answer to a request for some bytes of a file means. Pure."""

import re
from collections.abc import Mapping
from typing import NamedTuple

_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)")


class Known(NamedTuple):
    """What is known of a file before an answer."""

    wanted_size: int | None = None
    """As the manifest has it."""

    size: int | None = None
    """As earlier answers had it."""

    etag: str = ""


class Body(NamedTuple):
    """The bytes that an answer brings: those of the file from `start` on, to before `end` (None: until it ends)."""

    start: int
    end: int | None
    size: int | None
    """Of the whole file, as the answer has it."""

    etag: str
    ranged: bool
    """Whether the server gives parts of files."""


class ChangedError(Exception):
    """What comes is no part of what came before: begin anew."""


class WrongError(Exception):
    """What comes is not the file that the manifest means."""


def read_answer(status: int, headers: Mapping[str, str], start: int, end: int | None, known: Known) -> Body:
    """Return what the answer to a request for the bytes from `start` to before `end` brings.

    `status` is 200, 206 or 416. Raises `ChangedError` and `WrongError`.
    """
    if headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        raise ChangedError(f"it comes in an encoding that was not asked for: `{headers['content-encoding'][:40]}`")
    etag = strong(headers.get("etag", ""))
    if known.etag and etag and etag != known.etag:
        raise ChangedError("its ETag changed")
    if status == 200:
        body = _whole(headers, start, etag)
    elif status == 206:
        body = _range(headers, start, end, etag)
    else:
        body = _nothing(headers, start, etag)
    if None not in (body.size, known.wanted_size) and body.size != known.wanted_size:
        raise WrongError(f"it has {body.size} bytes there, not {known.wanted_size}")
    if None not in (body.size, known.size) and body.size != known.size:
        raise ChangedError(f"it has {body.size} bytes now, not {known.size}")
    return body


def content_length(headers: Mapping[str, str]) -> int | None:
    """Return how many bytes an answer says it has; None where it says no number that a file can have."""
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def strong(etag: str) -> str:
    """Return an ETag that stands for every byte; nothing when it is none, or a weak one."""
    return etag if len(etag) > 2 and etag[0] == etag[-1] == '"' and etag.isascii() and etag.isprintable() else ""


def _whole(headers: Mapping[str, str], start: int, etag: str) -> Body:
    if start:
        raise ChangedError("the server sends the whole file instead of the rest")
    size = content_length(headers) if "transfer-encoding" not in headers else None
    return Body(0, size, size, etag, ranged=False)


def _range(headers: Mapping[str, str], start: int, end: int | None, etag: str) -> Body:
    text = headers.get("content-range", "")
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None or match[1] is None:
        raise ChangedError(f"the server sends a range that it does not name: `{text[:60]}`")
    first, last = int(match[1]), int(match[2])
    size = None if match[3] == "*" else int(match[3])
    if first != start or last < first or (end is not None and last >= end) or (size is not None and last >= size):
        raise ChangedError(f"the server sends another range than was asked for: `{text[:60]}`")
    length = content_length(headers)
    if length is not None and length != last + 1 - first:
        raise ChangedError(f"the server sends {length} bytes for the range `{text[:60]}`")
    return Body(start, last + 1, size, etag, ranged=True)


def _nothing(headers: Mapping[str, str], start: int, etag: str) -> Body:
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    if start == 0 and match is not None and match[1] is None and match[3] in ("0", "*"):
        return Body(0, 0, 0, etag, ranged=False)  # an empty file has no first byte
    raise ChangedError("the server has no such range of it")
