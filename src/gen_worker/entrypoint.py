"""How a worker starts: `python -m gen_worker.entrypoint`, as the first process of a container or as any other.

Everything that can be checked beforehand is, in this order: the settings, what the image serves, the cache, the
orchestrator's address, the worker's own token. Then the worker connects, while its children start. How far the start is
and why it ended stand on stderr, as lines that programs read and as lines that people do.
"""

import argparse
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import NamedTuple, NoReturn

import msgspec

from gen_worker.discovery.image import ImageError, Served, served_by_image
from gen_worker.environment import forget_secrets, secret_values
from gen_worker.preflight import CacheError, CacheLook, look_at_cache
from gen_worker.settings import Settings, SettingsError

OK, FAILED, CANCELED, TERMINATED = 0, 1, 130, 143
ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
HIDDEN = "[secret]"


class CannotWorkError(Exception):
    """A worker cannot start, or cannot go on; `hint` says what to do, `stack` where the author's code raised."""

    def __init__(self, message: str, hint: str = "", stack: Sequence[str] = (), *, code: int = FAILED) -> None:
        super().__init__(message)
        self.hint = hint
        self.stack = tuple(stack)
        self.code = code


class Wish(NamedTuple):
    """What a person or a container asks of a worker, beside the environment."""

    served: Callable[[Settings], Served]
    """Says what is to be served; raises `ImageError`."""

    settings: Settings | None = None
    """The settings, where they were read and their warnings said; else they are read now."""

    strict_gpus: bool = True
    """Whether no CPU stands for a GPU where the devices are not named."""

    devices_option: str = "GEN_WORKER_DEVICES"
    lines_for_programs: bool = True
    """Whether `worker.startup.phase` and `worker.fatal` are said."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve what this image carries until the worker is drained; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gen_worker.entrypoint",
        description="Serve the endpoints of this image as a worker of an orchestrator. Everything is set by variables.",
    )
    parser.parse_args(arguments)
    return start(Wish(_of_image))


def _of_image(settings: Settings) -> Served:
    return served_by_image(settings.endpoint_lock_path, settings.user_modules)


def start(wish: Wish) -> int:
    """Be a worker until it is drained; return 0 then, and 1 when it could not start or its orchestrator is lost.

    For a person (`lines_for_programs` is off) it is 2 when what they asked for is not to be had.
    """
    _end_on_signals(trains=os.environ.get("WORKER_MODE") == "trainer")
    told = Told(wish.lines_for_programs)
    try:
        code = _start(wish, told)
    except Exception as error:  # noqa: BLE001 - around the process's whole life
        told.fatal(error)
        return error.code if isinstance(error, CannotWorkError) else FAILED
    if code != OK:
        told.ended(code)
    return code


def _start(wish: Wish, told: "Told") -> int:
    from gen_worker import __version__

    told.phase("boot", "started", version=__version__, python=sys.version.split()[0])
    os.environ.setdefault(ALLOCATOR, "expandable_segments:True")  # torch reads it when it is imported
    environment = dict(os.environ)
    told.context = "settings"
    settings = wish.settings or Settings.load(env=environment)
    told.hide(secret_values(environment, settings))
    forget_secrets()
    for warning in () if wish.settings else settings.warnings:
        told.say("warning", warning)
    if settings.worker_mode == "trainer":
        return _train(wish, settings, environment, told)
    served = _manifest(wish, settings, told)
    _check_cache(settings, told)
    _check_orchestrator(settings, told)
    if isinstance(served, ImageError):
        told.context = "manifest"
        raise served
    told.context = "run"
    return _work(wish, served, settings, environment)


def _train(wish: Wish, settings: Settings, environment: Mapping[str, str], told: "Told") -> int:
    """Be a worker in trainer mode: train what the job spec says; return the exit code."""
    from gen_worker.trainer.runtime import spec_of, supervised
    from gen_worker.trainer.spec import SpecError
    from gen_worker_supervisor.start import StartError

    if not wish.lines_for_programs:
        hint = "unset `WORKER_MODE`; `gen-worker train JOB.json` trains"
        raise CannotWorkError("a worker of an orchestrator trains nothing: `WORKER_MODE` is `trainer`", hint)
    told.context = "training"
    _end_on_signals(trains=True)  # whatever says so, a file of settings too
    try:
        spec = spec_of(settings)
        told.phase("trainer_mode_selected", "ok", trainer=spec.trainer, request_id=spec.request_id)
        return supervised(spec, settings, environment).code
    except (SpecError, StartError) as error:
        raise CannotWorkError(str(error), error.hint) from error


def _manifest(wish: Wish, settings: Settings, told: "Told") -> Served | ImageError:
    """Return what is to be served, or why nothing is: what else is wrong is told first."""
    told.context = "manifest"
    try:
        served = wish.served(settings)
    except ImageError as error:
        told.phase("manifest_loaded", "failed", error=str(error))
        return error
    told.phase(
        "manifest_loaded",
        "ok",
        path="" if served.manifest is None else str(served.manifest),
        modules=list(served.modules),
        functions=len(served.functions),
    )
    return served


def _check_cache(settings: Settings, told: "Told") -> None:
    told.context = "cache_preflight"
    told.phase("cache_preflight_started", "started", path=str(settings.cache_dir))
    try:
        look = look_at_cache(settings.cache_dir)
    except CacheError as error:
        told.phase("cache_preflight_failed", "failed", path=str(settings.cache_dir), error=str(error))
        raise
    told.phase("cache_preflight_ok", "ok" if look.writable else "read_only", **msgspec.structs.asdict(look))
    for warning in _cache_warnings(look):
        told.say("warning", warning)


def _cache_warnings(look: CacheLook) -> list[str]:
    found = []
    if not look.writable:
        found.append(f"the cache may only be read: `{look.path}`; models that are not in it cannot be had")
    if look.in_memory:
        found.append(f"the cache is kept in memory ({look.filesystem}): `{look.path}`; models there take the host's")
    return found


def _check_orchestrator(settings: Settings, told: "Told") -> None:
    told.context = "orchestrator"
    if not settings.orchestrators:
        text = "no orchestrator: neither `ORCHESTRATOR_PUBLIC_ADDR` nor `SCHEDULER_ADDR` is set"
        raise CannotWorkError(text, "set `ORCHESTRATOR_PUBLIC_ADDR`, as `orchestrator.example:443`")
    if settings.jwks_url:
        told.context = "token"
        _check_token(settings)


def _check_token(settings: Settings) -> None:
    from gen_worker.auth import TokenError, check_own_token

    try:
        check_own_token(
            settings.worker_jwt, settings.jwks_url, settings.jwt_issuer, settings.jwt_audience, settings.ca_bundle
        )
    except TokenError as error:
        raise CannotWorkError(str(error), error.hint) from error


class Identity(NamedTuple):
    """Who a worker is for its orchestrator."""

    worker_id: str
    release_id: str


def identity(settings: Settings) -> Identity:
    """Return who this worker is: by its settings, else by its token, which is read without being checked."""
    from gen_worker.auth import claims

    told = claims(settings.worker_jwt) if settings.worker_jwt else {}
    worker_id = settings.worker_id or _text(told.get("sub")) or f"py-worker-{_whereabouts()}"
    return Identity(worker_id, _text(told.get("release_id")))


def _whereabouts() -> str:
    """Return what tells this process from other workers: its pid, but every container's first process has the same."""
    return str(os.getpid()) if os.getpid() != 1 else socket.gethostname()


