"""Functions of the earlier API in real children: what they answer, what they are given, and what ends none of them."""

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
