"""What a server holds and has made, so that what a fault leaves behind is seen."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.served import Server, descriptors, until

SETTLED_S = 10.0
MEANT_TO_STAY = ("postmortems", "logs", "jobs")
KEPT = Counter({"/memfd:gen-worker": 8})  # regions that children have for their next body


class Traces(NamedTuple):
    """What there is at one moment: open descriptors by kind, processes by role, files."""

    descriptors: Counter[str]
    processes: Counter[str]
    files: frozenset[str]

    def beyond(self, before: "Traces") -> list[str]:
        """Name what there is now and was not before."""
        more = (self.descriptors - before.descriptors - KEPT) + (self.processes - before.processes)
        return [f"{count} x {what}" for what, count in more.items()] + sorted(self.files - before.files)


def traces(server: Server) -> Traces:
    """Look at a server."""
    return Traces(Counter(map(kind, descriptors(server.pid))), Counter(map(role, server.processes())), files(server))


def kind(target: str) -> str:
    """What a descriptor is, without what tells one of that kind from another."""
    return re.sub(r":\[?\d+\]?| \(deleted\)|/proc/\d+", "", target)


def role(pid: int) -> str:
    """What a process of ours is for."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return "ended"
    found = re.search(r"gen_worker_child|gen_worker\w*\.\w+", command)  # a zygote and its children look the same
    return found[0] if found else command.strip() or "ended"


def files(server: Server) -> frozenset[str]:
    """Files that may be left over: in the run directory, the temporary folder, `/dev/shm`, and half of an output."""
    found = {f"/dev/shm/{name}" for name in os.listdir("/dev/shm")}
    for folder in ("run", "tmp"):
        for place, folders, names in os.walk(server.folder / folder):
            folders[:] = [each for each in folders if each not in MEANT_TO_STAY]
            found |= {os.path.join(place, name) for name in names}
    for place, _, names in os.walk(server.folder / "outputs"):
        found |= {os.path.join(place, name) for name in names if not name.endswith(".bin")}
    return frozenset(found)


def until_nothing_more(server: Server, before: Traces) -> None:
    """Wait until there is nothing that was not there before; name it when it stays."""
    try:
        until(lambda: not traces(server).beyond(before), SETTLED_S)
    except AssertionError:
        raise AssertionError("left behind:\n  " + "\n  ".join(traces(server).beyond(before))) from None
