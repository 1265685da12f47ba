"""The test client of authors with real children."""

from pathlib import Path

import pytest

from gen_worker import CanceledError, RetryableError, ValidationError
from gen_worker.client import JobError
from gen_worker.testing import Client
from tests.endpoints import tried

pytestmark = pytest.mark.process


def test_a_call_to_a_child_gives_what_one_in_process_gives(tmp_path: Path) -> None:
    with Client(tried, isolated=True) as client, Client(tried) as here:
        for function, fields in (
            ("greet", {"name": "Ada", "times": 2, "raw": b"!"}),
            ("count-up", {"name": "x", "times": 3}),
            ("count-down", {"name": "x", "times": 3}),
        ):
            there, own = client.run(function, fields), here.run(function, fields)
            assert (there.output, there.items, there.logs, there.json) == (own.output, own.items, own.logs, own.json)
        (tmp_path / "a.txt").write_text("one")
        assert client.run("read", assets=[tmp_path / "a.txt"]).output.text == "one"
        assert client.run("keep", name="ada").files["ada.txt"].read_bytes() == b"ada"

        for payload in ({"name": 3}, {"name": ""}):
            with pytest.raises(ValidationError):
                client.run("greet", payload)
        with pytest.raises(RetryableError):
            client.run("refuse", name="try again")
        with pytest.raises(JobError) as raised:
            client.run("refuse", name="x")
        assert raised.value.kind == "user_exception"


def test_children_crash_hang_and_are_cancelled_and_the_next_call_is_answered() -> None:
    with Client(tried.Greeter, isolated=True) as client:
        with pytest.raises(JobError) as raised:
            client.run("crash", name="x")
        assert raised.value.kind == "child_died"
        with pytest.raises(TimeoutError):
            client.run("wait", name="x", timeout_s=0.2)
        job = client.submit("wait", name="x")
        job.cancel()
        with pytest.raises(CanceledError):
            job.result(20)
        assert client.run("greet", name="Ada").output.text == "hello Ada"
    with Client(tried.count_up, isolated=True) as client:
        items = client.stream("count-up", name="x", times=1 << 40)
        assert next(items) == tried.Line("0")
        items.close()  # type: ignore[attr-defined]
        assert client.server.status().jobs == []
