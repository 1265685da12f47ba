"""The ports that the documentation shows: one test of all that run at the moment has them."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def documented_ports() -> Iterator[None]:
    """Have them to ourselves until the body ends; whoever else wants them, in any process, waits."""
    place = Path(tempfile.gettempdir()) / f"gen-worker-tests-ports-{os.getuid()}.lock"
    with place.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
