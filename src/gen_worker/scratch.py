"""Folders that last as long as the process that made them, however that ends: whoever sweeps finds their lock free."""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "gen-worker-inputs-"


def claimed_folder() -> tuple[Path, int]:
    """Make a folder that is locked as long as this process lives; return it and the lock."""
    while True:
        folder = tempfile.mkdtemp(prefix=PREFIX)
        claim = os.open(folder, os.O_RDONLY)
        if _locks(claim) and os.path.exists(folder):
            return Path(folder), claim
        os.close(claim)  # another process took it for abandoned before it was locked


def remove_abandoned() -> None:
    """Remove the folders of processes that were killed: those that nobody holds a lock on."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # it went away meanwhile, or is none of ours
            claim = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(claim).st_uid == os.getuid() and _locks(claim):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(claim)


def _locks(descriptor: int) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
