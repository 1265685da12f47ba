"""What a streaming handler yields."""

from typing import TypeAlias

import msgspec


class IncrementalTokenDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of text."""

    text: str = ""
    item_id: str | None = None


class BatchItemDelta(msgspec.Struct, frozen=True, kw_only=True):
    """One item of a batch: how far it is, or its bytes, or why it failed."""

    index: int = 0
    total: int = 0
    item_id: str | None = None
    finished: bool = False
    error: str = ""
    chunk: bytes = b""
    content_type: str = "application/octet-stream"


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """The stream ended well; what the handler would yield after it is not asked for."""


class Error(msgspec.Struct, frozen=True, kw_only=True):
    """The stream ends because the caller's input was wrong; `message` says how."""

    message: str = ""


TokenStreamSignal: TypeAlias = IncrementalTokenDelta | Done | Error
