"""GPUs that CUDA cannot use are found before a worker takes jobs for them."""

import os
import sys
from pathlib import Path

import pytest

from gen_worker_supervisor.core.state import Device
from gen_worker_supervisor.devices.cuda_probe import unusable
from gen_worker_supervisor.start import StartError, without_unusable

pytestmark = pytest.mark.process


def gpu(index: int) -> Device:
    """A GPU that is not there, whatever this machine has."""
    return Device(f"cuda:{index}", "cuda", index=index, uuid=f"GPU-00000000-0000-0000-0000-00000000000{index}")


def test_each_gpu_that_cannot_be_used_is_told_with_its_reason_and_a_cpu_is_not_looked_at() -> None:
    found = unusable([gpu(0), gpu(1), Device("cpu:0", "cpu")], os.environ)
    assert found.keys() == {"cuda:0", "cuda:1"}
    assert all("libcuda.so.1" in reason or "failed with" in reason for reason in found.values())


def test_a_gpu_that_does_not_answer_is_given_up_in_time(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep(60)\n")
    (reason,) = unusable([gpu(0)], {**os.environ, "PYTHONPATH": str(tmp_path)}, limit_s=0.3).values()
    assert reason == "it did not answer within 0.3 s"


def test_a_process_that_dies_of_a_gpu_is_told(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos.abort()\n")
    (reason,) = unusable([gpu(0)], {**os.environ, "PYTHONPATH": str(tmp_path)}).values()
    assert reason == "looking at it ended a process with status -6"


def test_where_no_gpu_is_left_nothing_starts() -> None:
    with pytest.raises(StartError, match=r"^no GPU can be used: cuda:0: .*; cuda:1: "):
        without_unusable([gpu(0), gpu(1), Device("cpu:0", "cpu")], os.environ)


def test_a_host_without_gpus_is_not_looked_at() -> None:
    owned = [Device("cpu:0", "cpu")]
    assert without_unusable(owned, {"PATH": sys.executable}) == (owned, {})
