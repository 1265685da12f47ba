"""What an earlier function is handed besides its payload: the request's context in the words of the earlier API."""

import json
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gen_worker.api.context import CancelFlag, Emitter, RequestContext
from gen_worker.api.errors import OutputTooLargeError
from gen_worker.extras import installed_by
from gen_worker.outputs import ExistsError, safe_ref
from gen_worker.wire.messages import EarlierRun

if TYPE_CHECKING:
    import torch

    from gen_worker.api.types import Asset

__all__ = ["ActionContext"]

DEVICE_VARIABLES = ("WORKER_TORCH_DEVICE", "WORKER_DEVICE")
_LOOK_S = 0.02  # how late a wait for the end notices it
_LEVELS = {"warn": "warning", "critical": "error", "fatal": "error"}
_KNOWN_LEVELS = ("debug", "info", "warning", "error")


class ActionContext:
    """One run, as an earlier function sees it.

    A worker makes it; in a test of an author's, `ActionContext("run-1", emitter=seen.append, local_output_dir=folder)`
    does.
    """

    __slots__ = ("_cancel", "_done", "_emitter", "_facts", "_request")

    def __init__(
        self,
        run_id: str,
        emitter: Emitter | None = None,
        tenant_id: str | None = None,
        user_id: str | None = None,
        timeout_ms: int | None = None,
        *,
        local_output_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        cancel = CancelFlag()
        request = RequestContext(
            request_id=run_id,
            cancel=cancel,
            timeout_ms=timeout_ms,
            owner=tenant_id or "",
            local_output_dir=local_output_dir,
        )
        self._take(request, EarlierRun(tenant_id or "", user_id or "", timeout_ms or 0), emitter)

    @classmethod
    def of(cls, request: RequestContext) -> "ActionContext":
        """Return the context of a request that runs here."""
        context = cls.__new__(cls)
        context._take(request, request._earlier or EarlierRun(), None)
        return context

    def _take(self, request: RequestContext, facts: EarlierRun, emitter: Emitter | None) -> None:
        if request._cancel is None:
            request._cancel = CancelFlag()
        self._request = request
        self._facts = facts
        self._emitter = emitter
        self._cancel = request._cancel
        self._done: _Done | None = None

    # --- the run ------------------------------------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        """The name of this run."""
        return self._request.request_id

    @property
    def tenant_id(self) -> str | None:
        """Whom the run is for, where the caller said so."""
        return self._facts.tenant_id or None

    @property
    def user_id(self) -> str | None:
        """Who asked for it, where the caller said so."""
        return self._facts.user_id or None

    @property
    def timeout_ms(self) -> int | None:
        """How long the run may take in all, where the caller said so."""
        return self._facts.timeout_ms or None

    @property
    def deadline(self) -> float | None:
        """When the run must have ended, as unix time; None when it may take for ever."""
        return self._request.deadline

    def time_remaining_s(self) -> float | None:
        """Return the seconds to the deadline, at least 0; None without a deadline."""
        return self._request.time_remaining()

    @property
    def device(self) -> "torch.device":
        """The device that `WORKER_TORCH_DEVICE` or `WORKER_DEVICE` names, else the one that this run has.

        Raises RuntimeError where torch is not installed.
        """
        named = next((value for name in DEVICE_VARIABLES if (value := os.environ.get(name, "").strip())), "")
        if not named:
            return self._request.device
        try:
            import torch
        except ImportError:
            raise RuntimeError(f"torch is not installed: {installed_by('torch')}") from None
        return torch.device(named)

    # --- its end ------------------------------------------------------------------------------------------------------

    def is_canceled(self) -> bool:
        """Tell whether the run was asked to end."""
        return self._cancel.requested

    def cancel(self) -> None:
        """Ask the run to end."""
        self._cancel.set()

    def done(self) -> threading.Event:
        """Return an event that is set once the run was asked to end."""
        if self._done is None:
            self._done = _Done(self._cancel)
        return self._done

    # --- news ---------------------------------------------------------------------------------------------------------

    def emit(self, type: str, payload: dict[str, Any] | None = None) -> None:
        """Tell the caller something, as an event of this type."""
        value = dict(payload or {})
        if self._emitter is not None:
            told = {"run_id": self.run_id, "type": type, "payload": value, "timestamp": time.time()}
            self._emitter(told)
        elif type == "job.progress" and isinstance(value.get("progress"), int | float):
            self._request.progress(value["progress"], value.get("stage"))
        elif type == "job.log" and "message" in value:
            self._request.log(value["message"], _level(value.get("level")))
        else:
            shown = json.dumps(value, ensure_ascii=False, default=str)
            told = {"message": f"{type} {shown}" if value else type, "level": "info"}
            self._request._emit("request.log", {**told, "type": type, "payload": value})

    def progress(self, progress: float, stage: str | None = None) -> None:
        """Tell the caller how far the run is, from 0 to 1, and what it is doing: the event `job.progress`."""
        self.emit("job.progress", {"progress": float(progress)} | ({} if stage is None else {"stage": stage}))

    def log(self, message: str, level: str = "info") -> None:
        """Tell the caller something: the event `job.log`."""
        self.emit("job.log", {"message": str(message), "level": level})

    # --- files --------------------------------------------------------------------------------------------------------

    def save_bytes(self, ref: str, data: bytes | bytearray) -> "Asset":
        """Keep bytes under a name, in the place of what was kept there, and return the asset that stands for them.

        The name lies below `runs/<run_id>/outputs/`, which may be left out. Raises ValueError for any other, and for
        more bytes than `WORKER_MAX_OUTPUT_FILE_BYTES`; `AuthError` where the platform refuses it.
        """
        return self._kept(ref, lambda name: self._request.save_bytes(name, data))

    def save_file(self, ref: str, path: str | os.PathLike[str]) -> "Asset":
        """Keep a copy of a file, as `save_bytes` does."""
        return self._kept(ref, lambda name: self._request.save_file(name, path))

    def save_bytes_create(self, ref: str, data: bytes | bytearray) -> "Asset":
        """Keep bytes, as `save_bytes` does; raise RuntimeError where something was kept under the name."""
        return self._kept(ref, lambda name: self._request._save_bytes(name, data, create=True))

    def save_file_create(self, ref: str, path: str | os.PathLike[str]) -> "Asset":
        """Keep a copy of a file, as `save_bytes` does; raise RuntimeError where something was kept under the name."""
        return self._kept(ref, lambda name: self._request._save_file(name, path, create=True))

    save_bytes_overwrite = save_bytes
    save_file_overwrite = save_file

    def _kept(self, ref: str, save: "Callable[[str], Asset]") -> "Asset":
        name = _output_ref(ref, self.run_id)
        try:
            return save(name)
        except OutputTooLargeError as error:
            raise ValueError(str(error)) from error
        except ExistsError:
            raise RuntimeError(f"`{name}` already exists") from None


class _Done(threading.Event):
    """The flag of a run as an event.

    Setting a flag must be possible in a signal handler, where an event's lock may be held: waiting looks at it instead.
    """

    def __init__(self, flag: CancelFlag) -> None:
        super().__init__()
        self._flag_of_run = flag

    def is_set(self) -> bool:
        return self._flag_of_run.requested

    def set(self) -> None:
        self._flag_of_run.set()

    def clear(self) -> None:
        raise RuntimeError("a run that was asked to end stays so")

    def wait(self, timeout: float | None = None) -> bool:
        ends_at = None if timeout is None else time.monotonic() + timeout
        while not self._flag_of_run.requested:
            left = _LOOK_S if ends_at is None else min(_LOOK_S, ends_at - time.monotonic())
            if left <= 0:
                return False
            time.sleep(left)
        return True


def _level(level: object) -> Any:
    named = str(level or "info").lower()
    known = _LEVELS.get(named, named)
    return known if known in _KNOWN_LEVELS else "info"


def _output_ref(ref: str, run_id: str) -> str:
    """Return the whole name of an output: short ones lie in the run's own folder."""
    name = safe_ref(ref)
    own = f"runs/{run_id}/outputs/"
    if name.startswith(own):
        return name
    if name.startswith("runs/"):
        raise ValueError(f"an output of this run lies below `{own}`, not at `{name}`")
    return own + name
