"""Turn what a worker and its orchestrator say to each other into bytes and back."""

from gen_worker.pb import worker_scheduler_pb2 as pb
from gen_worker.pb.packing import Envelope
from gen_worker.wire import scheduler
from gen_worker.wire.scheduler import SchedulerFrame, WorkerFrame

_WORKER = Envelope(pb.WorkerMessage, pb, scheduler)
_SCHEDULER = Envelope(pb.SchedulerMessage, pb, scheduler)


def encode_worker(frame: WorkerFrame) -> bytes:
    """Return the bytes of an envelope with a worker's message."""
    return _WORKER.encode(frame)


def decode_worker(packet: bytes) -> WorkerFrame | None:
    """Return what a worker says, None for an envelope with nothing known in it; raise `DecodeError` for no envelope."""
    frame: WorkerFrame | None = _WORKER.decode(packet)
    return frame


def encode_scheduler(frame: SchedulerFrame) -> bytes:
    """Return the bytes of an envelope with an orchestrator's message."""
    return _SCHEDULER.encode(frame)


def decode_scheduler(packet: bytes) -> SchedulerFrame | None:
    """Return what an orchestrator says, None for an envelope with nothing known in it; raise `DecodeError` for none."""
    frame: SchedulerFrame | None = _SCHEDULER.decode(packet)
    return frame
