"""Where the files of payloads lie: a folder for each job that wants some, gone with it, whatever becomes of us.

On the supervisor's loop; what may take long on a disk is done by a thread.
"""

import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from gen_worker.scratch import PREFIX, claimed_folder, remove_abandoned

NAME_CHARS = 64
RUN_FILES = "inputs"
TAKEN = frozenset({"cache"})  # names in the folder of runs that are not a run's


class InputFolders:
    """The folders of all jobs: among temporary files, or as `<runs>/<request id>/inputs`.

    Where they are in a folder of runs, an entry in a folder of our own says of each that it is ours to remove.
    """

    def __init__(self) -> None:
        self._runs: Path | None = None
        self._own: Path | None = None
        self._claim = -1
        self._number = 0
        self._remover = ThreadPoolExecutor(1, "gen-worker-remove")  # its thread starts with the first work

    def lie_in(self, runs: Path) -> None:
        """Have the folders of jobs in this one, from which goes what a killed supervisor has left there."""
        self._runs = runs
        self._submit(remove_abandoned, runs)

    def new(self, request_id: str) -> Path:
        """Make a folder for a job's files and return it; raise `OSError`."""
        own = self._place()
        self._number += 1
        name = safe(request_id)
        if self._runs is None:
            folder = own / f"{name}-{self._number}"
            folder.mkdir(mode=0o700)
            return folder
        run = self._run(self._runs, f"run-{name}" if name in TAKEN or name.startswith(PREFIX) else name)
        folder, claim = run / RUN_FILES, own / run.name
        try:
            claim.touch()
            folder.mkdir(mode=0o700)
        except OSError:  # no room: nobody would ever remove what is there of it
            run.rmdir()
            claim.unlink(missing_ok=True)
            raise
        return folder

    def remove(self, folder: Path) -> None:
        """Have a folder removed that `new` has returned."""
        self._submit(self._remove, folder)

    def close(self) -> None:
        """Remove every folder; nobody writes any more."""
        self._remover.shutdown()
        if self._own is None:
            return
        if self._runs is not None:
            with suppress(FileNotFoundError):  # somebody has tidied up
                for name in os.listdir(self._own):
                    shutil.rmtree(self._runs / name, ignore_errors=True)
        shutil.rmtree(self._own, ignore_errors=True)
        os.close(self._claim)
        self._own = None

    def _place(self) -> Path:
        if self._own is not None:
            if self._own.is_dir():
                return self._own
            os.close(self._claim)  # somebody has removed it, as who tidies up what is old does
            self._own = None
        if self._runs is None:
            self._submit(remove_abandoned)
        else:
            self._runs.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._runs.stat().st_uid not in (0, os.getuid()):  # whoever owns it could put other files there
                raise PermissionError(f"`{self._runs}` is another user's")
        self._own, self._claim = claimed_folder(self._runs)
        return self._own

    def _run(self, runs: Path, name: str) -> Path:
        """Make the folder of a run, of this name or, where that is another worker's or has yet to go, with a number."""
        run = runs / name
        while True:
            try:
                run.mkdir(mode=0o700)
                return run
            except FileExistsError:
                run = runs / f"{name}-{self._number}"
                self._number += 1

    def _remove(self, folder: Path) -> None:
        if self._runs is None:
            shutil.rmtree(folder, ignore_errors=True)
            return
        shutil.rmtree(folder.parent, ignore_errors=True)
        if (own := self._own) is not None:
            (own / folder.parent.name).unlink(missing_ok=True)

    def _submit(self, work: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # no thread can be had now; the next one removes this, too
            self._remover.submit(work, *arguments)


def safe(request_id: str) -> str:
    """Return what may stand for a request in the name of a folder."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", request_id)[:NAME_CHARS] or "request"
