"""Texts that cannot be sent, as one with a name of a file that is not UTF-8: Python keeps its bytes as surrogates."""

from typing import Any

import msgspec

_KEPT = (bytes, bytearray, memoryview, msgspec.Raw)


def sendable(message: object) -> Any:
    """Return what encodes as the message does; in texts that cannot be encoded the surrogates are escaped."""
    return _sendable(msgspec.to_builtins(message, builtin_types=_KEPT))


def _sendable(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case list() | tuple():
            return [_sendable(each) for each in value]
        case dict():
            return {_sendable(name): _sendable(each) for name, each in value.items()}
        case _:
            return value
