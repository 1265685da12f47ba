"""Recognise an error after which a process can use its device no more, without importing what says so."""

import re

from gen_worker.models.out_of_memory import is_out_of_memory

_TEXTS = re.compile(
    r"\s*(?:CUDA (?:driver )?error|HIP error|Triton Error \[CUDA\]|NCCL [Ee]rror\b.*\bunhandled cuda error"
    r"|CU(?:BLAS|DNN|SPARSE|SOLVER)_STATUS_(?:NOT_INITIALIZED|INTERNAL_ERROR|EXECUTION_FAILED|MAPPING_ERROR)"
    r"|cu(?:BLAS|DNN|SPARSE|SOLVER) error\b)",
    re.DOTALL,
)
_HARMLESS = re.compile(r"no kernel image is available|invalid device ordinal")  # nothing ran, so nothing is broken
_DEPTH = 8  # of errors that other errors were raised from


def breaks_context(error: BaseException) -> bool:
    """Say whether an error, or one that it was raised from, has left the process's device context of no use."""
    seen: BaseException | None = error
    for _ in range(_DEPTH):
        if seen is None:
            return False
        if _breaks(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _breaks(error: BaseException) -> bool:
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    text = next((each for each in error.args if isinstance(each, str)), "")  # `str()` may be the author's code
    return _TEXTS.match(text) is not None and _HARMLESS.search(text) is None
