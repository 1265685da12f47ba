"""One job of a child: what it was told of it, and how far it is."""

import asyncio
import queue
from typing import Any

import msgspec

from gen_worker.api.context import CancelFlag
from gen_worker.discovery.function_spec import FunctionSpec
from gen_worker.wire.messages import Submit
from gen_worker_child.output import InputBody
from gen_worker_child.realtime import Session
from gen_worker_child.windows import Window


class Job(msgspec.Struct, eq=False):
    """One job in this child, from its `Submit` to its end."""

    number: int
    order: Submit
    spec: FunctionSpec
    instance: str
    body: InputBody
    cancel: CancelFlag
    stream: Window | None  # the back-pressure of its stream; only a generator has one
    session: Session | None = None  # of a realtime job
    arrived: float = 0.0  # when, of one that waits for a batch
    measured: bool = False
    taken: bool = False
    returned: bool = False
    reported: bool = False
    yielded: int = 0
    progress_due: float = 0.0
    saves: set[queue.SimpleQueue[Any]] = msgspec.field(default_factory=set)  # it waits for; None: it was asked to end
    task: asyncio.Task[None] | None = None

    @property
    def window(self) -> Window:
        """The back-pressure of its stream, which it has."""
        assert self.stream is not None
        return self.stream

    def ask_to_end(self) -> None:
        """Set its flag and end its waits."""
        self.cancel.set()
        if self.stream is not None:
            self.stream.close()
        if self.session is not None:
            self.session.mailbox.hang_up()
        for save in tuple(self.saves):
            save.put(None)

    def taken_by_reader(self, items: int) -> None:
        """The reader took stream items."""
        if self.stream is not None:
            self.stream.taken(items)
