"""Where a server cannot listen it says why and what to do, and touches nothing of anybody's."""

import fcntl
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gen_worker.rundir import live_supervisors
from tests.served import (
    ENDPOINTS,
    GEN_WORKER,
    PATIENCE_S,
    Serve,
    Server,
    environment,
    launch,
    serving,
    text_of,
    until,
)

pytestmark = pytest.mark.process


def refusal(folder: Path, *arguments: str, devices: str = "cpu:1", listen: str | None = None) -> str:
    """Return what a server that cannot start says; it is one error and one hint."""
    with launch(folder, *arguments, devices=devices, listen=listen) as process:
        assert process.wait(PATIENCE_S) == 2
    error, hint = (folder / "log").read_text().splitlines()
    assert hint.startswith("hint: ")
    return error


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "gw.sock").write_text("mine")
    assert refusal(tmp_path) == f"error: `{tmp_path}/gw.sock` exists and is not a socket"
    assert (tmp_path / "gw.sock").read_text() == "mine"


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "gw.sock").mkdir()
    assert refusal(tmp_path) == f"error: `{tmp_path}/gw.sock` is a folder"


@pytest.mark.promise(40)
def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "gw.sock").symlink_to(tmp_path / "elsewhere")
    assert refusal(tmp_path) == f"error: `{tmp_path}/gw.sock` exists and is not a socket"
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    listen = f"unix://{tmp_path}/no/such/gw.sock"
    assert refusal(tmp_path, listen=listen) == (
        f"error: cannot listen on `{tmp_path}/no/such/gw.sock`: there is no folder `{tmp_path}/no/such`"
    )


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    where = Path("/proc/sys/kernel/gw.sock")  # not even root's
    assert refusal(tmp_path, listen=str(where)).startswith(f"error: cannot listen on `{where}`: ")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a folder locked."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@pytest.mark.promise(40)
def test_a_lock_that_somebody_keeps_on_the_folder_is_told_and_holds_no_start_up(tmp_path: Path) -> None:
    with locked(tmp_path):
        told = f"error: cannot listen on `{tmp_path}/gw.sock`: another process keeps `{tmp_path}` locked"
        assert refusal(tmp_path) == told


@pytest.mark.promise(40)
def test_a_lock_that_somebody_keeps_on_the_folder_holds_no_end_up(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    with locked(tmp_path):
        server.signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 0
    assert f"`{server.socket}` stays: another process keeps `{tmp_path}` locked" in server.log()


@pytest.mark.parametrize(
    "listen", ["tcp://127.0.0.1", "tcp://:80", "tcp://127.0.0.1:http", "udp://127.0.0.1:80", "unix://x"]
)
def test_what_is_no_address_is_refused_with_how_one_is_written(tmp_path: Path, listen: str) -> None:
    assert refusal(tmp_path, listen=listen).startswith(f"error: `{listen}` is not an address: ")
    assert "hint: write `tcp://host:port`, `unix:///path` or a path" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("devices", "told"),
    [
        ("gpu", "no "),
        ("", "`` names no device"),
        (" , ", "`,` names no device"),
        ("cpu:0", "`cpu:N` takes 1 to 256 slots, not `0`"),
        ("cpu:x", "`cpu:N` takes 1 to 256 slots, not `x`"),
    ],
)
def test_devices_that_are_not_there_are_refused(tmp_path: Path, devices: str, told: str) -> None:
    assert refusal(tmp_path, devices=devices).startswith(f"error: {told}")


@pytest.mark.promise(40)
@pytest.mark.parametrize("listen", [None, "tcp://127.0.0.1:0"])
def test_of_two_that_start_at_once_one_serves_and_the_other_names_it(
    serve: Serve, tmp_path: Path, listen: str | None
) -> None:
    if listen is not None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            listen = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    logs = [tmp_path / "one", tmp_path / "two"]
    processes = [launch(tmp_path, listen=listen, log=log) for log in logs]
    try:
        until(lambda: any(process.poll() is not None for process in processes), what="the end of one")
        (loser,) = [process for process in processes if process.poll() is not None]
        assert loser.returncode == 2
        (winner,) = [process for process in processes if process is not loser]
        said = logs[processes.index(loser)].read_text()
        assert f"in use by pid {winner.pid}\nhint: " in said if listen is None else "is in use\nhint: " in said
        log = logs[processes.index(winner)]
        until(lambda: "\nready\n" in log.read_text() or winner.poll() is not None, what="the other's being ready")
        assert log.read_text().endswith("\nready\n")
        winner.send_signal(signal.SIGTERM)
        assert winner.wait(PATIENCE_S) == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_socket_and_a_sidecar_that_another_has_put_there_stay(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    server.socket.unlink()
    server.sidecar.unlink()
    with launch(tmp_path, log=tmp_path / "second") as second:
        until(lambda: "\nready\n" in (tmp_path / "second").read_text(), what="the second server")
        server.signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 0
        assert server.socket.exists()
        assert server.sidecar.exists()
        assert text_of(server.ask("echo", text="of the second")) == "of the second"
        second.terminate()
        assert second.wait(PATIENCE_S) == 0
    assert not server.socket.exists()
    assert not server.sidecar.exists()


def test_a_folder_that_is_gone_at_the_end_holds_nothing_up(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "short-lived").mkdir()
    where = tmp_path / "short-lived" / "gw.sock"
    with launch(tmp_path, listen=str(where)) as process:
        until(where.exists, what="the socket")
        until(lambda: "\nready\n" in (tmp_path / "log").read_text(), what="the server")
        for path in where.parent.iterdir():
            path.unlink()
        where.parent.rmdir()
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    assert (tmp_path / "log").read_text().endswith("stopped\n")


def test_after_the_signal_nobody_new_is_let_in_and_the_socket_stays_until_all_have_ended(serve: Serve) -> None:
    server = serve()
    with server.connect() as connection:
        connection.send("poll", "running", gate="go")
        server.until_running("running")
        server.signal(signal.SIGTERM)
        until(lambda: server.status().draining)
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        assert server.sidecar.exists()
        server.open("go")
        assert connection.frame()["request_id"] == "running"
    assert server.process.wait(PATIENCE_S) == 0
    assert not server.socket.exists()


@pytest.mark.promise(40)
@pytest.mark.root
def test_another_user_is_not_served_even_where_the_file_would_let_it() -> None:
    with tempfile.TemporaryDirectory(prefix="gw-") as made, serving(Path(made)) as server:
        os.chmod(made, 0o711)
        assert server.socket.stat().st_mode & 0o077 == 0
        os.chmod(server.socket, 0o777)
        pid = os.fork()
        if pid == 0:
            os._exit(_what_another_user_gets(server))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _what_another_user_gets(server: Server) -> int:
    """Return 0 for a closed connection, 1 for an answer, 2 for anything else; for a process of its own."""
    os.setuid(65534)
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(server.socket))
        except OSError:
            return 2
        try:
            sock.sendall(b'{"function":"echo"}\n')
            return 1 if sock.recv(1) else 0
        except (BrokenPipeError, ConnectionResetError):
            return 0


