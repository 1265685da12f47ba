"""JSON as people write it, in files and on the command line."""

import codecs
from typing import Any

import msgspec

NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What `decode` raises, of which `msgspec.ValidationError` is for JSON of another type."""


def decode(text: bytes | str, type: Any = Any) -> Any:
    """Return what a JSON text says; a byte order mark before it, as some editors write, says nothing."""
    mark = codecs.BOM_UTF8
    return msgspec.json.decode(text.removeprefix(mark) if isinstance(text, bytes) else text, type=type)
