"""What must succeed before a supervisor starts anything: the look at the author's module, the devices, the socket."""

import os
import socket
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from gen_worker.discovery.errors import DiscoveryError
from gen_worker.discovery.process import survey_of_module
from gen_worker.wire.address import Address, TcpAddress, UnixAddress, parse_port
from gen_worker.wire.survey import NoFunctionError, Survey
from gen_worker_supervisor import http_front
from gen_worker_supervisor.core.actions import Note
from gen_worker_supervisor.core.state import Device
from gen_worker_supervisor.devices import cuda_probe
from gen_worker_supervisor.devices import ownership as devices
from gen_worker_supervisor.devices.gpu_lock import GpuLockError, GpuLocks, GpuTakenError
from gen_worker_supervisor.http_front import HttpPort
from gen_worker_supervisor.sockets.listening import ListenError, OwnFile, bind_tcp, bind_unix


class StartError(Exception):
    """The supervisor cannot start; the text is for a person, `hint` says what to do, `code` how to exit."""

    def __init__(self, message: str, hint: str = "", stack: tuple[str, ...] = (), *, code: int = 2) -> None:
        super().__init__(message)
        self.hint = hint
        self.stack = stack
        self.code = code


def survey_module(module: str, paths: list[str], environment: Mapping[str, str]) -> Survey:
    """Return what a short-lived process finds in the author's module; raise `StartError` when it refuses."""
    try:
        survey = survey_of_module(module, paths, environment=environment)
    except DiscoveryError as error:
        raise StartError(error.message, error.hint, tuple(error.stack)) from None
    if not survey.functions:
        raise StartError(f"`{module}` declares no endpoint", "decorate a function or class with `@endpoint`")
    return survey


def chosen(survey: Survey, names: Sequence[str]) -> Survey:
    """Return the survey of the functions that are served when these are asked for; none named: all."""
    try:
        return survey.of_owners(names)
    except NoFunctionError as error:
        raise StartError(str(error), error.hint) from None


class Owned(NamedTuple):
    """The devices of this process; its GPUs are locked until `locks` is closed."""

    devices: list[Device]
    locks: GpuLocks
    notices: list[Note]
    """What is to be said: of GPUs that are there and not used."""

    gpu_counts: frozenset[int]
    """By which `auto` has made groups; empty where the devices were named."""


def own_devices(
    wanted: str,
    survey: Survey,
    environment: Mapping[str, str],
    *,
    serves: str,
    option: str,
    strict_gpus: bool = False,
) -> Owned:
    """Return the devices that the option means, each GPU locked for this process, which `serves` names to others.

    With `strict_gpus` nothing but `cpu:N` stands for a GPU. `auto` takes the GPUs that no other supervisor has. Raises
    `StartError`.
    """
    auto = wanted == "auto"
    gpu_functions = any(function.gpu for function in survey.functions)
    gpu_counts = frozenset(function.gpu_count for function in survey.functions if function.gpu)
    locks = GpuLocks(serves)
    try:
        gpus = devices.Gpus([], [])
        if not wanted.startswith("cpu"):
            gpus = devices.visible(devices.list_gpus(), environment)
        if auto and gpu_functions:
            gpus = _free(gpus, locks, option)
        chosen = devices.choose(
            wanted,
            gpus,
            gpu_functions=gpu_functions,
            cpu_functions=any(not function.gpu for function in survey.functions),
            gpu_counts=gpu_counts,
            strict_gpus=strict_gpus,
        )
        if not auto:
            _take(chosen, locks, option)
    except devices.DeviceError as error:
        locks.close()
        takes = "`auto`, `cpu`, `cpu:N`, or GPU indices or UUIDs, as `0,1`; `0+1` and `cpu:0+1` are groups"
        raise StartError(str(error), error.hint or f"`{option}` takes {takes}") from None
    except BaseException:
        locks.close()
        raise
    notices = [Note("warning", "devices", notice) for notice in gpus.notices]
    return Owned(chosen, locks, notices, gpu_counts if auto else frozenset())


def _free(gpus: devices.Gpus, locks: GpuLocks, option: str) -> devices.Gpus:
    """Return the GPUs that no other supervisor has, locked, and with them why each of the others cannot be had."""
    refused: dict[str, str] = {}
    for gpu in gpus.usable:
        try:
            locks.take(gpu)
        except (GpuTakenError, GpuLockError) as error:
            refused[gpu.name] = str(error)
    if refused and len(refused) == len(gpus.usable):
        raise StartError(
            f"no GPU is free: {'; '.join(refused.values())}", f"end one of them, or serve without: `{option} cpu:1`"
        )
    left = [gpu for gpu in gpus.usable if gpu.name not in refused]
    return devices.Gpus(left, [*gpus.notices, *(f"left out: {why}" for why in refused.values())], gpus.hidden)


