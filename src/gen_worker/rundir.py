"""Where supervisors leave their traces, and how to find the one that is meant.

`<run dir>/<pid>/control.sock` is a supervisor's control socket and `supervisor.json` beside it says who it is; where a
supervisor of another pid namespace has that folder, it is `<pid>-<boot id>`. Its own supervisor removes such a
folder, or after its death the next one to start: whoever else looks judges by what answers, and deletes nothing.
"""

import errno
import os
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path

import msgspec

CONTROL = "control.sock"
DESCRIPTION = "supervisor.json"
DEFAULT_SOCKET = "./.gen-worker.sock"  # where `serve` listens, and what a command in the same folder talks to
PROBE_TIMEOUT_S = 2.0  # a supervisor that does not take a connection in this time is not one to choose
_ADDRESS_LIMIT = 107  # bytes of a Unix socket's address
_PEER = struct.Struct("3i")  # the pid, uid and gid of who listens


class SupervisorUnreachable(Exception):
    """No supervisor answers there, or it has gone; `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class SupervisorFile(msgspec.Struct, frozen=True):
    """What a supervisor says of itself in its folder."""

    pid: int
    boot_id: str
    control: str
    serve: str | None
    protocol: int
    host: str = ""
    """Which kernel and pid namespace its pid belongs to: folders may be shared by hosts."""

    def write(self, folder: Path) -> None:
        """Put the file into the supervisor's folder; readers see it whole or not at all."""
        part = folder / f".{DESCRIPTION}"
        part.write_bytes(msgspec.json.encode(self) + b"\n")
        part.replace(folder / DESCRIPTION)


class SeveralSupervisors(Exception):
    """More than one supervisor is alive and none was named; the text lists them, `candidates` has them."""

    def __init__(self, candidates: list[SupervisorFile]) -> None:
        listed = "".join(f"\n  {file.serve or file.control} (pid {file.pid})" for file in candidates)
        super().__init__(f"{len(candidates)} supervisors are alive:{listed}")
        self.candidates = candidates


