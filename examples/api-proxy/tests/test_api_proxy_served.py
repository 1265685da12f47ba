"""The endpoint, served by the installed command, against an Acme of the test's own."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_acme import FakeAcme

from gen_worker.client import JobError

pytestmark = pytest.mark.process
FOLDER = Path(__file__).parents[1]
KEY = "acme-secret-of-a-tenant"


@contextmanager
def acme(key: str = KEY, wait_for: int = 1) -> Iterator[str]:
    """A running Acme, as its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(10)

    service = run(FakeAcme(key, wait_for).serve())
    try:
        yield f"http://127.0.0.1:{service.sockets[0].getsockname()[1]}"
    finally:
        run(ended(service))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def ended(service: asyncio.Server) -> None:
    """Close the service and let the connections that it still has come to their ends."""
    service.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def test_fifty_questions_are_asked_at_once_from_one_child(serve: Callable[..., Any]) -> None:
    with (
        acme(wait_for=50) as address,  # it answers nobody before fifty have asked
        serve(FOLDER, ACME_API_KEY=KEY, ACME_API_URL=address) as server,
        server.client() as client,
    ):
        asked = [client.submit("ask", {"text": f"question {number}"}) for number in range(50)]
        answers = [job.result(20) for job in asked]
        (device,) = client.list().gpus
    assert [answer["text"] for answer in answers] == [f"question {number}? Certainly." for number in range(50)]
    assert max(answer["in_flight"] for answer in answers) == 50
    assert device.restarts == 0


def test_the_secret_reaches_the_child_and_is_never_shown(serve: Callable[..., Any]) -> None:
    with acme() as address, serve(FOLDER, ACME_API_KEY=KEY, ACME_API_URL=address) as server:
        answered = server.invoke("ask", "text=Will it rain")
        assert json.loads(answered.stdout)["text"] == "Will it rain? Certainly."  # Acme knows this key only
        failed = server.invoke("ask", "text=busy")
        assert failed.returncode == 1
        status, log = server.ps(), server.log
    assert json.loads(status)["jobs_done"] == 1
    assert "ready" in log
    assert [place for place in (status, log, answered.stderr, failed.stdout, failed.stderr) if KEY in place] == []


def test_a_refused_secret_is_not_shown_either(serve: Callable[..., Any]) -> None:
    with acme(key="another") as address, serve(FOLDER, ACME_API_KEY=KEY, ACME_API_URL=address) as server:
        refused = server.invoke("ask", "text=hello")
        status, log = server.ps(), server.log
    assert refused.returncode == 1
    assert "Acme refused the key: 401" in refused.stderr
    assert [place for place in (status, log, refused.stdout, refused.stderr) if KEY in place] == []


def test_a_time_out_is_worth_another_try_and_holds_nobody_up(serve: Callable[..., Any]) -> None:
    with (
        acme() as address,
        serve(FOLDER, ACME_API_KEY=KEY, ACME_API_URL=address) as server,
        server.client() as client,
    ):
        slow = client.submit("ask", {"text": "slow", "timeout_s": 1.0})
        assert client.call("ask", {"text": "quick"}, timeout_s=20)["text"] == "quick? Certainly."
        assert not slow.done
        with pytest.raises(JobError, match="Acme did not answer within 1 s") as late:
            slow.result(20)
    assert (late.value.kind, late.value.retryable) == ("retryable", True)
