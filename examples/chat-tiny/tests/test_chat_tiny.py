"""The endpoint, served by the installed command, with weights from a hub on the loopback."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gen_worker.client import JobError
from gen_worker.testing import LoopbackHub

pytestmark = [pytest.mark.process, pytest.mark.needs("torch", "transformers")]
FOLDER = Path(__file__).parents[1]
MAKE = """
import sys
from pathlib import Path
from gen_worker.testing import make_tiny
make_tiny("text", Path(sys.argv[1]))
"""


@pytest.fixture
def chat_hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    subprocess.run([sys.executable, "-c", MAKE, str(tmp_path / "chat")], check=True, timeout=150, capture_output=True)
    with LoopbackHub() as hub:
        hub.add_repo("acme/tiny-chat", tmp_path / "chat")
        yield hub


def test_text_comes_piece_by_piece_and_ends_when_it_is_not_wanted(
    serve: Callable[..., Any], chat_hub: LoopbackHub
) -> None:
    hello = {"messages": [{"content": "hello"}], "max_tokens": 60}
    with serve(FOLDER, **chat_hub.variables()) as server, server.client() as client:
        pieces = [item["text"] for item in client.submit("chat", hello, stream=True).items()]
        assert len(pieces) > 1
        text = "".join(pieces)
        assert len(text) == 60
        assert set(text) <= set("abcdefghijklmnopqrstuvwxyz ")
        collected = server.invoke("chat", f"messages:={json.dumps(hello['messages'])}", "max_tokens=60")
        assert "".join(json.loads(line)["text"] for line in collected.stdout.splitlines()[:-1]) == text

        endless = client.submit("chat", {**hello, "max_tokens": 1024}, stream=True)
        said = iter(endless.items())
        next(said)
        endless.cancel()
        with pytest.raises(JobError, match="cancel"):
            for _ in said:
                pass
        assert [item["text"] for item in client.submit("chat", hello, stream=True).items()] == pieces

        refused = server.invoke("chat", f'messages:=[{{"content":"{"a" * 2000}"}}]')
        assert refused.returncode == 2
        assert "the conversation is too long" in refused.stderr
