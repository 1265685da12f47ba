"""Folders that last as long as the process that made them, however that ends: whoever sweeps finds their lock free."""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "gen-worker-inputs-"


def claimed_folder(place: Path | None = None) -> tuple[Path, int]:
    """Make a folder that is locked as long as this process lives; return it and the lock.

    It is in `place`, else among temporary files.
    """
    while True:
        folder = tempfile.mkdtemp(prefix=PREFIX, dir=place)
        try:
            claim = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # whoever sweeps took it for abandoned before it was locked, as below
        if _locks(claim) and os.path.exists(folder):
            return Path(folder), claim
        os.close(claim)


def remove_abandoned(place: Path | None = None) -> None:
    """Remove the folders of processes that were killed: those that nobody holds a lock on.

    In a `place` of their own, each names what its process has left beside it, which goes first.
    """
    try:
        swept = place or Path(tempfile.gettempdir())
    except FileNotFoundError:  # nothing can be written anywhere just now, as on a full disk
        return
    for folder in swept.glob(f"{PREFIX}*"):
        with suppress(OSError):  # it went away meanwhile, or is none of ours
            claim = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(claim).st_uid == os.getuid() and _locks(claim):
                    if place is not None:
                        for name in os.listdir(folder):
                            shutil.rmtree(place / name, ignore_errors=True)
                            (folder / name).unlink()  # at once: the name may soon be another's
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
