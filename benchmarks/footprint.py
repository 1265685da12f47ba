"""Memory, beside a bare interpreter and a bare fork: `python -m benchmarks.footprint`."""

from pathlib import Path

import psutil

from benchmarks import floors
from benchmarks.figures import Effort, Figure, Target, figure, main
from benchmarks.recover import CHILD
from benchmarks.servers import product
from gen_worker.client import Client

SHOWS = "footprint: what it weighs"
MIB = 1 << 20


def measure(effort: Effort) -> list[Figure]:
    """Memory of an idle supervisor and of an idle forked child."""
    supervisors, children, bare, forked = [], [], [], []
    for _ in range(effort.rounds):
        with product() as served, Client(served.control) as client, floors.forker(CHILD) as forker:
            refuse_torch_in(served.pid)
            (device,) = client.list().gpus
            assert device.pid is not None
            supervisors.append(psutil.Process(served.pid).memory_info().rss / MIB)
            children.append(private_bytes(device.pid) / MIB)
            with forker.child() as (pid, _):
                forked.append(private_bytes(pid) / MIB)
        with floors.forker() as interpreter:
            bare.append(psutil.Process(interpreter.pid).memory_info().rss / MIB)
    return [
        figure(
            "supervisor, resident",
            "MiB",
            supervisors,
            floors=bare,
            floor_name="bare interpreter",
            target=Target("value", "most", 80.0),
        ),
        figure(
            "idle forked child, private",
            "MiB",
            children,
            floors=forked,
            floor_name="bare fork",
            target=Target("value", "most", 10.0),
        ),
    ]


def private_bytes(pid: int) -> int:
    """Memory that the process shares with nobody."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def refuse_torch_in(pid: int) -> None:
    """Raise if the process has mapped torch."""
    if "libtorch" in Path(f"/proc/{pid}/maps").read_text():
        raise RuntimeError("the supervisor has loaded torch")


if __name__ == "__main__":
    main({SHOWS: measure})
