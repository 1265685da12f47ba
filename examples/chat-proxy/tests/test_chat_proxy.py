"""The client of the engine, without a server around it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_proxy.openai import OpenAi

from gen_worker import ValidationError
from gen_worker.runtimes.server import ServerProcess, free_port
from gen_worker.testing.engine import install_engine

pytestmark = pytest.mark.process


@pytest.fixture
def api(tmp_path: Path) -> Iterator[OpenAi]:
    program = install_engine(tmp_path) / "vllm"
    url = f"http://127.0.0.1:{free_port()}"
    command = [str(program), "serve", "model", "--port", url.rpartition(":")[2]]
    handle = ServerProcess(command, health_url=f"{url}/health").start()
    yield OpenAi(handle.base_url)
    handle.stop()


def test_what_the_engine_refuses_is_the_callers_mistake(api: OpenAi) -> None:
    with pytest.raises(ValidationError, match="refused the request with status 400"):
        asyncio.run(api.complete({"messages": []}))


def test_events_come_one_by_one(api: OpenAi) -> None:
    async def texts() -> list[str]:
        events = api.stream({"messages": [{"content": "a b"}]})
        return [event["choices"][0]["delta"].get("content", "") async for event in events]

    assert asyncio.run(texts()) == ["a", " b", ""]
