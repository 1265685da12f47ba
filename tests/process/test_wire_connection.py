"""The connection of a worker to its orchestrator: how it begins, what it survives, and what ends the worker."""

import itertools
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from tests.scripted.certificates import certificate
from tests.scripted.entrypoint import CANARY, RELEASE, Driven, driven, token, until_ready, working
from tests.scripted.orchestrator import OK, RETRYABLE, ScriptedOrchestrator
from tests.scripted.proxy import Proxy

pytestmark = [
    pytest.mark.process,
    pytest.mark.needs("grpc_tools", "cryptography"),
    pytest.mark.usefixtures("grpc_awake"),
]
REFUSED = grpc.StatusCode.FAILED_PRECONDITION
AT_ONCE_S = 2.0  # without a back-off, on busy cores
DETECTED_S = 33.0  # 20 s without a word, 10 s without an answer


@pytest.fixture(scope="module")
def shared(grpc_awake: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    """One worker for the tests that cost it no more than a connection, which it makes again at once."""
    with driven(tmp_path_factory.mktemp("wired")) as made:
        yield made


@pytest.fixture
def linked(shared: Driven) -> Driven:
    """The shared worker on a connection of the test's own."""
    return shared._replace(connection=shared.orchestrator.connections[-1]).redial()


def has_gpu() -> bool:
    """Whether a driver for GPUs is here."""
    return Path("/dev/nvidiactl").exists()


def turn_away(orchestrator: ScriptedOrchestrator, details: str) -> float:
    """Refuse the next worker once it has said who it is; return when it came."""
    connection = orchestrator.connection()
    connection.expect("hello")
    connection.end(REFUSED, details)
    return connection.began


def closed_port() -> str:
    """Return an address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"127.0.0.1:{sock.getsockname()[1]}"


# --- how it begins ----------------------------------------------------------------------------------------------------


def test_a_hello_comes_first_and_alone_until_it_is_acknowledged(tmp_path: Path) -> None:
    variables = {"WORKER_IMAGE_DIGEST": "sha256:1", "WORKER_GIT_COMMIT": "abc", "RUNPOD_POD_ID": "pod-1"}
    with ScriptedOrchestrator() as orchestrator, working(tmp_path, orchestrator.address, variables) as worker:
        connection = orchestrator.connection()
        hello = connection.hello = connection.expect("hello")
        assert (hello.protocol_version, hello.worker_id, hello.release_id) == (2, "wired-1", RELEASE)
        resources = hello.resources
        assert (resources.image_digest, resources.git_commit, resources.instance_id) == ("sha256:1", "abc", "pod-1")
        assert list(hello.in_flight) == []
        assert connection.metadata["authorization"] == f"Bearer {token()}"
        worker.until(lambda: '"idle"' in worker.gen_worker("ps", "--json").stdout, "a child that is ready")
        assert connection.said() == ["hello"]
        connection.acknowledge()
        until_ready(connection)
        connection.settle()
        assert set(connection.said()[1:-1]) == {"fn_unavailable", "state_delta"}


def test_a_worker_without_a_token_shows_none(tmp_path: Path) -> None:
    unnamed = {"WORKER_JWT": None, "WORKER_ID": None}
    with driven(tmp_path, unnamed, ready=False) as made:
        assert "authorization" not in made.connection.metadata
        assert made.connection.hello.worker_id == f"py-worker-{made.worker.pid}"
        assert made.connection.hello.release_id == ""


def test_a_worker_is_named_by_its_token_where_nobody_named_it(tmp_path: Path) -> None:
    with driven(tmp_path, {"WORKER_ID": None, "WORKER_JWT": token("from-token")}, ready=False) as made:
        assert made.connection.hello.worker_id == "from-token"


@pytest.mark.skipif(has_gpu(), reason="there are GPUs here")
def test_a_host_without_gpus_says_which_functions_it_cannot_run_and_runs_the_others(tmp_path: Path) -> None:
    with driven(tmp_path, {"GEN_WORKER_DEVICES": None}) as made, made.worker.explained():
        gate = made.connection.expect("fn_unavailable", function_name="on-device")
        assert (gate.reason, dict(gate.axes)) == ("cuda_unavailable", {"gpu_count": "0"})
        refused = made.ask("on-device")
        result = refused.result()
        assert (result.status, result.safe_message) == (RETRYABLE, "function unavailable: cuda_unavailable")
        assert made.orchestrator.of(refused.request_id) == ["job_result"]
        assert made.ask("echo", text="served").output()["text"] == "served"


def test_an_orchestrator_that_comes_later_is_found(tmp_path: Path) -> None:
    address = closed_port()
    with working(tmp_path, address) as worker:
        worker.until(lambda: address in worker.log(), "a failed try")
        with ScriptedOrchestrator(address=address) as orchestrator:
            assert orchestrator.greet().hello.worker_id == "wired-1"


def test_tls_with_an_authority_of_its_own(tmp_path: Path) -> None:
    tls = certificate()
    with ScriptedOrchestrator(tls=tls) as orchestrator:
        bundle = {"GRPC_CA_BUNDLE": str(tls.bundle(tmp_path))}
        with working(tmp_path / "w", f"grpcs://{orchestrator.address}", bundle) as worker, worker.explained():
            connection = orchestrator.greet()
            connection.end(REFUSED, f"not_leader:{orchestrator.address}")
            assert orchestrator.greet(AT_ONCE_S).hello.worker_id == "wired-1"


def test_an_authority_that_the_worker_does_not_know_is_not_spoken_to(tmp_path: Path) -> None:
    with ScriptedOrchestrator(tls=certificate()) as orchestrator:
        bundle = {"GRPC_CA_BUNDLE": str(certificate().bundle(tmp_path))}
        with working(tmp_path / "w", f"grpcs://{orchestrator.address}", bundle) as worker:
            worker.until(lambda: "UNAVAILABLE" in worker.log() or "certificate" in worker.log().lower(), "a failed try")
            assert not orchestrator.connections


# --- what it does not mind --------------------------------------------------------------------------------------------


def test_an_unknown_or_empty_envelope_is_ignored(linked: Driven) -> None:
    linked.connection.send_raw(b"")
    linked.connection.send_raw(b"\xfa\x07\x03abc")  # a field 127 of three bytes
    linked.connection.settle()
    assert linked.ask("echo", text="fine").output()["text"] == "fine"


def test_another_acknowledgement_changes_nothing_else(linked: Driven) -> None:
    linked.connection.acknowledge(file_base_url="http://127.0.0.1:2", keep=["acme/other"])
    linked.connection.settle()
    assert linked.ask("echo", text="fine").output()["text"] == "fine"
    assert len(linked.connection.told("hello")) == 1


@pytest.mark.promise(19)
def test_malformed_bytes_cost_the_connection_and_no_job(linked: Driven) -> None:
    job = linked.ask("gated", gate="malformed")
    linked.worker.until_running(job.request_id)
    linked.connection.send_raw(b"\x0a\xff\xff\xff\xff\xff")
    linked.connection.until_gone()
    again = linked.orchestrator.greet()
    assert job.pair in [{"request_id": each.request_id, "attempt": each.attempt} for each in again.hello.in_flight]
    linked.worker.open("malformed")
    assert job.result().status == OK
    assert linked.worker.runs()[job.request_id] == 1


# --- each connection begins anew --------------------------------------------------------------------------------------


def test_after_each_acknowledgement_gates_and_state_are_told_again(linked: Driven) -> None:
    for _ in range(2):
        linked.connection.settle()
        said = linked.connection.said()
        assert said[0] == "hello"
        assert said.count("fn_unavailable") == 1
        assert said.count("state_delta") == 1
        (gate,) = linked.connection.told("fn_unavailable")
        assert gate.message.function_name == "ungranted"
        linked = linked.redial()


@pytest.mark.promise(15, 21)
def test_a_job_outlives_the_connection_that_it_came_by(linked: Driven) -> None:
    job = linked.ask("gated", gate="outlives")
    job.accepted()
    linked.worker.until_running(job.request_id)
    again = linked.redial()
    assert [each.attempt for each in again.connection.hello.in_flight if each.request_id == job.request_id] == [1]
    linked.worker.open("outlives")
    assert job.result().status == OK
    assert linked.worker.runs()[job.request_id] == 1


@pytest.mark.promise(15, 21)
def test_a_job_that_ends_while_nobody_listens_is_answered_later(linked: Driven) -> None:
    job = linked.ask("gated", gate="unheard", text="kept")
    linked.worker.until_running(job.request_id)
    linked.connection.end(REFUSED, f"not_leader:{linked.orchestrator.address}")
    silent = linked.orchestrator.connection()
    silent.expect("hello")
    linked.worker.open("unheard")
    silent.acknowledge()
    assert job.output()["text"] == "kept"
    assert len(linked.orchestrator.results(job.request_id)) == 1


def test_connections_that_ended_in_the_middle_of_it_are_closed(tmp_path: Path) -> None:
    """A status that comes while the worker writes is not heard, so that it pauses, longer each time."""
    with driven(tmp_path) as made, made.worker.explained():
        before = made.worker.sockets()
        for _ in range(3):
            for _ in range(3):
                made.ask("ticks", times=3)
            made = made.redial()
        made.connection.settle()
        made.worker.until(lambda: made.worker.sockets() <= before, "as few sockets as before")


def test_a_token_that_was_renewed_is_shown_from_the_next_connection_on(linked: Driven) -> None:
    fresh = token(exp=4_000_000_000)
    linked.connection.send(token_refresh={"token": fresh, "expires_at_unix": 4_000_000_000})
    linked.connection.settle()
    assert not linked.connection.gone
    again = linked.redial()
    assert again.connection.metadata["authorization"] == f"Bearer {fresh}"
    again.connection.send(token_refresh={"token": token()})
    again.connection.settle()
    assert CANARY not in linked.worker.log()


def test_a_superseded_stream_is_a_drop_like_any_other(tmp_path: Path) -> None:
    with driven(tmp_path) as made:
        made.connection.end(grpc.StatusCode.ABORTED, "worker_stream_superseded")
        assert made.orchestrator.greet().hello.worker_id == "wired-1"


def test_a_first_message_other_than_the_acknowledgement_ends_the_attempt(tmp_path: Path) -> None:
    with ScriptedOrchestrator() as orchestrator, working(tmp_path, orchestrator.address) as worker, worker.explained():
        first = orchestrator.connection()
        first.expect("hello")
        job = first.run("echo", {})
        first.until_gone()
        assert first.said() == ["hello"]
        orchestrator.greet()
        assert worker.runs()[job.request_id] == 0
        assert not orchestrator.told("job_accepted")


def test_a_token_that_is_refused_twice_is_shown_again(tmp_path: Path) -> None:
    with ScriptedOrchestrator() as orchestrator, working(tmp_path, orchestrator.address) as worker, worker.explained():
        for _ in range(2):
            orchestrator.connection().end(grpc.StatusCode.UNAUTHENTICATED, "token expired")
        assert orchestrator.greet().hello.worker_id == "wired-1"


# --- redirects --------------------------------------------------------------------------------------------------------


def test_redirects_are_followed_at_once_and_three_in_a_row(tmp_path: Path) -> None:
    with ExitStack() as stack:
        chain = [stack.enter_context(ScriptedOrchestrator()) for _ in range(5)]
        worker = stack.enter_context(working(tmp_path, chain[0].address))
        stack.enter_context(worker.explained())
        ended = float("inf")
        for one, next_one in itertools.pairwise(chain):
            began = turn_away(one, f"not_leader:{next_one.address}")
            assert began - ended < AT_ONCE_S, one.address
            ended = time.monotonic()
        assert chain[0].greet().hello.worker_id == "wired-1"
        assert not chain[4].connections


def test_a_redirect_without_a_scheme_stays_with_tls(tmp_path: Path) -> None:
    tls = certificate()
    with ScriptedOrchestrator(tls=tls) as one, ScriptedOrchestrator(tls=tls) as other:
        bundle = {"GRPC_CA_BUNDLE": str(tls.bundle(tmp_path))}
        with working(tmp_path / "w", f"grpcs://{one.address}", bundle) as worker, worker.explained():
            turn_away(one, f"not_leader:{other.address}")
            assert other.greet(AT_ONCE_S).hello.worker_id == "wired-1"


# --- what ends the worker ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "details", ["protocol_version_mismatch", "worker_id_mismatch", "release_id_mismatch", "missing worker identity"]
)
def test_what_another_try_would_not_change_ends_the_worker(tmp_path: Path, details: str) -> None:
    with ScriptedOrchestrator() as orchestrator, working(tmp_path, orchestrator.address) as worker:
        turn_away(orchestrator, details)
        assert worker.wait() == 1
        log = worker.log()
        assert "error: " in log
        assert "Traceback" not in log
        assert CANARY not in log
        assert len(orchestrator.connections) == 1


@pytest.mark.promise(19)
def test_another_version_of_the_protocol_ends_the_worker(tmp_path: Path) -> None:
    with ScriptedOrchestrator() as orchestrator, working(tmp_path, orchestrator.address) as worker:
        connection = orchestrator.connection()
        connection.expect("hello")
        connection.acknowledge(protocol_version=1)
        assert worker.wait() == 1
        assert "error: " in worker.log()


def test_a_worker_that_finds_no_orchestrator_gives_up(tmp_path: Path) -> None:
    with working(tmp_path, closed_port(), {"WORKER_DISCONNECTED_TIMEOUT_S": "1"}) as worker:
        assert worker.wait() == 1
        assert "WORKER_DISCONNECTED_TIMEOUT_S" in worker.log()


# --- what takes 30 seconds --------------------------------------------------------------------------------------------


@pytest.mark.promise(16)
def test_a_half_open_connection_is_noticed_and_costs_no_result(tmp_path: Path) -> None:
    with (
        ScriptedOrchestrator() as orchestrator,
        Proxy(orchestrator.address) as proxy,
        working(tmp_path, proxy.address) as worker,
        worker.explained(),
    ):
        connection = orchestrator.greet()
        until_ready(connection)
        job = connection.run("gated", {"gate": "stalled", "text": "kept"})
        job.accepted()
        worker.until_running(job.request_id)
        proxy.stall()
        worker.open("stalled")
        worker.until(lambda: "lost grpc://" in worker.log(), "the loss", DETECTED_S)
        proxy.reset()
        proxy.resume()
        again = orchestrator.greet()
        assert [each.request_id for each in again.hello.in_flight] == [job.request_id]
        assert job.output()["text"] == "kept"
        assert worker.runs()[job.request_id] == 1
