"""The doctor on this host: what it asks of the kernel, and a supervisor of its own that it breaks and ends."""

import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from gen_worker.doctor import gpus, kernel, leftovers, network, program
from gen_worker.doctor.chaos.faults import Fault, Measured, NotHereError
from gen_worker.doctor.chaos.observed import descriptors, marked, resident, state
from gen_worker.doctor.chaos.scratch import MARK, Scratch, ScratchError
from gen_worker.doctor.chaos.trial import Result, run
from gen_worker.doctor.chaos.witness import Witness
from gen_worker.doctor.checks import Endpoint, Patient, checks
from gen_worker.doctor.examination import examine
from gen_worker.doctor.finding import Status
from gen_worker.scratch import PREFIX
from tests.nvml import simulated
from tests.served import ENDPOINTS, GEN_WORKER, Serve, alive, until

pytestmark = [pytest.mark.process, pytest.mark.quiet]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for everything temporary, in which nothing of a scratch supervisor may stay."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield tmp_path
    until(lambda: not list(tmp_path.glob(f"{PREFIX}*")), what="nothing of it left in the temporary folder")


def scratches() -> set[int]:
    """Every process that runs because of a scratch supervisor of this test session."""
    return {pid for pid in marked(f"GW_TESTS_SESSION={os.environ['GW_TESTS_SESSION']}") if MARK in variables_of(pid)}


def variables_of(pid: int) -> str:
    """The environment that a process began with, nothing when it has ended."""
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return ""


# --- looking ----------------------------------------------------------------------------------------------------------


def test_nothing_of_the_current_folder_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gen_worker", "gen_worker_supervisor"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    assert program.module("gen_worker.doctor.gpu_probe", limit_s=10).code != 7
    assert program.module("gen_worker_supervisor.devices.cuda_probe", limit_s=10).code != 7


def test_the_kernel_of_this_host_does_what_supervisors_ask_of_it() -> None:
    (found,) = kernel.kernel()
    assert found.status is Status.OK, found


class _Hub(BaseHTTPRequestHandler):
    """Knows nothing, and says when."""

    def do_HEAD(self) -> None:
        self.send_response_only(404)
        self.send_header("Date", "Fri, 15 Jan 2027 08:00:00 GMT")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_a_hub_that_answers_anything_is_there_and_its_clock_is_compared() -> None:
    with HTTPServer(("127.0.0.1", 0), _Hub) as server:
        serving = threading.Thread(target=server.handle_request)
        serving.start()
        there, apart = network.hub("hub", f"http://127.0.0.1:{server.server_port}/a?token=canary", "", 1_800_000_600.0)
        serving.join()
    assert there.status is Status.OK
    assert "canary" not in there.found
    assert "600 s ahead of" in apart.found
    (gone,) = network.hub("hub", f"http://127.0.0.1:{server.server_port}", "", 0.0)
    assert gone.status is Status.PROBLEM
    assert "connection refused" in gone.found


def test_a_driver_that_is_not_there_is_told_by_a_process_of_its_own() -> None:
    seen = gpus.driver()
    assert seen.gpus or seen.error, seen


def test_a_process_that_does_not_end_costs_its_limit_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(1000)\n")
    assert program.script(tmp_path / "hangs.py", limit_s=0.2) == program.Told("", "", None)


def test_a_host_is_looked_at_without_a_trace(tmp_path: Path) -> None:
    env = {**os.environ, "GEN_WORKER_RUN_DIR": str(tmp_path / "run"), "TENSORHUB_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [*GEN_WORKER, "doctor", "--json"], env=env, cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    document = json.loads(done.stdout)
    assert document["ok"] == (done.returncode == 0), done.stderr
    groups = {each["group"] for each in document["findings"]}
    assert {"system", "limits", "memory", "gpus", "disk", "worker", "network"} <= groups
    assert all(each["status"] in ("ok", "skipped") or each["remedy"] for each in document["findings"])
    assert os.listdir(tmp_path) == []


def test_whatever_it_finds_can_be_asked_for_by_its_name(tmp_path: Path) -> None:
    every = checks(Patient.here(os.environ, Endpoint("gpus", [str(ENDPOINTS)])))
    names = {each.name for told in examine(every) for each in told.findings}
    refused = kernel.judged(program.Told("".join(f"{name}\tno\n" for name in kernel.NEEDED_FOR), "", 0))
    names |= {each.name for each in refused} | {"cuda:0", "token", "clock-offset"}
    unknown = {name for name in names if not any(check.answers_to(name) for check in every)}
    assert unknown == {"clock-offset"}  # only a hub tells it
    online = checks(Patient.here(os.environ, online=True))
    assert any(check.answers_to("clock-offset") for check in online)
    assert not any(check.answers_to("cuda") for check in online)


def test_a_supervisor_that_was_stopped_is_a_problem(serve: Serve) -> None:
    server = serve()
    run_dir = server.control.parent.parent
    assert str(server.pid) in leftovers.supervisors(run_dir).found
    server.signal(signal.SIGSTOP)
    try:
        until(lambda: leftovers.supervisors(run_dir).status is Status.PROBLEM, what="it being stopped")
        assert leftovers.supervisors(run_dir).remedy == f"`kill -CONT {server.pid}` lets it go on"
    finally:
        server.signal(signal.SIGCONT)


@pytest.mark.root
def test_a_full_disk_is_a_problem_wherever_something_has_to_be_written(tmp_path: Path) -> None:
    place = tmp_path / "full"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, timeout=10)
    if mounted.returncode:
        pytest.skip("only root may mount a disk")
    try:
        with suppress(OSError), (place / "everything").open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
        env = {**os.environ, "TMPDIR": str(place), "GEN_WORKER_RUN_DIR": str(place / "run")}
        command = [*GEN_WORKER, "doctor", "--only", "temporary,run-dir", "--json"]
        done = subprocess.run(command, env=env, capture_output=True, timeout=60, check=False)
    finally:
        subprocess.run(["umount", "--lazy", place], check=True, timeout=10)
    found = {each["name"]: each for each in json.loads(done.stdout)["findings"]}
    for name in ("temporary", "run-dir"):
        assert found[name]["status"] == "problem"
        assert str(place) in found[name]["found"]
        assert "no space left" in found[name]["found"]


