"""A function that computes on every GPU of its child with one process for each, as `torch.distributed` wants them."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

import msgspec

from gen_worker import RequestContext, Resources, endpoint

RANK = """
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

rank, ranks, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
cuda = torch.cuda.is_available()
dist.init_process_group(
    "nccl" if cuda else "gloo",
    init_method=f"file://{meeting}", rank=rank, world_size=ranks, timeout=timedelta(seconds=60),
)
device = torch.device("cuda", rank) if cuda else torch.device("cpu")
print("ready", flush=True)
for line in sys.stdin:  # it ends with the child, whose pipe this is
    total = torch.tensor([float(line) * (rank + 1)], device=device)
    dist.all_reduce(total)
    print(total.item(), flush=True)
"""


class Number(msgspec.Struct):
    value: float = 1.0


class Sum(msgspec.Struct):
    text: str
    ranks: list[int]


@endpoint(resources=Resources(gpu_count=2))
class Ranks:
    """Each rank multiplies, all of them add up."""

    def setup(self) -> None:
        count = int(os.environ["GEN_WORKER_GPU_COUNT"])
        meeting = str(Path(mkdtemp(prefix="ranks-", dir=os.environ["FAULTY_FOLDER"])) / "store")
        self.ranks = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, str(rank), str(count), meeting],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]
        self._told()

    def _told(self) -> list[str]:
        """Return the next line of each rank."""
        lines = [rank.stdout.readline().strip() for rank in self.ranks if rank.stdout is not None]
        if not all(lines):
            raise RuntimeError("a rank has ended")
        return lines

    def add(self, ctx: RequestContext, payload: Number) -> Sum:
        """Return what all ranks agree on."""
        for rank in self.ranks:
            assert rank.stdin is not None
            rank.stdin.write(f"{payload.value}\n")
            rank.stdin.flush()
        (total,) = set(self._told())
        return Sum(total, [rank.pid for rank in self.ranks])

    def shutdown(self) -> None:
        for rank in self.ranks:
            rank.communicate()
