"""A device that an operator drains while everybody wants it: no job is lost, and none begins there."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gen_worker.client import Client, JobError
from gen_worker.wire.control import Drained
from tests.scripted.entrypoint import Driven, driven
from tests.scripted.orchestrator import RETRYABLE
from tests.served import Serve, Server, alive, until

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("grpc_awake")]


class Drain:
    """A drain that another thread waits for."""

    def __init__(self, server: Server, device: str = "") -> None:
        self.found: list[Drained] = []
        self._client = Client(server.control)
        self._thread = threading.Thread(target=self._wait, args=(device,))
        self._thread.start()

    def _wait(self, device: str) -> None:
        self.found.append(self._client.drain(device, timeout_s=20.0))

    def result(self) -> Drained:
        """Return its answer."""
        self._thread.join(20.0)
        self._client.close()
        (found,) = self.found
        return found


def states(server: Server) -> dict[str, str]:
    return {name: device.state for name, device in server.devices().items()}


def home(server: Server, request_id: str) -> str:
    found = server.job(request_id)
    assert found is not None
    assert found.gpu is not None
    return found.gpu


def test_under_load_a_drained_device_ends_what_it_has_and_gets_nothing_until_it_is_undone(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    with Client(server.control) as client:
        early = [client.submit("gated", {"gate": "go"}, request_id=f"early-{number}") for number in range(2)]
        server.until_running("early-0", "early-1")
        late = [client.submit("echo", {"text": str(number)}, request_id=f"late-{number}") for number in range(50)]
        drained = home(server, "early-0")
        before = server.pids()
        drain = Drain(server, drained)
        until(lambda: server.devices()[drained].drained)
        assert states(server)[drained] == "drain"
        assert not drain.found
        server.open("go")
        assert {job.result()["text"] for job in late} == {str(number) for number in range(50)}
        for job in early:
            job.result()
        found = drain.result()
        assert (found.outcome, found.devices) == ("drained", [drained])
        (other,) = set(before) - {drained}
        assert {home_ for number in range(50) for home_ in server.homes(f"late-{number}")} <= {before[other]}
        assert states(server)[drained] == "drained"
        assert server.pids() == before
        assert server.status().jobs_failed == 0
        undone = server.client.drain(drained, undo=True)
        assert (undone.outcome, undone.seconds < 1.0) == ("undrained", True)
        jobs = [client.submit("gated", {"gate": "again"}, request_id=f"again-{number}") for number in range(2)]
        server.until_running("again-0", "again-1")
        server.open("again")
        assert {job.result()["pid"] for job in jobs} == set(before.values())


def test_the_next_child_of_a_drained_device_gets_no_job_and_with_all_drained_jobs_come_back(serve: Serve) -> None:
    server = serve(devices="cpu:2")
    with Client(server.control) as client:
        running = client.submit("gated", {"gate": "go"}, request_id="running")
        server.until_running("running")
        drained = home(server, "running")
        drain = Drain(server, drained)
        until(lambda: server.devices()[drained].drained)
        assert client.kill("running", now=True).outcome == "killed"
        assert drain.result().outcome == "drained"
        with pytest.raises(JobError):
            running.result()
        until(lambda: states(server)[drained] == "drained", what="the next child")
        server.client.drain()
        assert set(states(server).values()) == {"drained"}
        assert server.status().ready is False
        with pytest.raises(JobError, match="every device for it is drained") as refused:
            client.call("echo", {"text": "a"})
        assert (refused.value.kind, refused.value.retryable) == ("unavailable", True)
        reasons = {function.reason for function in server.status().functions}
        assert reasons == {"every device for it is drained by an operator"}
        waits = Drain(server)  # a second one is answered, too
        assert waits.result().outcome == "drained"
        server.client.drain(undo=True)
        assert client.call("echo", {"text": "a"})["text"] == "a"


def test_one_that_waits_is_answered_when_another_undoes_it(serve: Serve) -> None:
    server = serve()
    with Client(server.control) as client:
        job = client.submit("gated", {"gate": "go"}, request_id="running")
        server.until_running("running")
        drain = Drain(server, "cpu:0")
        until(lambda: server.devices()["cpu:0"].drained)
        waiting = client.submit("echo", {"text": "a"})
        with pytest.raises(JobError, match="drained"):
            waiting.result()
        server.client.drain("cpu:0", undo=True)
        assert drain.result().outcome == "undrained"
        server.open("go")
        job.result()
    assert server.client.drain("cpu:7").outcome == "not_found"
    assert alive(server.pid)


def test_a_drain_that_waits_for_nothing_goes_well_where_nothing_runs_and_fails_where_something_does(
    serve: Serve,
) -> None:
    server = serve()
    with server.connect() as connection:
        idle = server.run("drain", "cpu:0", "--timeout", "0", "--json")
        assert (idle.returncode, idle.stderr) == (0, "")
        assert json.loads(idle.stdout)["devices"] == ["cpu:0"]
        assert server.run("undrain", "cpu:0").returncode == 0
        connection.send("gated", "running", gate="go")
        server.until_running("running")
        busy = server.run("drain", "cpu:0", "--timeout", "0")
        assert busy.returncode == 1
        assert "error: 1 request of `cpu:0` has not ended after 0.0s" in busy.stderr
        assert states(server) == {"cpu:0": "drain"}
        server.open("go")
        connection.frame()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Driven]:
    with driven(tmp_path) as made:
        yield made


@pytest.mark.needs("grpc_tools")
@pytest.mark.usefixtures("grpc_awake")
def test_with_all_drained_an_orchestrator_gets_its_jobs_back_and_is_offered_nothing(made: Driven) -> None:
    running = [made.ask("gated", gate="go") for _ in range(2)]
    made.worker.until_running(*(job.request_id for job in running))
    waiting = made.ask("echo")
    waiting.accepted()

    def offered() -> list[str]:
        states = [each.message for each in made.orchestrator.told("state_delta")]
        return list(states[-1].available_functions)

    with Client(made.worker.folder / "run" / str(made.worker.pid) / "control.sock") as client:
        drains = threading.Thread(target=client.drain)
        drains.start()
        result = waiting.result()
        assert result.status == RETRYABLE
        assert "every device for it is drained by an operator" in result.safe_message
        made.worker.until(lambda: not offered(), "nothing being offered")
        refused = made.ask("echo")
        assert refused.result().status == RETRYABLE
        assert made.orchestrator.of(refused.request_id) == ["job_result"]
        made.worker.open("go")
        for job in running:
            job.output()
        drains.join(10.0)
        assert client.drain(undo=True).outcome == "undrained"
        made.worker.until(offered, "functions being offered again")
        assert made.ask("echo", text="b").output()["text"] == "b"
