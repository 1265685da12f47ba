"""A worker in front of an orchestrator of the earlier generation: the real entrypoint, told only `SCHEDULER_ADDR`."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from gen_worker.testing import LoopbackHub
from gen_worker.testing.file_api import FileApi
from gen_worker.wire.earlier import (
    InterruptTaskCommand,
    LoadModelCommand,
    LoadModelResult,
    RealtimeCloseCommand,
    RealtimeFrame,
    RealtimeOpenCommand,
    TaskExecutionResult,
    UnloadModelCommand,
    UnloadModelResult,
    WorkerEvent,
    WorkerRegistration,
)
from tests.scripted.earlier import EarlierOrchestrator, Stream
from tests.served import until

pytestmark = pytest.mark.process

ENDPOINTS = Path(__file__).parents[1] / "endpoints"
CLOSE_S = 20.0


class Shop:
    """A worker that serves the shop, and the orchestrator that it speaks to."""

    def __init__(self, folder: Path, orchestrator: EarlierOrchestrator, module: str, **variables: str) -> None:
        self.folder = folder
        self.orchestrator = orchestrator
        shutil.copy(ENDPOINTS / f"{module}.py", folder)
        env = {
            **os.environ,
            "SCHEDULER_ADDR": orchestrator.address,
            "USER_MODULES": module,
            "WORKER_ID": "shop-1",
            "AUTH_TOKEN": "canary-token",
            "DEPLOYMENT_ID": "shop",
            "RECONNECT_DELAY": "0.05",
            "RECONNECT_JITTER_SECONDS": "0",
            "WORKER_MAX_OUTPUT_DELTA_BYTES": "1000",
            "WORKER_MAX_OUTPUT_DELTA_EVENTS": "100",
            "WORKER_MAX_INPUT_BYTES": "1M",
            "WORKER_MAX_OUTPUT_BYTES": "1M",
            "WORKER_MAX_WS_FRAME_BYTES": "100000",
            "WORKER_DRAIN_TIMEOUT_SECONDS": "5",
            "WORKER_FAKE_GPU_COUNT": "2",
            "WORKER_FAKE_GPU_NAME": "H100",
            "GEN_WORKER_DEVICES": "cpu:2",
            "GEN_WORKER_RUN_DIR": str(folder / "run"),
            "WORKER_RUN_DIR": str(folder / "runs"),
            "TENSORHUB_CACHE_DIR": str(folder / "cache"),
            "ENDPOINT_LOCK_PATH": str(folder / "none"),
            "SHOP_FOLDER": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            **variables,
        }
        env.pop("ORCHESTRATOR_PUBLIC_ADDR", None)
        self.devices = env["GEN_WORKER_DEVICES"]
        with (folder / "log").open("wb") as log:
            command = [sys.executable, "-m", "gen_worker.entrypoint"]
            self.process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def open(self, gate: str) -> None:
        (self.folder / gate).touch()

    def close_gates(self) -> None:
        for waits in self.folder.glob("*-waits"):
            waits.unlink()
            waits.with_name(waits.name.removesuffix("-waits")).unlink(missing_ok=True)

    def until_waits(self, gate: str) -> None:
        until((self.folder / f"{gate}-waits").exists)


def ended(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(CLOSE_S)
            except subprocess.TimeoutExpired:
                continue


@contextmanager
def working(folder: Path, module: str = "earlier_shop", **variables: str) -> Iterator[tuple[Shop, Stream]]:
    """Run a worker, both of whose children are there, until the body ends."""
    with EarlierOrchestrator() as orchestrator:
        shop = Shop(folder, orchestrator, module, **variables)
        try:
            stream = orchestrator.stream()
            until(lambda: shop.log().count(" ready after ") == int(shop.devices[-1]))
            yield shop, stream
        except AssertionError as error:
            raise AssertionError(f"{error}\nits log ends:\n{shop.log()[-4000:]}") from None
        finally:
            ended(shop.process)


@pytest.fixture
def shop(one_shop: tuple[Shop, Stream]) -> tuple[Shop, Stream]:
    """Return the worker and its connection as no test has used them."""
    worker, stream = one_shop
    worker.close_gates()
    stream.forget()
    return one_shop


@pytest.fixture(scope="module")
def one_shop(grpc_awake: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shop, Stream]]:
    """One worker for all tests that cost it no child and no connection."""
    with working(tmp_path_factory.mktemp("shop")) as (worker, stream):
        stream.run("measure", {"asset": {"ref": "http://127.0.0.1:1/x"}}, run_id="private")  # starts its fetcher
        assert "is not asked for a file" in stream.result("private").error_message
        yield worker, stream


def unpacked(result: TaskExecutionResult) -> dict[str, object]:
    assert result.success, result
    return msgspec.msgpack.decode(result.output_payload, type=dict[str, object])


def pieces(stream: Stream, run_id: str) -> list[tuple[str, object]]:
    told = [each for each in stream.heard if isinstance(each, WorkerEvent) and each.run_id == run_id]
    return [(each.event_type, msgspec.json.decode(each.payload_json)) for each in told]


def test_a_worker_registers_itself_with_its_functions_and_its_host(shop: tuple[Shop, Stream]) -> None:
    _, stream = shop
    told = next(each for each in stream.heard if isinstance(each, WorkerRegistration))
    assert not told.is_heartbeat
    found = told.resources
    assert {"greet_all", "count_up", "echo_back", "shout"} <= set(found.available_functions)
    assert (found.worker_id, found.deployment_id, found.gpu_count, found.gpu_name) == ("shop-1", "shop", 2, "H100")
    assert found.gpu_memory_bytes == 2 * (24 << 30)
    assert found.cpu_cores > 0
    assert found.memory_bytes > 0
    assert dict(found.function_concurrency) == {"gated": 1}
    schemas = {each.name: each for each in found.function_schemas}
    assert "text" in msgspec.json.decode(schemas["greet_all"].input_schema_json)["properties"]
    assert schemas["count_up"].incremental_output
    assert not schemas["greet_all"].incremental_output


def test_the_worker_shows_its_token_and_nobody_else_sees_it(shop: tuple[Shop, Stream]) -> None:
    worker, _ = shop
    assert worker.orchestrator.metadata[0]["authorization"] == "Bearer canary-token"
    assert "canary-token" not in worker.log()


@pytest.mark.parametrize("name", ["greet_all", "greet-all"])
def test_a_function_runs_under_either_of_its_names_and_says_how_far_it_is(shop: tuple[Shop, Stream], name: str) -> None:
    _, stream = shop
    stream.run(name, {"text": "ada"}, run_id=name, tenant_id="acme")
    assert unpacked(stream.result(name)) == {"text": "hello ada of acme", "ref": ""}
    progress, log, own, disguised = pieces(stream, name)
    assert progress == ("job.progress", {"progress": 0.5, "stage": "half"})
    assert log == ("job.log", {"message": "greeting", "level": "warning"})
    assert own == ("shop.greeted", {"whom": "ada"})
    assert disguised[0] == "job.log", "what a function returns nobody else tells of"


def test_a_function_of_the_other_api_answers_over_this_wire(shop: tuple[Shop, Stream]) -> None:
    _, stream = shop
    stream.run("shout", {"text": "hi"}, run_id="shout")
    assert unpacked(stream.result("shout"))["text"] == "HI"


def test_a_stream_comes_in_pieces_and_those_that_are_too_long_are_said_to_be(shop: tuple[Shop, Stream]) -> None:
    _, stream = shop
    stream.run("count_up", {"times": 40}, run_id="count")
    stream.run("count_up", {"times": 1, "text": "x" * 2000}, run_id="long")
    assert stream.result("count") == TaskExecutionResult(run_id="count", success=True)
    whole = [("output.delta", {"text": f"{number}", "ref": ""}) for number in range(40)]
    assert pieces(stream, "count") == [*whole, ("output.completed", {})]
    stream.run("count_up", {"times": 200}, run_id="many")
    assert stream.result("many").success
    assert len(pieces(stream, "many")) == 101  # with the end of it
    stream.result("long")
    assert pieces(stream, "long") == [("output.delta", {"truncated": True}), ("output.completed", {})]


def test_a_stream_that_fails_ends_with_its_error(shop: tuple[Shop, Stream]) -> None:
    _, stream = shop
    stream.run("count_wrong", {}, run_id="wrong")
    result = stream.result("wrong")
    assert (result.success, result.error_type, result.retryable) == (False, "validation", False)
    assert result.safe_message == "no such number in [path]"
    assert result.error_message == "ValueError: no such number in /secret/folder/file.txt"
    told = {"error_type": "validation", "message": "no such number in [path]"}
    assert pieces(stream, "wrong")[-1] == ("output.error", told)


@pytest.mark.parametrize(
    ("text", "kind", "retryable", "safe"),
    [
        ("fatal", "fatal", False, "it is over"),
        ("retryable", "retryable", True, "come again"),
        ("other", "internal", False, "internal error"),
        ("other type", "internal", False, "internal error"),
    ],
)
def test_an_exception_is_told_by_its_type(
    shop: tuple[Shop, Stream], text: str, kind: str, retryable: bool, safe: str
) -> None:
    _, stream = shop
    stream.run("fail", {"text": text}, run_id=text)
    result = stream.result(text)
    assert (result.error_type, result.retryable, result.safe_message) == (kind, retryable, safe)


def test_what_cannot_be_run_is_refused_with_a_result(shop: tuple[Shop, Stream]) -> None:
    worker, stream = shop
    stream.run("absent", {}, run_id="absent")
    assert stream.result("absent").error_type == "internal"
    stream.run("greet_all", {"text": 7}, run_id="misfit")
    assert stream.result("misfit").error_type == "validation"
    stream.run("greet_all", {"text": "x" * (1 << 20)}, run_id="too-long")
    assert stream.result("too-long").error_type == "validation"
    assert stream.result("too-long").error_message.endswith("the limit is 1048576 (`WORKER_MAX_INPUT_BYTES`)")
    stream.run("greet_all", {"text": "x" * ((1 << 20) - 20)}, run_id="longer")
    assert stream.result("longer").error_type == "validation"
    assert stream.result("longer").error_message.endswith("the limit is 1048576 (`WORKER_MAX_OUTPUT_BYTES`)")
    stream.run("gated", {"text": "one"}, run_id="one")
    worker.until_waits("one")
    stream.run("gated", {"text": "two"}, run_id="two")
    busy = stream.result("two")
    assert (busy.error_type, busy.retryable, busy.error_message) == ("retryable", True, "worker busy")
    stream.run("gated", {"text": "one"}, run_id="one")  # it runs already: nothing is said
    worker.open("one")
    assert unpacked(stream.result("one"))["text"] == "one"
    assert len(stream.results("one")) == 1


def test_a_run_ends_when_it_is_interrupted_and_when_its_time_is_over(shop: tuple[Shop, Stream]) -> None:
    worker, stream = shop
    stream.run("polite", {"text": "never"}, run_id="interrupted")
    worker.until_waits("never")
    stream.say(InterruptTaskCommand(run_id="interrupted"))
    assert stream.result("interrupted").error_type == "canceled"
    stream.run("polite", {"text": "late"}, run_id="late", timeout_ms=200)
    late = stream.result("late")
    assert (late.success, late.error_type, late.error_message) == (False, "fatal", "deadline exceeded")


def test_files_go_both_ways_over_the_file_api(shop: tuple[Shop, Stream], tmp_path: Path) -> None:
    _, stream = shop
    lines: list[str] = []
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "a b.txt").write_text("from the store")
    with FileApi(tmp_path, ("127.0.0.1", 0), token="file-token", tell=lines.append) as api:
        where = {"file_base_url": api.url, "file_token": "file-token", "tenant_id": "acme"}
        stream.run("keep", {"text": "out.bin"}, run_id="put", **where)
        assert unpacked(stream.result("put"))["ref"] == "runs/put/outputs/out.bin"
        assert (tmp_path / "runs/put/outputs/out.bin").read_bytes() == b"abc"
        stream.run("keep", {"text": "out.bin"}, run_id="refused", **(where | {"file_token": "another"}))
        refused = stream.result("refused")
        assert (refused.error_type, refused.retryable) == ("auth", False)
        stream.run("keep", {"text": "once.bin", "times": 300_000}, run_id="post", **where)
        assert stream.result("post").success
        assert (tmp_path / "runs/post/outputs/once.bin").stat().st_size == 300_000
        stream.run("keep", {"text": "runs/post/outputs/once.bin", "times": 5}, run_id="post", **where)
        again = stream.hear(TaskExecutionResult, lambda result: result.run_id == "post")
        assert "already exists" in again.error_message
        stream.run("measure", {"asset": {"ref": "inputs/a b.txt"}}, run_id="read", **where)
        digest = hashlib.sha256(b"from the store").hexdigest()
        assert unpacked(stream.result("read")) == {"text": "from the store", "ref": f"acme {digest}"}
        stream.run("measure", {"asset": {"ref": "inputs/../../x"}}, run_id="astray", **where)
        assert stream.result("astray").error_type == "validation"
    assert any(line.startswith("HEAD ") for line in lines)


def hear_close(stream: Stream, session_id: str) -> str:
    return stream.hear(RealtimeCloseCommand, lambda told: told.session_id == session_id).reason


def test_a_session_echoes_until_either_side_closes_it(shop: tuple[Shop, Stream]) -> None:
    _, stream = shop
    stream.say(RealtimeOpenCommand(session_id="s", function_name="echo_back"))
    sent = [b"%d" % number * 1000 for number in range(100)] + [b"y" * 90_000]
    stream.say(*(RealtimeFrame(session_id="s", data=data) for data in sent))
    heard = [stream.hear(RealtimeFrame).data for _ in sent]
    assert heard == sent
    stream.say(RealtimeCloseCommand(session_id="s", reason="gone"))
    assert hear_close(stream, "s") == "completed"


@pytest.mark.parametrize(
    ("function", "said", "reason"),
    [
        ("absent", b"", "unknown_function"),
        ("greet_all", b"", "unknown_function"),
        ("echo_back", b"bye", "closed"),
        ("echo_back", b"boom", "error:KeyError"),
        ("echo_back", b"z" * 100_001, "frame_too_large"),
        ("echo_back", b"grow", "frame_too_large"),
    ],
)
def test_why_a_session_is_over_is_told(shop: tuple[Shop, Stream], function: str, said: bytes, reason: str) -> None:
    _, stream = shop
    session_id = f"{function}-{reason}-{len(said)}"
    stream.say(RealtimeOpenCommand(session_id=session_id, function_name=function))
    stream.say(RealtimeFrame(session_id=session_id, data=said))
    assert hear_close(stream, session_id) == reason
    assert all(each.session_id != session_id for each in stream.heard if isinstance(each, RealtimeFrame))


def test_a_peer_with_an_endless_name_or_reason_costs_nobody_a_child(shop: tuple[Shop, Stream]) -> None:
    worker, stream = shop
    deaths = worker.log().count(" died: ")
    stream.say(RealtimeOpenCommand(session_id="s" * 100_000, function_name="echo_back"))
    assert hear_close(stream, "s" * 100_000) == "session_id_too_long"
    stream.say(RealtimeOpenCommand(session_id="wordy", function_name="echo_back"))
    stream.say(RealtimeCloseCommand(session_id="wordy", reason="r" * 100_000))
    assert hear_close(stream, "wordy") == "completed"
    assert worker.log().count(" died: ") == deaths


def test_a_peer_that_speaks_faster_than_its_handler_listens_loses_nothing(shop: tuple[Shop, Stream]) -> None:
    worker, stream = shop
    stream.say(RealtimeOpenCommand(session_id="fast", function_name="slow_ear"))
    until((worker.folder / "ear-waits").exists)
    stream.say(*(RealtimeFrame(session_id="fast", data=b"x" * 1000) for _ in range(500)))
    worker.open("ear")
    stream.say(RealtimeCloseCommand(session_id="fast", reason="done"))
    stream.say(RealtimeFrame(session_id="fast", data=b"after its end"), RealtimeCloseCommand(session_id="fast"))
    answer = stream.hear(RealtimeFrame, lambda frame: frame.session_id == "fast")
    assert (answer.is_text, msgspec.json.decode(answer.data)) == (True, {"heard": 500_000})
    assert hear_close(stream, "fast") == "completed"


def test_no_death_and_no_cut_costs_a_result_and_a_worker_leaves_in_order(grpc_awake: None, tmp_path: Path) -> None:
    with working(tmp_path) as (worker, stream):
        stream.run("fail", {"text": "die"}, run_id="died")
        result = stream.result("died")
        assert (result.success, result.error_type, result.retryable) == (False, "retryable", True)
        for run_id in ("cut-1", "cut-2"):
            stream.run("polite", {"text": run_id}, run_id=run_id)
            worker.until_waits(run_id)
        stream.cut()
        worker.open("cut-1")
        again = worker.orchestrator.stream()
        again.run("fail", {"text": "die"}, run_id="died")  # its result may have been lost: it comes once more
        worker.open("cut-2")
        for run_id in ("cut-1", "cut-2"):
            assert unpacked(again.result(run_id))["text"] == run_id
        worker.close_gates()  # a run that came once more would say so
        again.run("polite", {"text": "cut-1"}, run_id="cut-1")  # its output has crossed with that
        until(lambda: len(again.results("cut-1")) == 2)
        assert len(set(again.results("cut-1"))) == 1
        assert not (worker.folder / "cut-1-waits").exists()
        again.run("polite", {"text": "last"}, run_id="last")
        worker.until_waits("last")
        worker.process.send_signal(signal.SIGTERM)
        until(lambda: "draining" in worker.log())
        again.run("greet_all", {}, run_id="refused")
        assert again.result("refused").error_message == "worker busy"
        worker.open("last")
        assert again.result("last").success
        assert worker.process.wait(CLOSE_S) == 0
        assert [len(again.results(run_id)) for run_id in ("cut-2", "last")] == [1, 1]
        assert [len(each.results("died")) for each in (stream, again)] == [1, 1]


def test_a_session_ends_with_its_child_and_what_that_had_taken_is_not_said_again(
    grpc_awake: None, tmp_path: Path
) -> None:
    with working(tmp_path, GEN_WORKER_DEVICES="cpu:1") as (worker, stream):
        stream.say(RealtimeOpenCommand(session_id="s", function_name="echo_back"))
        stream.say(*(RealtimeFrame(session_id="s", data=data) for data in (b"first", b"die", b"after")))
        assert stream.hear(RealtimeFrame).data == b"first"
        assert hear_close(stream, "s") == "error:child_died"
        stream.say(RealtimeFrame(session_id="s", data=b"nobody hears it"))
        stream.say(RealtimeOpenCommand(session_id="s", function_name="echo_back"))  # the name is free again
        stream.say(RealtimeFrame(session_id="s", data=b"second"), RealtimeCloseCommand(session_id="s"))
        assert stream.hear(RealtimeFrame).data == b"second"
        assert hear_close(stream, "s") == "completed"
        assert worker.log().count(" died: ") == 1


def test_a_session_that_was_cut_says_nothing_over_the_next_connection_where_its_name_is_free_again(
    grpc_awake: None, tmp_path: Path
) -> None:
    with working(tmp_path, GEN_WORKER_DEVICES="cpu:1") as (worker, stream):
        stream.say(RealtimeOpenCommand(session_id="s", function_name="echo_back"))
        stream.say(RealtimeFrame(session_id="s", data=b"first"))
        assert stream.hear(RealtimeFrame).data == b"first"
        stream.cut()
        again = worker.orchestrator.stream()

        def answered() -> bool:
            before = len(again.heard)
            again.say(RealtimeOpenCommand(session_id="s", function_name="echo_back"))
            again.say(RealtimeFrame(session_id="s", data=b"second"))
            kinds = (RealtimeFrame, RealtimeCloseCommand)
            first, *_ = until(lambda: [each for each in again.heard[before:] if isinstance(each, kinds)])
            return isinstance(first, RealtimeFrame)

        until(answered)
        again.say(RealtimeCloseCommand(session_id="s"))
        again.hear(RealtimeCloseCommand, lambda told: told.reason == "completed")
        said = [each for each in again.heard if isinstance(each, RealtimeFrame | RealtimeCloseCommand)]
        assert {each.data for each in said if isinstance(each, RealtimeFrame)} == {b"second"}
        assert {each.reason for each in said if isinstance(each, RealtimeCloseCommand)} <= {"worker_busy", "completed"}


WORDS, LINES = "hf:acme/words", "cozy:acme/lines:beta"


def until_places(stream: Stream, hot: tuple[str, ...], warm: tuple[str, ...]) -> None:
    def there(told: WorkerRegistration) -> bool:
        return (tuple(told.resources.vram_models), tuple(told.resources.disk_models)) == (hot, warm)

    stream.hear(WorkerRegistration, there)


def test_heartbeats_say_where_models_are_and_commands_move_them(grpc_awake: None, tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        hub.add_repo("acme/words", {"words.txt": b"some words"})
        hub.add_snapshot("acme/lines", {"lines.txt": b"some lines"}, tag="beta")
        with working(tmp_path, "earlier_reader", GEN_WORKER_DEVICES="cpu:1", **hub.variables()) as (_, stream):
            until_places(stream, (LINES, WORDS), ())
            stream.run("words", {}, run_id="words")
            assert unpacked(stream.result("words"))["text"] == "some words"
            stream.say(UnloadModelCommand(model_id=WORDS))
            assert stream.hear(UnloadModelResult) == UnloadModelResult(model_id=WORDS, success=True)
            until_places(stream, (LINES,), (WORDS,))
            stream.say(LoadModelCommand(model_id=WORDS))
            assert stream.hear(LoadModelResult) == LoadModelResult(model_id=WORDS, success=True)
            until_places(stream, (LINES, WORDS), ())
            stream.say(LoadModelCommand(model_id="cozy:acme/none:beta"))
            assert not stream.hear(LoadModelResult).success
