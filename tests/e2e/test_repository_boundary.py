"""The author's code runs in its own processes and in no other."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

WITNESS = """
import os
import msgspec
from gen_worker import RequestContext, endpoint

with open(os.environ["WITNESS"], "a") as witness:
    witness.write(f"{os.getpid()}\\n")

class Text(msgspec.Struct):
    text: str

@endpoint
def echo(ctx: RequestContext, payload: Text) -> Text:
    return payload
"""


def wait_for(path: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert server.poll() is None, f"`serve` ended with {server.returncode}"
        assert time.monotonic() < deadline, f"no {path} after 30 s"
        time.sleep(0.01)


@pytest.mark.process
def test_the_supervisor_never_imports_the_authors_module(tmp_path: Path) -> None:
    (tmp_path / "witness.py").write_text(WITNESS)
    imports = tmp_path / "imports"
    command = [str(Path(sys.executable).with_name("gen-worker")), "serve", "--module", "witness"]
    command += ["--devices", "cpu:1", "--socket", "serve.sock"]
    environment = {**os.environ, "WITNESS": str(imports)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL) as server:
        try:
            wait_for(tmp_path / "serve.sock.json", server)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(30)
                client.connect(str(tmp_path / "serve.sock"))
                client.sendall(b'{"function":"echo","payload":{"text":"hi"}}\n')
                assert json.loads(client.recv(4096))["ok"] is True
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(20)
    seen = imports.read_text().split()
    assert seen
    assert str(server.pid) not in seen
