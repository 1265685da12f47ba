"""A server whose functions need models: they come once, when a job needs them, and are where they are needed."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gen_worker.testing import LoopbackHub, faults
from tests.served import Serve, Server, until

pytestmark = pytest.mark.process

FIRST = {"weights.txt": b"first", "config.json": b"{}"}
SECOND = {"weights.txt": b"second " * 1000, "config.json": b"{}"}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo("acme/first", FIRST)
        hub.add_repo("acme/second", SECOND)
        hub.add_repo("acme/gated", FIRST, gated=True)
        yield hub


Shelf = Callable[..., Server]


@pytest.fixture
def shelf(serve: Serve, hub: LoopbackHub, tmp_path: Path) -> Shelf:
    """Start servers of the functions that need models, with the hub and a cache of their own."""

    def start(*arguments: str, variables: dict[str, str] | None = None, **options: Any) -> Server:
        own = {**hub.variables(), "TENSORHUB_CACHE_DIR": str(tmp_path / "cache"), "HF_HOME": "", "HF_TOKEN": ""}
        own["GEN_WORKER_HOST_CACHE_BYTES"] = "0"
        return serve(*arguments, module="shelf", variables={**own, **(variables or {})}, **options)

    return start


def value(frame: dict[str, Any]) -> dict[str, Any]:
    """Return what a job answered."""
    assert frame["ok"], frame
    answered: dict[str, Any] = frame["events"][-1]["value"]
    return answered


def error(frame: dict[str, Any]) -> dict[str, Any]:
    """Return how a job failed."""
    assert not frame["ok"], frame
    told: dict[str, Any] = frame["error"]
    return told


def states(server: Server) -> dict[str, str]:
    """Return where each model is that was had."""
    return {model.ref: model.state for model in server.status().models if model.state != "COLD"}


# --- they come when they are needed, once -----------------------------------------------------------------------------


def test_nothing_is_downloaded_before_a_job_needs_it(shelf: Shelf, hub: LoopbackHub) -> None:
    server = shelf()
    assert hub.requests == []
    assert value(server.ask("first"))["text"] == "first"
    assert states(server) == {"acme/first": "DISK"}
    assert hub.wire_bytes("weights.txt") == len(FIRST["weights.txt"])


@pytest.mark.parametrize("function", ["first", "same", "either", "bare"])
def test_a_model_goes_to_setup_or_to_the_handler_as_its_annotation_says(shelf: Shelf, function: str) -> None:
    assert value(shelf().ask(function))["text"].endswith("first")


def test_jobs_of_two_functions_that_need_one_model_cost_one_download(shelf: Shelf, hub: LoopbackHub) -> None:
    server = shelf(devices="cpu:2")
    with server.connect() as connection:
        for number, name in enumerate(("first", "same", "first", "same", "bare")):
            connection.send(name, f"r{number}")
        answers = connection.frames(5)
    assert {value(answer)["text"] for answer in answers.values()} == {"first"}
    assert hub.wire_bytes("weights.txt") == len(FIRST["weights.txt"])


def test_a_job_whose_model_is_resident_does_not_wait_behind_a_download(shelf: Shelf, hub: LoopbackHub) -> None:
    hub.fail("weights.txt", faults.Stall(after=10, seconds=60), times=1)  # of the first that is asked for: `second`
    server = shelf()
    with server.connect() as waiting:
        waiting.send("second", "slow")
        until(lambda: any(request.path.endswith("weights.txt") for request in hub.requests), what="the download")
        assert value(server.ask("first"))["text"] == "first"
        assert value(server.ask("first"))["text"] == "first"
        assert [download.ref for download in server.status().downloads] == ["acme/second"]
        assert waiting.is_silent()


def test_what_one_server_downloaded_the_next_one_has(shelf: Shelf, hub: LoopbackHub, tmp_path: Path) -> None:
    first = shelf()
    first.ask("first")
    first.close()
    fetched = hub.wire_bytes("weights.txt")
    second = shelf(variables={"GEN_WORKER_OFFLINE": "1"})
    assert value(second.ask("first"))["text"] == "first"
    assert hub.wire_bytes("weights.txt") == fetched


# --- they cannot be had -----------------------------------------------------------------------------------------------


def test_a_job_whose_model_is_gated_is_told_what_to_do_and_the_others_are_served(shelf: Shelf) -> None:
    server = shelf()
    told = error(server.ask("gated"))
    assert told["kind"] == "model_resolution"
    assert "acme/gated" in told["message"]
    assert told["detail"]["cause"] == "gated"
    assert told["detail"]["hint"]
    assert value(server.ask("first"))["text"] == "first"
    (function,) = [each for each in server.status().models if each.ref == "acme/gated"]
    assert (function.state, function.error is None) == ("COLD", False)


def test_offline_a_model_that_is_not_here_is_refused_at_once_by_name(shelf: Shelf, hub: LoopbackHub) -> None:
    server = shelf("--offline")
    told = error(server.ask("first"))
    assert (told["kind"], told["detail"]["cause"]) == ("model_resolution", "offline")
    assert "acme/first" in told["message"]
    assert hub.requests == []


def test_an_eager_server_whose_models_cannot_be_had_ends_with_the_code_for_that(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        shelf("--eager", "--function", "gated")
    assert "acme/gated" in (tmp_path / "log").read_text()


def test_an_eager_server_is_ready_when_its_models_are_set_up(shelf: Shelf) -> None:
    server = shelf("--eager", "--function", "first,second", devices="cpu:2")
    assert states(server) == {"acme/first": "DISK", "acme/second": "DISK"}


def test_a_function_that_declares_more_memory_than_the_budget_is_gated(shelf: Shelf) -> None:
    server = shelf("--vram-budget", "2")
    told = error(server.ask("large"))
    assert (told["kind"], told["retryable"]) == ("unavailable", True)
    assert "insufficient_vram: it declares 24 GB, the largest device here may take 2 GB" in told["message"]
    (gated,) = [each for each in server.status().functions if each.name == "large"]
    assert gated.state == "unavailable"
    assert server.devices()["cpu:0"].vram_budget == 2 << 30
    assert value(server.ask("first"))["text"] == "first"


# --- they are named by the request ------------------------------------------------------------------------------------


def test_a_request_may_name_another_model_where_its_binding_allows(shelf: Shelf) -> None:
    server = shelf()
    assert value(server.ask("either"))["text"] == "acme/first: first"
    other = value(server.ask("either", _models={"weights": "acme/second"}))
    assert other["text"].startswith("acme/second: second")
    assert value(server.ask("either"))["text"] == "acme/first: first"
    assert error(server.ask("either", _models={"weights": "elsewhere/second"}))["kind"] == "usage"
    missing = error(server.ask("either", _models={"weights": "acme/nothing"}))
    assert (missing["kind"], missing["detail"]["cause"]) == ("model_resolution", "not_found")
    assert error(server.ask("first", _models={"weights": "acme/second"}))["kind"] == "usage"


# --- things die -------------------------------------------------------------------------------------------------------


def is_fetcher(pid: int) -> bool:
    """Whether a process is one."""
    try:
        return b"gen_worker.fetch" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return False


def fetcher_of(server: Server) -> int:
    """Return the pid of a server's fetcher."""
    for pid in server.processes():
        if is_fetcher(pid):
            return pid
    raise AssertionError("there is no fetcher")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_fetcher_that_is_ended_while_a_job_waits_costs_the_job_nothing(
    shelf: Shelf, hub: LoopbackHub, number: signal.Signals
) -> None:
    hub.fail("weights.txt", faults.Stall(after=3, seconds=60), times=1)
    server = shelf()
    with server.connect() as connection:
        connection.send("first", "patient")
        until(lambda: any(request.path.endswith("weights.txt") for request in hub.requests), what="the download")
        os.kill(fetcher_of(server), number)
        assert value(connection.frame())["text"] == "first"