def make_private(folder: Path) -> None:
    """Make the folder, for this user alone; raise `PermissionError` when it is there and somebody else's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if doubt := _doubt(folder):
        raise PermissionError(errno.EPERM, doubt, str(folder))


def live_supervisors(folder: Path) -> list[SupervisorFile]:
    """Return the supervisors of a run directory whose control sockets answer, by pid."""
    if _doubt(folder):
        return []
    described = [file for file in map(_read, folder.glob(f"[0-9]*/{DESCRIPTION}")) if file is not None]
    return sorted((file for file in described if _answers(file.control)), key=lambda file: file.pid)


def gone_supervisors(folder: Path) -> dict[Path, SupervisorFile]:
    """Return what supervisors of a run directory said of themselves that were killed, by their folders.

    One that answers is not gone, nor is one whose socket somebody has removed: nobody knows of that.
    """
    if _doubt(folder):
        return {}
    described = {path.parent: _read(path) for path in folder.glob(f"[0-9]*/{DESCRIPTION}")}
    return {own: file for own, file in described.items() if file is not None and _refuses(own / CONTROL)}


def choose(socket_option: str | None, folder: Path) -> Path:
    """Return the control socket that is meant: the one named, or that of the only supervisor alive in a run directory.

    Of several alive, the one that listens at `DEFAULT_SOCKET` in the current folder is meant. `socket_option` may name
    a control socket or what `serve` listens on. Raises `SupervisorUnreachable` when there is none, `SeveralSupervisors`
    when there is more than one to choose from.
    """
    alive = live_supervisors(folder)
    if socket_option is None:
        if not alive and (doubt := _doubt(folder)):
            hint = "be the user who runs it, with the same `GEN_WORKER_RUN_DIR`"
            raise SupervisorUnreachable(f"cannot look for supervisors in `{folder}`: {doubt}", hint)
        if not alive:
            raise SupervisorUnreachable(f"no supervisor is alive in `{folder}`", "start one with `gen-worker serve`")
        here = [file for file in alive if file.serve is not None and _same(file.serve, DEFAULT_SOCKET)]
        if len(alive) > 1 and not here:
            raise SeveralSupervisors(alive)
        return Path((here or alive)[0].control)
    wanted = socket_option.removeprefix("unix://")
    for file in alive:
        if file.serve is not None and _same(file.serve, wanted):
            return Path(file.control)
    _refuse_unless_control(wanted, folder)
    return Path(wanted)


def no_answer(path: str, error: OSError, folder: Path) -> SupervisorUnreachable:
    """Return what it means that nobody can be reached at a path, and where else supervisors of a run directory are."""
    reason = (error.strerror or str(error)).lower()
    elsewhere = ", ".join(f"`{file.serve or file.control}`" for file in live_supervisors(folder))
    if isinstance(error, PermissionError):
        hint = "be the user who runs it"
    else:
        hint = f"there are supervisors at {elsewhere}" if elsewhere else "start one with `gen-worker serve`"
    return SupervisorUnreachable(f"no supervisor answers at `{path}`: {reason}", hint)


def connect(path: str | Path, kind: socket.SocketKind, timeout_s: float | None) -> socket.socket:
    """Return a connected Unix socket, however long its path; raise `OSError` as `connect` does."""
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        sock.settimeout(timeout_s)
        if len(os.fsencode(path)) <= _ADDRESS_LIMIT:
            sock.connect(os.fspath(path))
        else:
            _connect_from_its_folder(sock, Path(path))
    except BaseException:
        sock.close()
        raise
    return sock


def other_owner(sock: socket.socket) -> str:
    """Return which other user listens at the other end of a Unix socket and serves only its own, as `user 1000`.

    An empty text where it is this user, who is root, or where that cannot be told.
    """
    if not hasattr(socket, "SO_PEERCRED") or sock.family != socket.AF_UNIX or os.geteuid() == 0:
        return ""
    try:
        _, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    except OSError:  # it is closed
        return ""
    return "" if uid == os.geteuid() else f"user {uid}"


def _connect_from_its_folder(sock: socket.socket, path: Path) -> None:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def _doubt(folder: Path) -> str:
    """Return why nothing in a folder is believed: somebody else than this user or root may have put it there.

    An empty text where all is well, or no folder is there.
    """
    try:
        found = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return (error.strerror or str(error)).lower()
    if not hasattr(os, "getuid"):
        return ""
    if found.st_uid not in (0, os.getuid()):
        return f"it belongs to user {found.st_uid}"
    if found.st_mode & stat.S_IWOTH:
        return "other users can write to it"
    readable = os.access(folder, os.R_OK | os.X_OK, effective_ids=True)
    return "" if readable or not stat.S_ISDIR(found.st_mode) else os.strerror(errno.EACCES).lower()


def _read(path: Path) -> SupervisorFile | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=SupervisorFile)
    except (OSError, msgspec.DecodeError):  # gone meanwhile, or of a version that says other things
        return None


def _answers(control: str) -> bool:
    try:
        connect(control, socket.SOCK_SEQPACKET, PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _refuses(control: Path) -> bool:
    """Whether a control socket is there and nobody listens on it."""
    try:
        connect(control, socket.SOCK_SEQPACKET, PROBE_TIMEOUT_S).close()
    except OSError as error:
        return isinstance(error, ConnectionRefusedError)
    return False


def _same(served: str, wanted: str) -> bool:
    return served == wanted or ("://" not in served and os.path.realpath(served) == os.path.realpath(wanted))


def _refuse_unless_control(path: str, folder: Path) -> None:
    if "://" in path:
        raise SupervisorUnreachable(
            f"no supervisor in `{folder}` says that it listens at `{path}`",
            "`ps` and `kill` reach the supervisors of this machine and user, by a path or the address that they print",
        )
    try:
        connect(path, socket.SOCK_SEQPACKET, PROBE_TIMEOUT_S).close()
    except OSError as error:
        if error.errno == errno.EPROTOTYPE:
            raise SupervisorUnreachable(
                f"`{path}` takes requests, but no supervisor in `{folder}` says that it is its socket",
                "set GEN_WORKER_RUN_DIR as it was for `serve`, or name the control socket",
            ) from None
        raise no_answer(path, error, folder) from None
