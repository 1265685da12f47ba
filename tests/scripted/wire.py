"""The wire as its proto says it, and nothing of the product: messages made from the file at the time of the test."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

PROTO = Path(__file__).parents[2] / "src" / "gen_worker" / "pb" / "worker_scheduler.proto"
PACKAGE = "cozy.scheduler"
SERVICE = f"{PACKAGE}.WorkerScheduler"
VERSION = 2
MESSAGE_BYTES = 64 << 20


class Wire(NamedTuple):
    """What travels: one kind of envelope each way."""

    WorkerMessage: Any
    SchedulerMessage: Any


@cache
def wire() -> Wire:
    """Return the envelopes, in a pool of their own: whatever else knows these names does not share it."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        described = Path(folder, "described")
        command = ["protoc", f"--proto_path={PROTO.parent}", f"--descriptor_set_out={described}", str(PROTO)]
        if protoc.main(command) != 0:
            raise RuntimeError(f"{PROTO} does not compile")
        files = descriptor_pb2.FileDescriptorSet.FromString(described.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return Wire(
        *(
            message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
            for name in ("WorkerMessage", "SchedulerMessage")
        )
    )
