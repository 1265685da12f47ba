"""What an orchestrator is told of GPUs: what there is, what is lost, and how its jobs there end."""

from pathlib import Path

import pytest

from tests.nvml.simulated import GIB, GPU_IS_LOST, gpus
from tests.scripted.entrypoint import driven, until_state, working
from tests.scripted.orchestrator import RETRYABLE, ScriptedOrchestrator

pytestmark = [
    pytest.mark.process,
    pytest.mark.needs("grpc_tools"),
    pytest.mark.usefixtures("grpc_awake"),
]


def test_a_lost_gpu_gives_its_job_back_and_is_no_part_of_the_next_hello(tmp_path: Path) -> None:
    with gpus(tmp_path, 2) as there, driven(tmp_path / "w", there.variables | {"GEN_WORKER_DEVICES": "auto"}) as made:
        hello = made.connection.hello.resources
        assert (hello.gpu_count, hello.vram_total_bytes, hello.gpu_sm) == (2, 48 * GIB, "89")
        first = {"accelerator": "cuda", "gpu_index": 0, "gpu_count": 1}
        job = made.connection.run("on-device", {"gate": "never"}, compute=first)
        made.worker.until_running(job.request_id)
        there.reports(0, value=79)
        there.gpus[0].error = GPU_IS_LOST
        result = job.result()
        told = "its GPU is lost: XID 79: the GPU has fallen off the bus"
        assert (result.status, result.safe_message) == (RETRYABLE, told)
        late = made.connection.run("on-device", {}, compute=first).result()
        told = "function unavailable: cuda:0 is retired: XID 79: the GPU has fallen off the bus"
        assert (late.status, late.safe_message) == (RETRYABLE, told)
        until_state(made.connection, lambda state: state.free_vram_bytes <= 24 * GIB, "less free memory")
        again = made.redial()
        hello = again.connection.hello.resources
        assert (hello.gpu_count, hello.vram_total_bytes) == (1, 24 * GIB)
        assert again.ask("on-device").output()


def test_a_worker_whose_gpu_another_one_has_does_not_start(tmp_path: Path) -> None:
    with gpus(tmp_path, 1) as there, driven(tmp_path / "w", there.variables | {"GEN_WORKER_DEVICES": "0"}):
        variables = there.variables | {"GEN_WORKER_DEVICES": "auto"}
        with ScriptedOrchestrator() as other, working(tmp_path / "second", other.address, variables) as second:
            assert second.wait() == 1
            assert f"error: no GPU is free: cuda:0 ({there.uuid(0)}) is in use by pid" in second.log()


def test_a_job_for_a_member_of_a_group_runs_on_the_group_where_that_many_gpus_are_asked_for(tmp_path: Path) -> None:
    with driven(tmp_path / "w", {"GEN_WORKER_DEVICES": "cpu:0+1"}) as made:
        for index in (0, 1):
            chosen = {"accelerator": "cuda", "gpu_index": index, "gpu_count": 2}
            assert made.connection.run("on-device", {}, compute=chosen).output()
        late = made.connection.run("on-device", {}, compute=chosen | {"gpu_count": 3}).result()
        told = "GPU 1 of this worker is `cpu:0+1`, no group of 3 GPUs"
        assert (late.status, late.safe_message) == (RETRYABLE, told)
        none = made.connection.run("on-device", {}, compute=chosen | {"gpu_index": 2}).result()
        assert (none.status, none.safe_message) == (RETRYABLE, "no GPU 2 on this worker, which has 2")
