"""Recognise that a device, or the host, has run out of memory, without importing what says so."""

import errno
import re

_TEXTS = re.compile(
    r"\b(CUDA|HIP|XPU|MPS)\b.*\bout of memory|cudaErrorMemoryAllocation|CU(BLAS|DNN|SPARSE|SOLVER)_STATUS_ALLOC_FAILED",
    re.DOTALL,
)
_HOST_TEXTS = re.compile(r"DefaultCPUAllocator: (can't allocate|not enough) memory")
_CODE = 2  # cudaErrorMemoryAllocation; after any other code of CUDA's the process has to go
_ASKED = re.compile(r"[Tt]ried to allocate ([0-9]+(?:\.[0-9]+)?) ?(bytes|KiB|MiB|GiB)")
_UNITS = {"bytes": 0, "KiB": 10, "MiB": 20, "GiB": 30}


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether a device had no memory left."""
    names = {each.__name__ for each in type(error).__mro__}
    if names & {"OutOfMemoryError", "CUDAOutOfMemoryError"}:
        return True
    if "AcceleratorError" in names and (code := getattr(error, "error_code", None)) is not None:
        return bool(code == _CODE)
    return isinstance(error, RuntimeError) and _TEXTS.search(_text(error)) is not None


def is_host_out_of_memory(error: BaseException) -> bool:
    """Say whether the host had no memory left for what was asked for, and the process goes on."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):
        return _HOST_TEXTS.search(_text(error)) is not None
    return isinstance(error, MemoryError)


def asked_bytes(error: BaseException) -> int:
    """Return what the allocation that failed was to have, 0 where the error does not say."""
    found = _ASKED.search(_text(error))
    return int(float(found[1]) * (1 << _UNITS[found[2]])) if found else 0


def _text(error: BaseException) -> str:
    return next((each for each in error.args if isinstance(each, str)), "")  # `str()` may be the author's code
