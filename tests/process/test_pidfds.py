"""The end of a process is seen whatever number its descriptor has."""

import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from gen_worker_supervisor.processes.reaper import ends_within

pytestmark = pytest.mark.process

HIGH = 2000  # `select` takes none beyond 1023


@pytest.fixture
def _many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard <= HIGH:
        pytest.skip(f"needs {HIGH} descriptors, `ulimit -Hn` is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HIGH + 1), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.promise(12)
@pytest.mark.usefixtures("_many_descriptors")
def test_a_supervisor_with_a_thousand_clients_sees_its_processes_end() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as process:
        low = os.pidfd_open(process.pid)
        high = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, HIGH)
        try:
            assert not ends_within(high, 0)
            signal.pidfd_send_signal(high, signal.SIGKILL)
            assert ends_within(high, None)
            assert ends_within(high, 0.5)
        finally:
            os.close(low)
            os.close(high)