def test_a_model_that_kills_fetcher_after_fetcher_is_given_up_and_named(shelf: Shelf, hub: LoopbackHub) -> None:
    hub.fail("acme/first/weights.txt", faults.Stall(after=3, seconds=60), times=10)
    server = shelf()
    with server.connect() as connection:
        connection.send("first", "patient")
        victims: set[int] = set()

        def given_up() -> bool:
            download = [pid for pid in server.processes() if pid not in victims and is_fetcher(pid)]
            if download and len(wanted_bytes(hub)) > len(victims):
                os.kill(download[0], signal.SIGKILL)
                victims.update(download)
            return not connection.is_silent(0.01)

        until(given_up, what="the answer")
        told = error(connection.frame())
    assert (told["kind"], told["retryable"]) == ("model_resolution", True)
    assert "`acme/first` cannot be downloaded: 3 fetchers in a row died" in told["message"]


def wanted_bytes(hub: LoopbackHub) -> list[str]:
    """Return the requests for the weights of any model."""
    return [request.path for request in hub.requests if request.path.endswith("weights.txt")]


def test_a_new_child_has_its_models_without_the_disk(shelf: Shelf, tmp_path: Path) -> None:
    server = shelf(variables={"GEN_WORKER_HOST_CACHE_BYTES": "64M"})
    before = value(server.ask("first"))
    until(lambda: states(server) == {"acme/first": "RAM"}, what="the model in host memory")
    (tmp_path / "cache").rename(tmp_path / "gone")
    os.kill(before["pid"], signal.SIGKILL)
    after = value(server.ask("first"))
    assert after["text"] == "first"
    assert after["pid"] != before["pid"]


def test_a_path_leads_to_the_model_as_long_as_the_author_has_it(shelf: Shelf) -> None:
    server = shelf(variables={"GEN_WORKER_HOST_CACHE_BYTES": "7010"})  # room for one of them
    before = value(server.ask("first"))
    until(lambda: states(server).get("acme/first") == "RAM", what="the model in host memory")
    os.kill(before["pid"], signal.SIGKILL)
    assert value(server.ask("first"))["text"] == "first"
    assert value(server.ask("second"))["text"].startswith("second")
    assert value(server.ask("first"))["text"] == "first"
    assert states(server)["acme/first"] == "RAM"


def test_nothing_of_models_stays_behind_in_the_run_folder(shelf: Shelf, tmp_path: Path) -> None:
    server = shelf(variables={"GEN_WORKER_HOST_CACHE_BYTES": "64M"})
    server.ask("first")
    until(lambda: states(server) == {"acme/first": "RAM"}, what="the model in host memory")
    fetcher = fetcher_of(server)
    server.close()
    assert {each.name for each in (tmp_path / "run").iterdir()} <= {"logs", "jobs"}
    assert not Path(f"/proc/{fetcher}").exists()
