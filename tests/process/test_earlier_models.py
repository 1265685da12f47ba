"""Which models earlier functions get from an orchestrator of their generation, and which it wants here before a run."""

import json
import signal
from pathlib import Path

import pytest

from gen_worker.testing import LoopbackHub
from gen_worker.testing.faults import Stall
from gen_worker.wire.earlier import (
    DeploymentModelConfig,
    InterruptTaskCommand,
    LoadModelCommand,
    LoadModelResult,
    RealtimeCloseCommand,
    RealtimeFrame,
    RealtimeOpenCommand,
    TaskExecutionResult,
    UnloadModelCommand,
    UnloadModelResult,
    WorkerRegistration,
)
from tests.process.test_earlier_wire import hear_close, unpacked, working
from tests.scripted.earlier import Stream
from tests.served import until

pytestmark = pytest.mark.process


def test_a_deployments_table_says_which_models_functions_get(grpc_awake: None, tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        hub.add_snapshot("acme/notes", {"note.txt": b"buy milk"}, tag="latest")
        hub.add_snapshot("acme/other", {"note.txt": b"sleep"}, tag="v2")
        project = '[project]\nname = "library"\n[tool.cozy.models]\nlast = "cozy:acme/other:v2"\n'
        (tmp_path / "pyproject.toml").write_text(project)
        with working(tmp_path, "earlier_library", GEN_WORKER_DEVICES="cpu:1", **hub.variables()) as (_, stream):
            stream.say(RealtimeOpenCommand(session_id="s1", function_name="reads-aloud", tenant_id="t1"))
            stream.say(RealtimeFrame(session_id="s1", data=b"what", is_text=True))
            heard = stream.hear(RealtimeFrame)
            assert (heard.is_text, json.loads(heard.data)) == (True, {"said": "t1: what? buy milk", "run": "s1"})
            over = stream.hear(RealtimeFrame)
            assert (over.is_text, over.data) == (False, b"over")
            stream.say(RealtimeCloseCommand(session_id="s1"))
            assert stream.hear(RealtimeCloseCommand).reason == "completed"

            stream.run("ours", {}, run_id="r1")
            assert unpacked(stream.result("r1")) == {"text": "buy milk", "model": "acme/notes"}
            stream.run("yours", {"model": "last"}, run_id="keyed", required_models=("last",))
            assert unpacked(stream.result("keyed")) == {"text": "sleep", "model": "cozy:acme/other:v2"}
            stream.run("yours", {"model": "cozy:acme/none"}, run_id="none")
            assert outcome(stream.result("none")) == ("fatal", False)
            assert "`acme/none:latest` is not on " in stream.result("none").error_message

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


def test_a_request_names_no_model_for_an_endpoint_that_is_none_of_the_deployments(
    grpc_awake: None, tmp_path: Path
) -> None:
    with LoopbackHub() as hub:
        for name in ("free", "second", "third"):
            hub.add_snapshot(f"acme/{name}", {"weights.txt": name.encode()}, tag="prod")
        with working(tmp_path, "hubbed", GEN_WORKER_DEVICES="cpu:1", **hub.variables()) as (_, stream):
            stream.run("free", {"_models": {"weights": "acme/third"}}, run_id="any")
            assert unpacked(stream.result("any"))["text"] == "third"
            stream.say(DeploymentModelConfig(supported_model_ids=("cozy:acme/second:prod",)))
            for run_id, named in (("other", "acme/third"), ("supported", "acme/second"), ("own", "acme/free")):
                stream.run("free", {"_models": {"weights": named}}, run_id=run_id)
            refused = stream.result("other")
            assert (refused.error_type, refused.retryable) == ("validation", False)
            told = "the model `cozy:acme/third:prod` for `weights` is not one of this deployment's"
            assert told in refused.error_message
            assert unpacked(stream.result("supported"))["text"] == "second"
            assert unpacked(stream.result("own"))["text"] == "free", "the one that its author has bound"


def on_disk(stream: Stream, model_id: str) -> bool:
    told = [each for each in stream.heard if isinstance(each, WorkerRegistration)]
    return model_id in told[-1].resources.disk_models


def outcome(result: TaskExecutionResult) -> tuple[str, bool]:
    return result.error_type, result.retryable


def test_models_that_a_run_requires_are_here_before_it_begins(grpc_awake: None, tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        for repo in ("one", "two", "late", "never"):
            hub.add_snapshot(f"acme/{repo}", {"note.txt": repo.encode() * 1000}, tag="latest")
        hub.add_civitai("12", {"lora.safetensors": b"w" * 1000}, version="34")
        hub.add_repo("acme/three", {"config.json": b"{}", "model.safetensors": b"x" * 4096})
        hub.fail("acme/late/note.txt", Stall(after=0, seconds=60))
        with working(tmp_path, GEN_WORKER_DEVICES="cpu:1", **hub.variables()) as (worker, stream):
            stream.run("greet_all", {"text": "a"}, run_id="r1", required_models=("acme/one", "cozy:acme/two"))
            assert unpacked(stream.result("r1"))["text"] == "hello a of None"
            for repo in ("one", "two"):
                until(lambda repo=repo: on_disk(stream, f"cozy:acme/{repo}:latest"))  # type: ignore[misc]
            stream.run("greet_all", {"text": "b"}, run_id="r2", required_models=("cozy:acme/one:latest",))
            assert stream.result("r2").success

            stream.run("greet_all", {"text": "c"}, run_id="lora", required_models=("civitai:12@34",))
            assert unpacked(stream.result("lora"))["text"] == "hello c of None"
            until(lambda: on_disk(stream, "civitai:12@34"))
            stream.say(UnloadModelCommand(model_id="civitai:12@34"))
            assert stream.hear(UnloadModelResult) == UnloadModelResult(model_id="civitai:12@34", success=True)

            stream.run("greet_all", {}, run_id="none", required_models=("cozy:acme/none",))
            gone = stream.result("none")
            assert not gone.success
            assert gone.error_type in ("fatal", "retryable")
            assert "requires `acme/none:latest`, which cannot be had: " in gone.error_message
            stream.run("greet_all", {}, run_id="odd", required_models=("not a model",))
            assert outcome(stream.result("odd")) == ("validation", False)
            assert "which is no model" in stream.result("odd").error_message

            late = ("cozy:acme/late",)
            stream.run("greet_all", {}, run_id="overdue", required_models=late, timeout_ms=300)
            assert stream.result("overdue").error_message == "deadline exceeded"
            assert outcome(stream.result("overdue")) == ("fatal", False)
            stream.run("greet_all", {}, run_id="interrupted", required_models=late)
            stream.say(LoadModelCommand(model_id="cozy:acme/late"))
            unbound = LoadModelResult(
                model_id="cozy:acme/late",
                success=False,
                error_message="load_failed: no function here has `acme/late:latest` loaded",
            )
            assert stream.hear(LoadModelResult) == unbound, "its files come all the same"
            stream.say(InterruptTaskCommand(run_id="interrupted"))
            assert outcome(stream.result("interrupted")) == ("canceled", False)
            stream.say(RealtimeOpenCommand(session_id="gone", function_name="echo_back", required_models=late))
            stream.say(RealtimeCloseCommand(session_id="gone", reason="tired"))
            assert hear_close(stream, "gone") == "tired"

            stream.say(RealtimeOpenCommand(session_id="flood", function_name="echo_back", required_models=late))
            stream.say(*(RealtimeFrame(session_id="flood", data=b"x") for _ in range(65)))
            assert hear_close(stream, "flood") == "error:HandlerTooSlow"

            keys = {"third": "hf:acme/three", "never": "cozy:acme/never"}
            stream.say(DeploymentModelConfig(model_id_by_key=keys, supported_model_ids=("hf:acme/three",)))
            stream.say(RealtimeOpenCommand(session_id="s", function_name="echo_back", required_models=("third",)))
            stream.say(RealtimeFrame(session_id="s", data=b"said before it was open"))
            assert stream.hear(RealtimeFrame).data == b"said before it was open"
            until(lambda: on_disk(stream, "hf:acme/three"))
            stream.say(RealtimeCloseCommand(session_id="s"))
            assert hear_close(stream, "s") == "completed"
            stream.say(RealtimeOpenCommand(session_id="no", function_name="echo_back", required_models=("never",)))
            assert hear_close(stream, "no") == "unknown_model"
            stream.run("greet_all", {}, run_id="never", required_models=("never",))
            refused = stream.result("never")
            assert outcome(refused) == ("validation", False)
            assert "requires `cozy:acme/never`, which is not one of this deployment's models" in refused.error_message
            assert not any("acme/never" in request.target for request in hub.requests)

            stream.say(DeploymentModelConfig())
            stream.run("greet_all", {}, run_id="waits", required_models=late)
            stream.say(RealtimeOpenCommand(session_id="waits", function_name="echo_back", required_models=late))
            worker.process.send_signal(signal.SIGTERM)
            assert hear_close(stream, "waits") == "worker_busy"
            assert outcome(stream.result("waits")) == ("retryable", True)
            assert worker.process.wait(20) == 0
