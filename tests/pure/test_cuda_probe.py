"""Whether a GPU can be used: what the driver's calls are, and what a failing one says."""

import ctypes
from typing import Any

import pytest

from gen_worker_supervisor.devices.cuda_probe import ALLOCATED_BYTES, CudaError, allocate


class Driver:
    """The driver's library, of which one call fails."""

    def __init__(self, fails: str = "", status: int = 802, text: bytes | None = b"system not yet initialized") -> None:
        self._fails, self._status, self._text = fails, status, text
        self.calls: list[str] = []
        self.allocated = 0

    def __getattr__(self, name: str) -> Any:
        return lambda *given: self._call(name, *given)

    def _call(self, name: str, *given: Any) -> int:
        self.calls.append(name)
        if name == self._fails:
            return self._status
        if name == "cuGetErrorString":
            if self._text is None:
                return 1
            given[1]._obj.value = self._text
        if name == "cuMemAlloc_v2":
            given[0]._obj.value = 0x7F00_0000_0000
            self.allocated += given[1].value
        if name == "cuMemFree_v2":
            assert isinstance(given[0], ctypes.c_uint64)
            assert given[0].value == 0x7F00_0000_0000
            self.allocated -= ALLOCATED_BYTES
        return 0


def test_a_gpu_can_be_used_when_memory_of_it_can_be_had_and_given_back() -> None:
    driver = Driver()
    allocate(driver)
    assert driver.calls[0] == "cuInit"
    assert driver.calls[-2:] == ["cuMemAlloc_v2", "cuMemFree_v2"]
    assert driver.allocated == 0


@pytest.mark.parametrize(
    "call", ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuMemAlloc_v2"]
)
def test_the_call_that_fails_is_told_with_what_the_driver_says_of_it(call: str) -> None:
    driver = Driver(call)
    with pytest.raises(CudaError, match=rf"^{call} failed with 802: system not yet initialized$"):
        allocate(driver)
    assert driver.calls[-2:] == [call, "cuGetErrorString"]


def test_a_status_that_the_driver_has_no_words_for_is_told_by_its_number() -> None:
    with pytest.raises(CudaError, match=r"^cuInit failed with 999$"):
        allocate(Driver("cuInit", 999, None))
