"""Whether GPUs that are there can be used: a context and an allocation on each, in a short-lived process of its own.

The driver lists GPUs whose programs all fail: after a fault, or where a service that they need is not up. A worker that
takes jobs for them costs each job a failure. `python -m gen_worker_supervisor.devices.cuda_probe` looks at the first
GPU that it sees, exits with 0, or prints why it cannot be used and exits with 1.
"""

import ctypes
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from gen_worker_supervisor.core.state import Device
from gen_worker_supervisor.processes.environment import child_environment

KILLED_S = 2.0
LIMIT_S = 60.0  # a context on a host with many GPUs takes some seconds
ALLOCATED_BYTES = 1 << 20
_LIBRARY = "libcuda.so.1"


def unusable(devices: Sequence[Device], environment: Mapping[str, str], *, limit_s: float = LIMIT_S) -> dict[str, str]:
    """Return, of the GPUs of these devices, why each that cannot be used cannot, by its name; blocks meanwhile."""
    gpus = [gpu for device in devices if device.kind == "cuda" for gpu in device.gpus]
    looks = {gpu.name: _Look(child_environment(environment, gpu)) for gpu in gpus}
    deadline = time.monotonic() + limit_s
    try:
        found = {name: look.reason(deadline, limit_s) for name, look in looks.items()}
    except BaseException:  # told to end
        for look in looks.values():
            look.end()
        raise
    return {name: reason for name, reason in found.items() if reason}


class _Look:
    """One process that looks at one GPU."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-P", "-m", __name__]  # -P: the current folder may hold a `ctypes.py`
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environment),
            text=True,
        )

    def reason(self, deadline: float, limit_s: float) -> str:
        """Return why the GPU cannot be used; an empty text where it can."""
        process = self._process
        assert process.stdout is not None
        with process.stdout:
            try:
                said, _ = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.end()
                return f"it did not answer within {limit_s:g} s"
        if process.returncode == 0:
            return ""
        return said.strip() or f"looking at it ended a process with status {process.returncode}"

    def end(self) -> None:
        """End the process; one that the kernel does not let go of is left to it."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILLED_S)


# --- in the process that looks ----------------------------------------------------------------------------------------


class CudaError(Exception):
    """A call of the driver's failed."""


def allocate(cuda: Any) -> None:
    """Make a context on the first GPU, and allocate and free a little of its memory; raise `CudaError`."""
    device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    _call(cuda, "cuInit", 0)
    _call(cuda, "cuDeviceGet", ctypes.byref(device), 0)
    _call(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    _call(cuda, "cuCtxSetCurrent", context)
    _call(cuda, "cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(ALLOCATED_BYTES))
    _call(cuda, "cuMemFree_v2", memory)


def _call(cuda: Any, name: str, *arguments: Any) -> None:
    status = getattr(cuda, name)(*arguments)
    if status == 0:
        return
    text = ctypes.c_char_p()
    told = cuda.cuGetErrorString(status, ctypes.byref(text)) == 0 and text.value
    raise CudaError(f"{name} failed with {status}" + (f": {told.decode(errors='replace')}" if told else ""))


def main() -> int:
    """Look at the first GPU."""
    try:
        allocate(ctypes.CDLL(_LIBRARY))
    except (OSError, AttributeError, CudaError) as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
