"""The same functions and two faults, to rehearse what happens around them: `gen-worker serve --module rehearsal`.

Outside the package `embeddings`, so that nobody serves them by accident.
"""

import ctypes
import time

from embeddings.main import Batch, Embeddings, Vectors

from gen_worker import RequestContext, endpoint


class Crash(Batch):
    after_s: float = 0.0


@endpoint
class Rehearsal(Embeddings):
    def crash(self, ctx: RequestContext, payload: Crash) -> Vectors:
        """Work for a while, then read address 0 as a broken extension would: SIGSEGV."""
        ends_at = time.monotonic() + payload.after_s
        vectors = self.embed(ctx, payload)
        while time.monotonic() < ends_at:
            vectors = self.embed(ctx, payload)
        ctypes.string_at(0)
        return vectors

    def hang(self, ctx: RequestContext, payload: Batch) -> Vectors:
        """Hold the interpreter's lock for ever: no other thread of the child runs, not even to notice a cancel."""
        libc = ctypes.PyDLL(None)  # unlike CDLL it keeps the lock during the call
        self.embed(ctx, payload)
        while True:
            libc.pause()
