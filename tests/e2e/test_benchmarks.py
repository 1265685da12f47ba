"""Every benchmark works and says what it is meant to say; how fast things are is not judged here."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.quiet

ROOT = Path(__file__).resolve().parents[2]

FIGURES = {
    "dispatch": {
        "`echo`, round trip p50, 1 client",
        "`echo`, round trip p99, 1 client",
        "`echo`, 64 clients",
        "`echo-async`, round trip p50, 1 client",
        "`echo-async`, round trip p99, 1 client",
        "`echo-async`, 64 clients",
    },
    "batching": {
        "`Batch(max_size=32, max_wait_ms=10)`, 64 clients",
        "a lone request: what it waits for others",
    },
    "link": {
        "`echo`, round trip p50, 1 at a time",
        "`echo`, 64 at once, 1 child",
        "`echo`, 64 at once, 4 children",
        "`echo`, 64 at once, 16 children",
        "`echo`, 64 at once, 1 child, beside an echo",
        "`echo`, 64 at once, 4 children, beside an echo",
        "`echo`, 64 at once, 16 children, beside an echo",
        "bare stream, 64 at once",
        "supervisor, CPU of a job, 1 child",
        "supervisor, CPU of a job, 4 children",
        "supervisor, CPU of a job, 16 children",
        "supervisor, resident, 8 children, 1,000 jobs waiting",
    },
    "payload": {
        "1 MiB of text, NDJSON",
        "1 MiB of bytes, control socket",
        "32 MiB of bytes, control socket",
        "256 MiB, looked at where it is",
        "256 MiB, taken as bytes",
        "256 MiB, looked at where it is, asyncio",
        "256 MiB, taken as bytes, asyncio",
        "256 MiB, looked at where it is, the loop held",
        "256 MiB, taken as bytes, the loop held",
    },
    "recover": {
        "zygote forks, child says hello (bare)",
        "the only child killed, next answer (bare)",
    },
    "crowd": {
        "`echo-async`, round trip p99 beside the crowd",
        "a queued job is canceled, p50",
        "the supervisor's loop is late, p99",
        "the supervisor's loop is late, at most",
        "supervisor, added by the crowd",
        "1,000 clients connect, ask and are answered",
    },
    "cli": {
        "`import gen_worker`",
        "`import gen_worker`, added",
        "`from gen_worker import *`",
        "`from gen_worker import *`, added",
        "`gen-worker --help`",
        "`gen-worker run`",
        "`gen-worker invoke`",
        "`gen-worker ps --json`",
    },
    "top": {
        "`gen-worker top`, CPU",
        "`gen-worker top`, first document drawn",
        "`gen-worker top`, resident",
        "supervisor, added by one `top`",
        "supervisor, added by 50 who follow",
    },
    "footprint": {
        "supervisor, resident",
        "idle forked child, private",
    },
    "download": {
        "throughput, blake3",
        "CPU, blake3",
        "throughput, sha256",
        "CPU, sha256",
        "fetched again after SIGKILL",
    },
    "fetching": {
        "the loop is late, p99",
        "the loop is late, at most",
        "from the order to the lease",
    },
    "training": {"a step, CPU", "a step that does nothing, CPU", "a checkpoint of 12 MB"},
    "loading": {
        "cold from the disk",
        "from the host's memory",
        "memory beside the files, at most",
        "host to device, pinned",
        "host to device, pageable",
        "from the host's memory to the device",
        "one model for another",
        "fork to a GPU that works",
        "a killed child's memory is free",
    },
}


@pytest.mark.process
@pytest.mark.parametrize("name", FIGURES)
def test_a_benchmark_measures_what_it_promises(name: str) -> None:
    if name == "download" and shutil.which("curl") is None:
        pytest.skip("needs curl")
    command = [sys.executable, "-m", f"benchmarks.{name}", "--brief", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads(done.stdout).values()
    assert {figure["name"] for figure in figures} == FIGURES[name]
    assert all(figure["value"] > 0 for figure in figures if "added" not in figure["name"] and not figure["skipped"])


PAIR = """
from benchmarks.dispatch import request
from benchmarks.load import latencies, throughput
from benchmarks.servers import bare_pair

with bare_pair() as path:
    print(len(latencies(path, request("echo"), rounds=50)))
    print(throughput(path, request("echo"), clients=8, seconds=0.05) > 0)
"""


def test_the_bare_pair_serves_one_client_and_many() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PAIR], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "50\nTrue\n"), done.stderr
