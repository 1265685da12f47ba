"""A process whose user the system does not know and who has no home: its models, and other users' supervisors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gen_worker.client import Client
from gen_worker.rundir import SupervisorUnreachable
from tests.served import serving

pytestmark = [pytest.mark.process, pytest.mark.root]
NOBODY = 54321
LOOK = f"""
import os, pwd
from pathlib import Path
from gen_worker.sources import default_cache_dir
os.environ.pop("HOME", None)
os.setuid({NOBODY})
print(default_cache_dir({{}}, Path("/nowhere")))
"""


def test_a_user_without_a_name_and_a_home_keeps_models_where_containers_do() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=20, check=False)
    assert (done.stdout, done.stderr) == ("/tmp/model_cache\n", "")


KEEP_CAPABILITIES = "ctypes.CDLL(None).prctl(28, 4)"  # else Python may be where this user cannot read it
ASK = f"""
import asyncio, ctypes, os, sys
from gen_worker.cli import execute
from gen_worker.client import AsyncClient, SupervisorUnreachable
{KEEP_CAPABILITIES}
os.setuid({NOBODY})
async def ask():
    async with AsyncClient(sys.argv[1]) as client:
        await client.list()
if sys.argv[2] == "asynchronous":
    try:
        asyncio.run(ask())
    except SupervisorUnreachable as error:
        sys.exit(f"error: {{error}}\\nhint: {{error.hint}}")
raise SystemExit(execute([*sys.argv[2:], "--socket", sys.argv[1]]))
"""


@pytest.mark.parametrize(
    ("asked", "code"), [(["ps"], 4), (["kill", "a"], 4), (["asynchronous"], 1), (["invoke", "echo", "text=hi"], 2)]
)
def test_a_supervisor_of_another_user_is_told_as_such(tmp_path: Path, asked: list[str], code: int) -> None:
    with serving(tmp_path) as server:
        socket_ = server.address if asked[0] == "invoke" else str(server.control)
        command = [sys.executable, "-c", ASK, socket_, *asked]
        environment = {**os.environ, "GEN_WORKER_RUN_DIR": "/nowhere"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment)
    what = "server" if asked[0] == "invoke" else "supervisor"
    told = f"error: the {what} is another user's, user 0: it hung up\nhint: be that user, or root\n"
    assert (done.returncode, done.stdout, done.stderr) == (code, "", told)


HANG_UP = f"""
import os, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
    listening.bind(sys.argv[1])
    os.setuid({NOBODY})
    listening.listen()
    print("ready", flush=True)
    listening.accept()[0].close()
"""


def test_root_which_every_supervisor_takes_is_told_that_one_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "control"
    command = [sys.executable, "-c", HANG_UP, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(SupervisorUnreachable, match="the supervisor is gone: "):
            Client(path)