def _take(chosen: list[Device], locks: GpuLocks, option: str) -> None:
    """Lock the GPUs that were named; raise `StartError` where one cannot be had."""
    for gpu in (gpu for device in chosen if device.kind == "cuda" for gpu in device.gpus):
        try:
            locks.take(gpu)
        except (GpuTakenError, GpuLockError) as error:
            what = "end that one" if isinstance(error, GpuTakenError) else "remove what is there"
            raise StartError(str(error), f"choose other devices with `{option}`, or {what}") from None


def without_unusable(
    owned: list[Device], environment: Mapping[str, str], gpu_counts: Collection[int] = ()
) -> tuple[list[Device], dict[str, str]]:
    """Return the devices without the GPUs that CUDA cannot use, and why it cannot use each of those.

    With `gpu_counts` the GPUs that are left make the groups that functions need; else a group with such a GPU is left
    out. Raises `StartError` where no GPU is left of some.
    """
    broken = cuda_probe.unusable(owned, environment)
    if not broken:
        return owned, broken
    gpus = [device for device in owned if device.kind == "cuda"]
    if gpu_counts:
        sound = [gpu for device in gpus for gpu in device.gpus if gpu.name not in broken]
        left = devices.partition(sound, gpu_counts)
    else:
        left = [device for device in gpus if not any(gpu.name in broken for gpu in device.gpus)]
    if not left:
        told = "; ".join(f"{name}: {reason}" for name, reason in broken.items())
        raise StartError(
            f"no GPU can be used: {told}", "`nvidia-smi` may say more; some faults need a reset of the GPU"
        )
    return [*left, *(device for device in owned if device.kind != "cuda")], broken


def open_http(http: str) -> HttpPort | None:
    """Return the port that a setting means for probes and metrics, None for none; raise `StartError`."""
    try:
        return http_front.open_port(parse_port(http)) if http else None
    except ListenError as error:
        raise StartError(str(error), error.hint) from None


class Listener(NamedTuple):
    """A socket that listens, where it does, and what tells others that the server is ready."""

    sock: socket.socket
    address: Address
    sidecar: Path
    file: OwnFile | None
    """The socket as a file, which a TCP one is not."""

    def close(self) -> None:
        """Listen no more and remove the socket's file; raise `OSError` where that is not possible."""
        self.sock.close()
        if self.file is not None:
            self.file.remove()


def listen(address: Address, *, guarded: bool) -> Listener:
    """Return a listening socket; raise `StartError` where none can be had."""
    try:
        sidecar = Path(address.sidecar).absolute()
        if isinstance(address, TcpAddress):
            sock, real = bind_tcp(address, guarded=guarded)
            _remove_stale(sidecar, of_anyone=False)  # every TCP server of this folder would write this file
            return Listener(sock, real, sidecar, None)
        path = Path(address.path).absolute()
        sock = bind_unix(path, socket.SOCK_STREAM)
        _remove_stale(sidecar, of_anyone=True)
        return Listener(sock, UnixAddress(str(path)), sidecar, OwnFile.at(path))
    except ListenError as error:
        raise StartError(str(error), error.hint) from None
    except OSError as error:
        raise _unlistenable(address, error) from None


class _Sidecar(msgspec.Struct):
    pid: int
    listen: str


def _remove_stale(sidecar: Path, *, of_anyone: bool) -> None:
    """Remove what a server left that was killed: while we start, it would call us ready."""
    try:
        found = msgspec.json.decode(sidecar.read_bytes(), type=_Sidecar)
    except (OSError, msgspec.DecodeError):  # none, or no server's
        return
    if of_anyone or found.pid == os.getpid() or not Path(f"/proc/{found.pid}").exists():
        with suppress(OSError):  # gone meanwhile, or not removable: then its replacement is told as not writable
            sidecar.unlink()


def _unlistenable(address: Address, error: OSError) -> StartError:
    place = Path(str(address))
    if not place.is_absolute() and not Path.exists(Path()):
        return StartError("the current folder is gone", "start in another one, or name the socket by an absolute path")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return StartError(f"cannot listen on `{address}`: there is no folder `{place.parent}`", "make it first")
    if isinstance(error, PermissionError):
        hint = "choose another path with `--socket`"
        return StartError(f"cannot listen on `{address}`: `{place.parent}` is not writable", hint)
    reason = (error.strerror or str(error)).lower()
    return StartError(f"cannot listen on `{address}`: {reason}", "choose another path with `--socket`")
