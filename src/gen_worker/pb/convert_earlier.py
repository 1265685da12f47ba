"""Turn what a worker and an orchestrator of the earlier generation say to each other into bytes and back."""

from gen_worker.pb import scheduler_pb2 as pb
from gen_worker.pb.packing import Envelope
from gen_worker.wire import earlier
from gen_worker.wire.earlier import Message

_EITHER = Envelope(pb.WorkerSchedulerMessage, pb, earlier)


def encode(message: Message) -> bytes:
    """Return the bytes of an envelope with a message of either side."""
    return _EITHER.encode(message)


def decode(packet: bytes) -> Message | None:
    """Return what is said, None for an envelope with nothing known in it; raise `DecodeError` for no envelope."""
    message: Message | None = _EITHER.decode(packet)
    return message
