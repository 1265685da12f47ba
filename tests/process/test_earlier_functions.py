"""Functions of the earlier API in real children: what they answer, what they are given, and what ends none of them."""

import json
from pathlib import Path

import pytest

from gen_worker.testing import LoopbackHub
from tests.served import serving, until

pytestmark = pytest.mark.process


def test_earlier_functions_are_served_as_endpoints_are(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        hub.add_snapshot("acme/notes", {"note.txt": b"buy milk"}, tag="latest")
        with serving(tmp_path, module="earlier_notes", variables=hub.variables()) as server, server.connect() as peer:
            assert "`lacks_a_type` has no return annotation" in server.log()

            kept = server.ask("keep", "r1", text="x")["events"][-1]["value"]
            assert (kept["text"], kept["file"]["ref"]) == ("r1", "runs/r1/outputs/note.txt")
            assert Path(kept["file"]["local_path"]).read_bytes() == b"x"
            twice = server.ask("keep_twice")["error"]
            assert (twice["kind"], "already exists" in twice["message"]) == ("user_exception", True)

            items = server.ask("letters", text="ab")["events"]
            assert [each["value"].get("text") for each in items if each["event"] == "yield"] == ["a", "b"]
            assert server.ask("later", text="y")["events"][-1]["value"]["text"] == "y"

            read = server.ask("read", model="acme/notes")["events"][-1]["value"]
            assert (read["text"], read["pid"]) == ("buy milk", kept["pid"])
            assert server.ask("read", model="acme/none")["error"]["kind"] == "model_resolution"
            assert server.ask("read")["error"]["kind"] == "invalid"
            assert "realtime" in server.ask("echo")["error"]["message"]

            peer.send("waits", "r2")
            until(lambda: "waiting" in server.log(), what="the handler")
            with server.connect() as other:
                other.cancel("r2")
                assert other.frame()["canceled"] is True
            assert peer.frame()["error"]["kind"] == "canceled"

            assert server.ask("dies")["error"]["kind"] == "child_died"
            assert server.ask("later", text="z")["events"][-1]["value"]["text"] == "z"


def test_a_model_is_given_as_what_its_parameter_asks_for(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("wash up")
    told = {"on-this-host": {"root": str(tmp_path), "files": {"note": "note"}, "metadata": {"sm": "89"}}}
    module = "earlier_injected"
    variables = {
        "WORKER_MODEL_ARTIFACTS_JSON": json.dumps(told),
        "WORKER_RUNTIME_LOADERS_JSON": json.dumps({f"{module}.Named": f"{module}:named"}),
        "MODEL_MANAGER_CLASS": f"{module}:Keeper",
    }
    with LoopbackHub() as hub:
        hub.add_snapshot("acme/notes", {"note.txt": b"buy milk"}, tag="latest")
        hub.add_snapshot("acme/other", {"note.txt": b"sleep"}, tag="v2")
        with serving(tmp_path, module=module, variables=variables | hub.variables()) as server:

            def value(function: str, request_id: str = "r", **payload: str) -> tuple[str, str, int]:
                answer = server.ask(function, request_id, **payload)
                assert "events" in answer, answer
                said = answer["events"][0]["value"]
                return said["by"], said["text"], said["times"]

            assert value("of_registered") == ("what is registered", "buy milk", 1)
            assert value("of_registered") == ("what is registered", "buy milk", 2)
            assert value("of_named", "r1", model="acme/notes") == ("what is named, for r1", "buy milk", 1)
            assert value("of_named", "r2", model="cozy:acme/other:v2") == ("what is named, for r2", "sleep", 1)
            assert value("of_named", "r3", model="acme/notes") == ("what is named, for r1", "buy milk", 2)
            assert value("of_managed", model="kept") == ("the manager", "kept", 1)
            assert value("of_managed", model="kept") == ("the manager", "kept", 2)
            assert value("of_pretrained") == ("itself", "buy milk", 1)
            assert value("of_both", model="acme/notes")[:2] == (
                "what is registered and what is named",
                "buy milkbuy milk",
            )
            assert value("of_files")[:2] == ("89", "wash up")

            unmanaged = server.ask("of_managed", model="acme/notes")["error"]
            assert (unmanaged["kind"], "nothing makes a" in unmanaged["message"]) == ("invalid", True)
            assert "register_runtime_loader" in server.ask("of_nobody")["error"]["message"]