def test_sick_gpus_and_those_that_a_supervisor_has_are_told(tmp_path: Path, serve: Serve) -> None:
    with simulated.gpus(tmp_path, 3) as world:
        server = serve(module="gpus", devices="0", variables=world.variables)
        world.gpus[1].ecc, world.gpus[1].ecc_errors = 1, 2
        env = {**os.environ, **world.variables, "CUDA_VISIBLE_DEVICES": "0,1"}
        command = [*GEN_WORKER, "doctor", "--only", "driver,devices,cuda:1", "--json"]
        done = subprocess.run(command, env=env, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    found = {each["name"]: each for each in json.loads(done.stdout)["findings"]}
    assert "3 GPUs" in found["driver"]["found"]
    assert f"in use by the supervisor {server.pid}" in found["cuda:0"]["found"]
    assert found["cuda:1"]["status"] == "problem"
    assert "2 memory errors" in found["cuda:1"]["found"]
    assert found["cuda:2"]["status"] == "ok"
    assert found["devices"]["found"].startswith("cuda:0, cuda:1; cuda:2 not used: hidden by")


# --- breaking ---------------------------------------------------------------------------------------------------------


def test_what_is_promised_holds_on_this_host_and_nothing_is_left(temporary: Path) -> None:
    command = [*GEN_WORKER, "doctor", "--chaos", "--only", "crash,hold-gil,garbage,daemon,supervisor", "--json"]
    done = subprocess.run(command, capture_output=True, timeout=100, check=False)
    document = json.loads(done.stdout)
    assert {each["name"]: each["wrong"] for each in document["faults"] if each["verdict"] != "holds"} == {}
    assert [each["name"] for each in document["faults"]] == ["crash", "hold-gil", "garbage", "daemon", "supervisor"]
    assert (done.returncode, document["ok"]) == (0, True)
    assert not scratches()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_doctor_ends_what_it_broke(temporary: Path, number: signal.Signals) -> None:
    command = [*GEN_WORKER, "doctor", "--chaos", "--only", "sleep-in-c"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as doctor:
        until(lambda: len(scratches()) > 3, what="children of a scratch supervisor")
        doctor.send_signal(number)
        _, said = doctor.communicate(timeout=20)
        assert doctor.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
        assert (b"ending what was started" in said) == (number != signal.SIGKILL)
    until(lambda: not scratches(), what="the end of them all")


def test_a_fault_that_is_not_borne_fails_and_the_next_one_is_tried(temporary: Path) -> None:
    def fails(scratch: Scratch) -> Measured:
        return Measured("2 s", "1 s", ["too late"])

    def ends_it(scratch: Scratch) -> Measured:
        os.kill(scratch.pid, signal.SIGKILL)
        scratch.client.call("echo")
        return Measured("nothing", "", [])

    def is_refused(scratch: Scratch) -> Measured:
        scratch.client.call("no-such-function")
        return Measured("nothing", "", [])

    def cannot_be(scratch: Scratch) -> Measured:
        raise NotHereError("no such memory")

    def holds(scratch: Scratch) -> Measured:
        return Measured(str(scratch.client.call("echo", {"text": "on"})["text"]), "", [])

    faults = [Fault(each.__name__, "a promise", each) for each in (fails, ends_it, is_refused, cannot_be, holds)]
    results: dict[str, Result] = {result.name: result for result in run(faults, slots=1)}
    assert {name: result.verdict for name, result in results.items()} == {
        "fails": "fails",
        "ends_it": "fails",
        "is_refused": "fails",
        "cannot_be": "skipped",
        "holds": "holds",
    }
    assert results["fails"].wrong == ["too late"]
    assert "gone" in results["ends_it"].wrong[0]
    assert "no-such-function" in results["is_refused"].wrong[0]
    assert results["holds"].measured == "on"


def test_a_scratch_supervisor_that_does_not_start_says_why(temporary: Path) -> None:
    with pytest.raises(ScratchError, match="GEN_WORKER_MAX_QUEUED"), Scratch(1, {"GEN_WORKER_MAX_QUEUED": "many"}):
        pass


def test_a_scratch_supervisor_knows_no_token_and_is_seen_from_outside(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary_canary")
    with Scratch(1) as scratch:
        assert b"hf_canary" not in Path(f"/proc/{scratch.pid}/environ").read_bytes()
        assert scratch.processes() >= {scratch.pid, *scratch.children().values()}
        assert descriptors(scratch.pid) > 3
        assert resident(scratch.pid) > 1 << 20
        assert state(scratch.pid) in "SR"
        witness = Witness(scratch.control)
        account = witness.account()
        witness.close()
        assert account.failures == []
        assert witness.undisturbed > 0
        assert account.p99_s <= account.slowest_s
        pid = scratch.pid
    assert not alive(pid)
    assert (state(pid), resident(pid), descriptors(pid)) == ("", 0, 0)
