"""Which models earlier functions get from an orchestrator of their generation: those of the deployment's table."""

from pathlib import Path

import pytest

from gen_worker.testing import LoopbackHub
from gen_worker.wire.earlier import DeploymentModelConfig
from tests.process.test_earlier_wire import unpacked, working

pytestmark = pytest.mark.process


def test_a_deployments_table_says_which_models_functions_get(grpc_awake: None, tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        hub.add_snapshot("acme/notes", {"note.txt": b"buy milk"}, tag="latest")
        hub.add_snapshot("acme/other", {"note.txt": b"sleep"}, tag="v2")
        with working(tmp_path, "earlier_library", GEN_WORKER_DEVICES="cpu:1", **hub.variables()) as (_, stream):
            stream.run("ours", {}, run_id="r1")
            assert unpacked(stream.result("r1")) == {"text": "buy milk", "model": "acme/notes"}

            other = "cozy:acme/other:v2"
            keys = {"acme/notes": other, "bedtime": other} | {f"key-{each}": "hf:a/b" * 20 for each in range(500)}
            stream.say(DeploymentModelConfig(model_id_by_key=keys, supported_model_ids=(other,)))
            stream.run("ours", {"model": "x" * 40_000}, run_id="r2")
            assert unpacked(stream.result("r2")) == {"text": "sleep", "model": other}
            stream.run("yours", {"model": "bedtime"}, run_id="r3")
            assert unpacked(stream.result("r3")) == {"text": "sleep", "model": other}
            stream.run("yours", {"model": "cozy:acme/notes:latest"}, run_id="r4")
            refused = stream.result("r4")
            assert (refused.error_type, refused.retryable) == ("validation", False)
            assert "is not one of this deployment's" in refused.error_message