# --- what others left, or have ----------------------------------------------------------------------------------------

SLOW = """
import os, pathlib, time
import msgspec
from gen_worker import RequestContext, endpoint

class Nothing(msgspec.Struct):
    pass

@endpoint
class Slow:
    def setup(self) -> None:
        while not (pathlib.Path(os.environ["FAULTY_FOLDER"]) / "go").exists():
            time.sleep(0.01)

    def slow(self, ctx: RequestContext, payload: Nothing) -> Nothing:
        return payload
"""


@pytest.mark.parametrize("listen", [None, "tcp://127.0.0.1:0"])
def test_while_a_server_starts_no_file_of_a_killed_one_calls_it_ready(
    serve: Serve, tmp_path: Path, listen: str | None
) -> None:
    killed = serve(listen=listen)
    killed.signal(signal.SIGKILL)
    killed.process.wait(PATIENCE_S)
    assert killed.sidecar.exists()
    (tmp_path / "slow.py").write_text(SLOW)
    log = tmp_path / "second"
    with launch(tmp_path, "--eager", module="slow", cwd=tmp_path, listen=listen, log=log) as process:
        until(lambda: "[cpu:0] child" in log.read_text(), what="the start of a child")
        assert not killed.sidecar.exists()
        (tmp_path / "go").touch()
        until(killed.sidecar.exists, what="the sidecar")
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


def test_a_file_beside_the_socket_that_no_server_wrote_outlives_a_start_that_fails(tmp_path: Path) -> None:
    (tmp_path / "gw.sock.json").write_text('{"mine": true}')
    with launch(tmp_path, variables={"GEN_WORKER_RUN_DIR": "/proc/no/run"}) as process:
        assert process.wait(PATIENCE_S) == 2
    assert (tmp_path / "gw.sock.json").read_text() == '{"mine": true}'


def test_a_run_directory_that_cannot_be_is_told_in_words_and_leaves_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with launch(tmp_path, variables={"GEN_WORKER_RUN_DIR": str(tmp_path / "file")}) as process:
        assert process.wait(PATIENCE_S) == 2
    assert (tmp_path / "log").read_text() == (
        f"error: cannot open the control socket in `{tmp_path}/file`: it is not a folder\n"
        "hint: set `GEN_WORKER_RUN_DIR` to a folder of yours\n"
    )
    assert not (tmp_path / "gw.sock").exists()


def test_a_live_server_of_another_container_with_the_same_pid_keeps_its_folder(tmp_path: Path) -> None:
    home = tmp_path / "run"
    home.mkdir(mode=0o700)
    with ExitStack() as others:

        def occupy(pid: int) -> Path:
            (home / str(pid)).mkdir()
            sock = others.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            sock.bind(str(home / str(pid) / "control.sock"))
            sock.listen()
            return home / str(pid) / "control.sock"

        command = ["sh", "-c", 'read go; exec "$@"', "sh", *GEN_WORKER, "serve", "--module", "faulty"]
        command += ["--no-stdin", "--devices", "cpu:1", "--listen", str(tmp_path / "gw.sock")]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=ENDPOINTS, env=environment(tmp_path), stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        with process:
            theirs = occupy(process.pid)
            process.stdin.write(b"\n")  # type: ignore[union-attr]
            process.stdin.close()  # type: ignore[union-attr]
            until(lambda: "\nready\n" in (tmp_path / "log").read_text(), what="its being ready")
            (found,) = live_supervisors(home)
            assert (found.pid, Path(found.control).parent.name) == (process.pid, f"{process.pid}-{found.boot_id}")
            process.terminate()
            assert process.wait(PATIENCE_S) == 0
        assert theirs.is_socket()
        assert sorted(path.name for path in home.iterdir()) == [str(process.pid), "logs"]
