"""What an item of a stream is on the orchestrator's wire: bytes and what they are. Pure."""

import msgspec

from gen_worker.api.streaming import BatchItemDelta, IncrementalTokenDelta

_json = msgspec.json.Encoder().encode
_msgpack = msgspec.msgpack.Encoder().encode


def chunk_of(item: msgspec.Struct) -> tuple[bytes, str]:
    """Return the bytes of an item and their content type."""
    if type(item) is IncrementalTokenDelta:
        return item.text.encode("utf-8", "replace"), "text/plain"
    if type(item) is BatchItemDelta:
        return _msgpack(item), "application/x-batch-item+msgpack"
    return _json(item), "application/json"
