"""Errors after which a child's device context is of no use."""

import pytest

from gen_worker.models.broken_context import breaks_context
from gen_worker.wire.messages import LoadFailed
from gen_worker_supervisor.core.phases import JobState, Phase
from tests.pure.host import Host, function

ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later"


class AcceleratorError(RuntimeError):
    """As torch's."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.error_code = code


class OutOfMemoryError(RuntimeError):
    """As torch's: known by its name."""


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(ILLEGAL),
        AcceleratorError(ILLEGAL, 700),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("NCCL Error 1: unhandled cuda error"),
        RuntimeError("HIP error: an illegal memory access was encountered"),
    ],
)
def test_an_error_of_the_driver_breaks_the_context(error: Exception) -> None:
    assert breaks_context(error)


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        AcceleratorError("CUDA error: out of memory", 2),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        ValueError("CUDA error: what somebody wrote into a prompt"),
        RuntimeError("the prompt says CUDA error: an illegal memory access"),
        RuntimeError(b"CUDA error"),
        RuntimeError(),
        KeyError("x"),
    ],
)
def test_other_errors_do_not(error: Exception) -> None:
    assert not breaks_context(error)


def test_an_error_of_the_driver_counts_when_the_author_raises_another_from_it() -> None:
    def handler() -> None:
        try:
            raise RuntimeError(ILLEGAL)
        except RuntimeError:
            raise ValueError("could not paint") from None

    with pytest.raises(ValueError, match="paint") as caught:
        handler()
    assert breaks_context(caught.value)


def test_errors_that_go_round_in_a_circle_are_looked_at_and_left() -> None:
    one, other = ValueError("a"), ValueError("b")
    one.__cause__, other.__cause__ = other, one
    assert not breaks_context(one)


def test_a_setup_that_broke_the_context_costs_its_child_and_not_the_function() -> None:
    host = Host(function(instance="m:C"))
    job = host.submit()
    child = host.child()
    host.reports(child, LoadFailed("m:C", "RuntimeError: CUDA error", ["line 1"], broken=True))
    assert child.phase is Phase.DRAINING, "the next try is not in the same process"
    assert job.state is JobState.QUEUED
