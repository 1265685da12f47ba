"""The endpoint, served with an engine that needs no GPU and no model."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gen_worker.client import JobError
from gen_worker.testing import LoopbackHub
from gen_worker.testing.engine import install_engine

pytestmark = pytest.mark.process
FOLDER = Path(__file__).parents[1]
SAID = {"messages": [{"content": "be brief", "role": "system"}, {"content": "one two three"}]}


@pytest.fixture
def variables(tmp_path: Path) -> Iterator[dict[str, str]]:
    place = install_engine(tmp_path / "bin", "--token-s", "0.05")
    with LoopbackHub() as hub:
        hub.add_repo("Qwen/Qwen3-0.6B", {"config.json": b"{}", "tokenizer.json": b"{}"})
        yield {**hub.variables(), "PATH": f"{place}:{os.environ['PATH']}"}


def test_replies_come_whole_and_in_pieces_and_the_engine_may_die(
    serve: Callable[..., Any], variables: dict[str, str]
) -> None:
    with serve(FOLDER, **variables) as server, server.client() as client:
        whole = client.submit("chat", SAID).result()
        assert whole == {"text": "one two three", "tokens": 3}
        pieces = [item["text"] for item in client.submit("stream", SAID, stream=True).items()]
        assert pieces == ["one", " two", " three"]
        assert client.submit("chat", {**SAID, "max_tokens": 1}).result()["text"] == "one"

        (engine,) = json.loads(server.ps())["gpus"][0]["engines"]
        broken = client.submit("stream", {"messages": [{"content": "word " * 100}]}, stream=True)
        items = broken.items()
        next(items)
        os.kill(engine["pid"], signal.SIGKILL)
        with pytest.raises(JobError) as failed:
            list(items)
        assert failed.value.retryable
        assert "`vllm` died: SIGKILL" in str(failed.value)
        assert client.submit("chat", SAID).result() == whole
