"""What goes beside the supervisor is started again, whatever its start failed of."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

WITHOUT_DESCRIPTORS = """
import asyncio, os, resource
from gen_worker_supervisor.processes.companion import Companion, spawned
from gen_worker_supervisor.logs.log import Log
from gen_worker_supervisor.sockets.poller import Poller
from gen_worker_supervisor.processes.reaper import Reaper

async def main():
    loop, log = asyncio.get_running_loop(), Log()
    poller, reaper = Poller(loop), Reaper(loop)
    beside = Companion(loop, poller, reaper, log, "beside", lambda out: spawned(["sleep", "60"], out, [], os.environ))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = os.dup(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, hard))
    beside.start()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    os.close(last)
    deadline = loop.time() + 10
    while not beside.pid and loop.time() < deadline:
        await asyncio.sleep(0.005)
    print("started" if beside.pid else "given up")
    beside.close()
    reaper.close()
    poller.close()
    log.close()

asyncio.run(main())
"""


@pytest.mark.promise(12)
def test_what_could_not_be_started_without_a_descriptor_is_started_when_there_are_some() -> None:
    command = [sys.executable, "-c", WITHOUT_DESCRIPTORS]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (run.returncode, run.stdout) == (0, "started\n"), run.stderr
    assert "not started: [Errno 24] Too many open files" in run.stderr
