"""What a link carries messages for: a protocol, so that the stream knows nothing of jobs and jobs nothing of gRPC."""

from typing import Protocol

from gen_worker.wire.scheduler import CancelJob, Drain, Hello, HelloAck, ModelOp, RunJob, WorkerFrame


class Session(Protocol):
    """One worker towards its orchestrator, over as many connections as it takes.

    Every call is made on the loop and returns at once.
    """

    def hello(self) -> Hello:
        """Return everything as it is now; the first message of each connection."""
        ...

    def acknowledged(self, ack: HelloAck) -> None:
        """A connection is up, or its orchestrator has said something new about files and models to keep."""
        ...

    def received(self, frame: RunJob | CancelJob | ModelOp | Drain) -> None:
        """The orchestrator wants something."""
        ...

    def left(self, frame: WorkerFrame, *, written: bool) -> None:
        """A message was written to the stream of a live connection, or was dropped."""
        ...

    def disconnected(self) -> None:
        """The connection that was acknowledged is gone; another one follows."""
        ...