def _text(claim: object) -> str:
    return claim if isinstance(claim, str) else ""


def _work(wish: Wish, served: Served, settings: Settings, environment: Mapping[str, str]) -> int:
    from gen_worker.fetch.config import FetchConfig
    from gen_worker_supervisor.link.redialing import LinkFatalError
    from gen_worker_supervisor.start import StartError
    from gen_worker_supervisor.worker import WorkOptions, work

    who = identity(settings)
    options = WorkOptions(
        module=",".join(served.modules),
        paths=served.paths,
        declared=served.functions,
        worker_id=who.worker_id,
        release_id=who.release_id,
        devices=settings.devices or "auto",
        devices_option=wish.devices_option,
        strict_gpus=wish.strict_gpus,
        fetching=msgspec.msgpack.encode(FetchConfig.of(settings, env=environment)),
    )
    try:
        return work(options, settings, environment)
    except StartError as error:
        code = FAILED if wish.lines_for_programs else error.code  # a person has asked for what is not to be had
        raise CannotWorkError(str(error), error.hint, error.stack, code=code) from error
    except LinkFatalError as error:
        raise CannotWorkError(str(error), error.hint) from error


# --- signals ----------------------------------------------------------------------------------------------------------


def _end_on_signals(*, trains: bool) -> None:
    """End in order at a signal until the worker takes them over: nothing is there yet to be drained.

    A training that has not begun is not complete, which 0 would say. The first process of a container would not notice
    SIGTERM at all.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` has SIGHUP
            signal.signal(number, _end_training if trains else _end)


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(OK)


def _end_training(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED if number == signal.SIGTERM else CANCELED)


# --- what is said -----------------------------------------------------------------------------------------------------


class Told:
    """Says on stderr how far the start is and why it ended; secrets are left out."""

    def __init__(self, lines_for_programs: bool = True) -> None:
        self.context = "boot"
        self._documents = lines_for_programs
        self._secrets: tuple[str, ...] = ()

    def hide(self, secrets: tuple[str, ...]) -> None:
        """Leave these texts out from now on; the longest come first."""
        self._secrets = secrets

    def phase(self, phase: str, status: str, **more: object) -> None:
        """Write a line `worker.startup.phase {json}`."""
        process = {"pid": os.getpid(), "uid": os.getuid(), "gid": os.getgid(), "cwd": _folder()}
        self._document("worker.startup.phase", {"phase": phase, "status": status, **process, **more})

    def fatal(self, error: Exception) -> None:
        """Write `worker.fatal {json}`, and for a person what happened and what to do.

        A stack is only there of what nobody meant, and of the author's code.
        """
        if not isinstance(error, CannotWorkError | ImageError | CacheError | SettingsError):
            self._fatal(type(error).__name__, str(error), "".join(traceback.format_exception(error)), FAILED)
            self.say("error", f"the worker failed: {type(error).__name__}: {error}")
            return
        stack = error.stack if isinstance(error, CannotWorkError) else ()
        self._fatal(type(error.__cause__ or error).__name__, str(error), "\n".join(stack), FAILED)
        for line in stack:
            self._write(self._hidden(line))
        self.say("error", str(error))
        if error.hint:
            self.say("hint", error.hint)

    def ended(self, code: int) -> None:
        """Write `worker.fatal {json}` for a worker whose own log has said why it ends."""
        self._fatal("", f"the worker ended with exit code {code}: the lines above say why", "", code)

    def _fatal(self, name: str, message: str, stack: str, code: int) -> None:
        document = {
            "phase_context": self.context,
            "exception_class": name,
            "exception_message": message,
            "traceback": stack,
            "exit_code": code,
        }
        self._document("worker.fatal", document)

    def say(self, what: str, text: str) -> None:
        """Write a line for a person."""
        self._write(self._hidden(f"{what}: {text}"))

    def _document(self, name: str, document: Mapping[str, object]) -> None:
        if self._documents:
            shown = {key: self._hidden(value) if isinstance(value, str) else value for key, value in document.items()}
            self._write(f"{name} {msgspec.json.encode(shown).decode()}")

    def _hidden(self, text: str) -> str:
        """Return a text without secrets, as UTF-8 can carry it; before it is encoded, as that may change them."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text.encode("utf-8", "backslashreplace").decode()

    def _write(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it is gone
        return ""


if __name__ == "__main__":
    sys.exit(main())
