"""A caller's trace on its way: through every door of a supervisor to the handler."""

import json
from collections.abc import Iterator

import pytest

from tests.served import Server, serving

pytestmark = pytest.mark.process
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the module."""
    with serving(tmp_path_factory.mktemp("traced"), module="contextual") as server:
        yield server


def of_a_new_span(traceparent: object) -> bool:
    """Whether this is of another span in the caller's trace."""
    assert isinstance(traceparent, str)
    return traceparent.startswith(f"00-{TRACE}-") and traceparent != CALLER and traceparent.endswith("-01")


def asked(server: Server, traceparent: str) -> object:
    """Return what a job of the Python client was told."""
    return server.client.call("tell-trace", traceparent=traceparent)["traceparent"]


def told(server: Server, **fields: object) -> object:
    """Return what a job of a line with these fields was told."""
    with server.connect() as connection:
        connection.line({"function": "tell-trace", **fields})
        return connection.frame()["events"][-1]["value"]["traceparent"]


def test_a_job_of_the_python_client_is_in_its_callers_trace(server: Server) -> None:
    assert of_a_new_span(asked(server, CALLER))
    assert asked(server, "") == ""


def test_a_job_of_a_line_is_in_its_callers_trace(server: Server) -> None:
    assert of_a_new_span(told(server, traceparent=CALLER))


@pytest.mark.parametrize("traceparent", ["", "nonsense", CALLER.upper(), "x" * 100_000])
def test_what_is_no_traceparent_is_nothing_and_hurts_nobody(server: Server, traceparent: str) -> None:
    assert told(server, traceparent=traceparent) == ""
    assert asked(server, traceparent[:1000]) == ""


def test_invoke_passes_on_the_trace_of_its_shell(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    named = server.run("invoke", "tell-trace", "--traceparent", CALLER)
    assert of_a_new_span(json.loads(named.stdout)["traceparent"])
    monkeypatch.setenv("TRACEPARENT", CALLER)
    of_the_shell = server.run("invoke", "tell-trace")
    assert of_a_new_span(json.loads(of_the_shell.stdout)["traceparent"])
