"""The run directory: where supervisors are found, and which one is meant."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gen_worker.cli.failure import Failure
from gen_worker.cli.ndjson import open_connection
from gen_worker.rundir import (
    SeveralSupervisors,
    SupervisorFile,
    SupervisorUnreachable,
    choose,
    connect,
    gone_supervisors,
    live_supervisors,
    make_private,
)
from gen_worker.wire.address import UnixAddress


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gw-") as made:  # short: a socket's address has 107 bytes
        yield Path(made)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def listening(stack: ExitStack, path: Path, kind: socket.SocketKind = socket.SOCK_SEQPACKET) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
    sock.bind(os.fspath(path))
    sock.listen()
    return sock


def supervisor(stack: ExitStack, folder: Path, pid: int, serve: str | None = None) -> SupervisorFile:
    own = folder / str(pid)
    own.mkdir()
    listening(stack, own / "control.sock")
    file = SupervisorFile(pid=pid, boot_id="b", control=str(own / "control.sock"), serve=serve, protocol=1)
    file.write(own)
    return file


def test_a_supervisor_that_answers_is_alive(folder: Path, stack: ExitStack) -> None:
    files = [supervisor(stack, folder, 20), supervisor(stack, folder, 3)]
    assert live_supervisors(folder) == files[::-1]


def test_a_supervisor_is_gone_when_its_socket_is_there_and_nobody_listens(folder: Path, stack: ExitStack) -> None:
    supervisor(stack, folder, 3)
    supervisor(stack, folder, 20)
    (folder / "20" / "control.sock").unlink()
    (folder / "30").mkdir()
    with ExitStack() as short:
        killed = supervisor(short, folder, 40)
    assert gone_supervisors(folder) == {folder / "40": killed}
    assert gone_supervisors(folder / "nowhere") == {}


def test_a_server_that_is_ending_is_not_said_to_be_elsewhere(
    folder: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEN_WORKER_RUN_DIR", str(folder))
    address = folder / "serve.sock"
    supervisor(stack, folder, 20, str(address))
    with pytest.raises(Failure, match="no server at") as refused:
        open_connection(UnixAddress(str(address)))
    assert refused.value.hint == "its supervisor, 20, takes nothing new any more: it is ending"
    with pytest.raises(Failure) as elsewhere:
        open_connection(UnixAddress(str(folder / "other.sock")))
    assert f"`{address}`: name one with" in elsewhere.value.hint


def test_what_a_dead_supervisor_left_is_neither_alive_nor_deleted(folder: Path, stack: ExitStack) -> None:
    with ExitStack() as short:
        supervisor(short, folder, 20)
    (folder / "30").mkdir()
    (folder / "30" / "supervisor.json").write_text("not json")
    (folder / "40").mkdir()
    before = sorted(folder.rglob("*"))
    assert live_supervisors(folder) == []
    assert sorted(folder.rglob("*")) == before


def test_a_run_directory_that_is_not_there_holds_nobody(folder: Path) -> None:
    assert live_supervisors(folder / "nowhere") == []


def test_the_only_supervisor_is_chosen(folder: Path, stack: ExitStack) -> None:
    file = supervisor(stack, folder, 20)
    assert choose(None, folder) == Path(file.control)


def test_among_several_none_is_chosen(folder: Path, stack: ExitStack) -> None:
    files = [supervisor(stack, folder, 20), supervisor(stack, folder, 30)]
    with pytest.raises(SeveralSupervisors) as caught:
        choose(None, folder)
    assert caught.value.candidates == files


def test_the_text_of_several_supervisors_lists_where_they_listen(folder: Path, stack: ExitStack) -> None:
    first, second = supervisor(stack, folder, 3, "tcp://127.0.0.1:8000"), supervisor(stack, folder, 20)
    with pytest.raises(SeveralSupervisors) as raised:
        choose(None, folder)
    assert str(raised.value) == f"2 supervisors are alive:\n  {first.serve} (pid 3)\n  {second.control} (pid 20)"


def test_among_several_the_one_that_serves_this_folder_is_chosen(
    folder: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = supervisor(stack, folder, 3, str(folder / ".gen-worker.sock"))
    supervisor(stack, folder, 20, str(folder / "other.sock"))
    monkeypatch.chdir(folder)
    assert choose(None, folder) == Path(own.control)
    monkeypatch.chdir(folder / "20")
    with pytest.raises(SeveralSupervisors):
        choose(None, folder)


def test_a_supervisor_can_be_named_by_the_address_it_serves(folder: Path, stack: ExitStack) -> None:
    file = supervisor(stack, folder, 3, "tcp://127.0.0.1:8000")
    assert choose("tcp://127.0.0.1:8000", folder) == Path(file.control)
    with pytest.raises(SupervisorUnreachable, match=r"listens at `tcp://127\.0\.0\.1:8001`"):
        choose("tcp://127.0.0.1:8001", folder)


def test_a_supervisor_can_be_named_by_the_url_of_its_socket(folder: Path, stack: ExitStack) -> None:
    file = supervisor(stack, folder, 3, str(folder / "gw.sock"))
    assert choose(f"unix://{folder}/gw.sock", folder) == Path(file.control)


def test_without_a_supervisor_the_hint_says_how_to_start_one(folder: Path) -> None:
    with pytest.raises(SupervisorUnreachable, match="no supervisor is alive") as caught:
        choose(None, folder)
    assert caught.value.hint == "start one with `gen-worker serve`"


def refused(path: Path, folder: Path) -> SupervisorUnreachable:
    with pytest.raises(SupervisorUnreachable, match=f"no supervisor answers at `{path}`: ") as raised:
        choose(str(path), folder)
    return raised.value


def test_a_socket_that_nobody_answers_at_is_told_with_where_supervisors_are(folder: Path, stack: ExitStack) -> None:
    assert refused(folder / "nowhere", folder).hint == "start one with `gen-worker serve`"
    supervisor(stack, folder, 7, serve="/here/.gen-worker.sock")
    supervisor(stack, folder, 8)
    hint = f"there are supervisors at `/here/.gen-worker.sock`, `{folder}/8/control.sock`"
    assert refused(folder / "nowhere", folder).hint == hint


def test_a_supervisor_can_be_named_by_either_of_its_sockets(
    folder: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = folder / "serve.sock"
    listening(stack, serve, socket.SOCK_STREAM)
    files = [supervisor(stack, folder, 20, str(serve)), supervisor(stack, folder, 30, "tcp://127.0.0.1:80")]
    monkeypatch.chdir(folder)
    assert choose("serve.sock", folder) == Path(files[0].control)
    assert choose("tcp://127.0.0.1:80", folder) == Path(files[1].control)
    assert choose(files[1].control, folder) == Path(files[1].control)


def test_a_control_socket_of_another_run_directory_can_be_named(folder: Path, stack: ExitStack) -> None:
    listening(stack, folder / "control.sock")
    assert choose(str(folder / "control.sock"), folder / "elsewhere") == folder / "control.sock"


def test_a_socket_that_nobody_owns_to_is_refused(folder: Path, stack: ExitStack) -> None:
    listening(stack, folder / "serve.sock", socket.SOCK_STREAM)
    with pytest.raises(SupervisorUnreachable, match="takes requests, but no supervisor"):
        choose(str(folder / "serve.sock"), folder)
    with pytest.raises(SupervisorUnreachable, match="no such file"):
        choose(str(folder / "nothing.sock"), folder)


def test_a_socket_with_a_long_path_can_be_reached(
    folder: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = folder / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    listening(stack, Path("control.sock"))
    monkeypatch.chdir("/")
    connect(deep / "control.sock", socket.SOCK_SEQPACKET, 1.0).close()
    with pytest.raises(FileNotFoundError):
        connect(deep / "nothing.sock", socket.SOCK_SEQPACKET, 1.0)


@pytest.mark.promise(40)
def test_a_run_directory_is_for_its_user_alone(folder: Path) -> None:
    make_private(folder / "a" / "run")
    assert (folder / "a" / "run").stat().st_mode & 0o777 == 0o700
    make_private(folder / "a" / "run")


@pytest.mark.promise(40)
@pytest.mark.root
def test_a_run_directory_that_this_user_may_not_look_into_is_told_as_that(folder: Path) -> None:
    folder.chmod(0o700)
    user = os.geteuid()
    os.seteuid(65534)
    try:
        assert live_supervisors(folder / "run") == []
        with pytest.raises(SupervisorUnreachable, match=f"cannot look for supervisors in `{folder}/run`: permission"):
            choose(None, folder / "run")
        with pytest.raises(SupervisorUnreachable, match="permission denied"):
            choose(None, folder)
    finally:
        os.seteuid(user)
    os.chown(folder, 65534, 65534)
    with pytest.raises(SupervisorUnreachable, match="it belongs to user 65534"):
        choose(None, folder)


@pytest.mark.promise(40)
def test_a_run_directory_that_others_can_write_to_is_not_believed(folder: Path, stack: ExitStack) -> None:
    supervisor(stack, folder, 20)
    folder.chmod(0o777)
    assert live_supervisors(folder) == []
    with pytest.raises(PermissionError, match="other users can write to it"):
        make_private(folder)
