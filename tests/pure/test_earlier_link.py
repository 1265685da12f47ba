"""What a worker decides towards an orchestrator of the earlier generation."""

import re
import sys
from pathlib import Path

import msgspec
import pytest

from gen_worker.models.wanted import Slot, Wanted
from gen_worker.pb.convert_earlier import decode, encode
from gen_worker.settings import Settings
from gen_worker.wire.earlier import (
    MESSAGE_BYTES,
    DeploymentModelConfig,
    RealtimeFrame,
    Report,
    TaskExecutionRequest,
    TaskExecutionResult,
    WorkerEvent,
    WorkerRegistration,
    WorkerResources,
)
from gen_worker.wire.survey import SurveyedFunction, SurveyedInjection
from gen_worker_supervisor.core.outcomes import failure
from gen_worker_supervisor.core.phases import JobState
from gen_worker_supervisor.core.state import Function, Outcome
from gen_worker_supervisor.earlier_link.answers import close_reason, error_type, failed, refused, safe_text
from gen_worker_supervisor.earlier_link.dialing import UNHEARD_TRIES, EarlierDialing, Patience
from gen_worker_supervisor.earlier_link.jobs import COMPARED_BYTES, fingerprint, sendable
from gen_worker_supervisor.earlier_link.outbox import EarlierOutbox
from gen_worker_supervisor.earlier_link.registration import Host, Versions, model_id, resources, versions
from gen_worker_supervisor.earlier_link.required import NotRequirableError, described_models, required
from gen_worker_supervisor.earlier_link.results import CROSSING_S, DOUBTED_S, Results
from gen_worker_supervisor.link.dialing import UNHEARD, Dial, Ended, Fatal
from gen_worker_supervisor.link.refs import wanted_of
from gen_worker_supervisor.link.target import Target, parse_target
from tests.pure import host as fleet

LOST = Ended("UNAVAILABLE", "gone", 5.0, acknowledged=True)
REFUSED = Ended("UNAVAILABLE", "refused")


def raised(*names: str, kind: str = "user_exception", retryable: bool = False) -> Outcome:
    outcome = failure(kind, f"{names[0]}: told", retryable=retryable)  # type: ignore[arg-type]
    outcome.raised = names
    return outcome


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (raised("CanceledError", "WorkerError", kind="canceled"), "canceled"),
        (raised("InterruptedError", "OSError"), "canceled"),
        (raised("ValidationError", "WorkerError", kind="invalid"), "validation"),
        (raised("UnicodeDecodeError", "ValueError", kind="invalid"), "validation"),
        (raised("RetryableError", kind="retryable"), "retryable"),
        (raised("Busy", "RetryableError", kind="retryable"), "retryable"),
        (raised("ResourceError"), "resource"),
        (raised("OutOfMemoryError", "RuntimeError", kind="out_of_memory"), "resource"),
        (raised("FatalError"), "fatal"),
        (raised("WrongTypeError", "FatalError"), "internal"),
        (raised("AuthError"), "auth"),
        (raised("KeyError", "LookupError"), "internal"),
        (failure("usage", "no such field"), "validation"),
        (failure("killed", "killed by an operator"), "canceled"),
        (failure("deadline", "deadline exceeded"), "fatal"),
        (failure("child_died", "SIGKILL", retryable=True), "retryable"),
        (failure("draining", "shutting down", retryable=True), "retryable"),
        (failure("unavailable", "no model", retryable=True), "retryable"),
        (failure("model_resolution", "not there"), "fatal"),
        (failure("model_resolution", "not reached", retryable=True), "retryable"),
        (failure("quarantined", "it kills"), "fatal"),
        (failure("internal", "no memory"), "internal"),
        (Outcome(JobState.OK), ""),
    ],
)
def test_each_end_has_its_type(outcome: Outcome, kind: str) -> None:
    assert error_type(outcome) == kind
    assert failed("r", outcome, str).retryable == (kind == "retryable")


def test_what_is_shown_names_no_class_address_path_or_token() -> None:
    outcome = raised("FatalError")
    outcome.message = "FatalError: cannot read /home/me/model.bin from https://u:p@host/x?sig=1 with Bearer abc.def"
    result = failed("r", outcome, str)
    assert result.safe_message == "cannot read [path] from [url] with Bearer [secret]"
    assert result.error_message.startswith("FatalError: cannot read /home/me/model.bin from ")
    assert "sig=1" not in result.error_message
    assert "abc.def" not in result.error_message
    assert len(safe_text("x" * 9000)) == 500


def test_an_unexpected_exception_shows_nothing_of_itself() -> None:
    assert failed("r", raised("KeyError"), str).safe_message == "internal error"


@pytest.mark.parametrize(
    ("outcome", "closed", "reason"),
    [
        (Outcome(JobState.OK), False, "completed"),
        (Outcome(JobState.OK), True, "closed"),
        (raised("KeyError", "LookupError"), False, "error:KeyError"),
        (failure("canceled", "canceled"), False, "canceled"),
        (failure("child_died", "SIGKILL", retryable=True), False, "error:child_died"),
    ],
)
def test_why_a_session_is_over(outcome: Outcome, closed: bool, reason: str) -> None:
    assert close_reason(outcome, closed=closed) == reason


# --- results ----------------------------------------------------------------------------------------------------------


def result(run_id: str, size: int = 0) -> TaskExecutionResult:
    return TaskExecutionResult(run_id=run_id, success=True, output_payload=b"x" * size)


def test_a_result_waits_until_it_is_written_and_is_doubted_for_a_while() -> None:
    results = Results()
    results.add(result("a"))
    assert results.waits("a", 0, 1.0)
    results.written(result("a"), 0.0)
    assert results.all_written
    assert results.doubted(DOUBTED_S - 1) == [result("a")]
    assert results.waits("a", 0, 1.0)
    results.written(result("a"), 0.0)
    assert results.doubted(DOUBTED_S) == []
    assert results.all_written


def test_a_run_that_is_asked_for_again_while_its_result_leaves_is_not_passed_over() -> None:
    results = Results()
    results.add(result("a"))
    results.leaving("a")
    assert not results.waits("a", 0, 1.0)
    results.disconnected()
    assert results.waits("a", 0, 1.0)


def test_a_run_that_comes_again_is_another_one() -> None:
    results = Results()
    results.add(result("a"))
    results.written(result("a"), 0.0)
    results.forget("a")
    assert results.doubted(1.0) == []


def test_a_run_that_is_asked_for_over_a_new_connection_while_its_output_arrives_is_not_run_again() -> None:
    results = Results()
    results.add(result("a", 5), request=1)
    results.leaving("a")
    assert not results.waits("a", 1, 9.0), "over a connection that lasts nobody asks for what is on its way"
    results.disconnected()
    assert results.doubted(10.0) == []
    results.leaving("a")
    assert results.waits("a", 1, 10.0)
    assert not results.waits("a", 2, 10.0)
    results.written(result("a", 5), 10.0)
    assert results.crossed_with("a", 1, 11.0) == result("a", 5)
    assert results.crossed_with("a", 2, 11.0) is None, "other words are another run"
    assert results.crossed_with("a", 1, 10.0 + CROSSING_S) is None
    assert results.add(result("a", 5), request=1) == []
    results.written(result("a", 5), 12.0)
    results.forget("a")
    assert results.crossed_with("a", 1, 12.0) is None


def test_an_input_that_is_too_long_to_be_compared_on_the_loop_is_no_other_ones() -> None:
    run = TaskExecutionRequest(run_id="a", function_name="f", input_payload=bytes(COMPARED_BYTES))
    longer = msgspec.structs.replace(run, input_payload=bytes(COMPARED_BYTES + 1))
    assert fingerprint(run) == fingerprint(msgspec.structs.replace(run, run_id="b"))
    assert fingerprint(longer) is None
    results = Results()
    results.add(result("a"), request=None)
    results.disconnected()
    results.doubted(9.0)
    results.written(result("a"), 10.0)
    assert results.crossed_with("a", None, 10.0) is None


def test_outputs_of_a_worker_that_idles_are_kept_no_longer_than_they_may_be_asked_for() -> None:
    results = Results()
    results.add(output := result("a", 5), request=1)
    results.written(output, 0.0)
    kept = sys.getrefcount(output)
    results.tick(DOUBTED_S - 1)
    assert sys.getrefcount(output) == kept
    results.tick(DOUBTED_S)
    assert sys.getrefcount(output) < kept


def test_of_outputs_that_were_written_only_so_many_bytes_are_kept() -> None:
    results = Results(kept_bytes=10)
    for run_id in ("a", "b", "b", "c"):
        results.add(result(run_id, 5))
        results.written(result(run_id, 5), 0.0)
    assert results.doubted(1.0) == [result("b", 5), result("c", 5)]
    for run_id in ("b", "c"):
        results.written(result(run_id, 5), 1.0)
    assert results.doubted(2.0) == [result("b", 5), result("c", 5)]


def test_a_failure_answers_only_the_request_that_failed() -> None:
    results = Results()
    results.disconnected()
    results.doubted(9.0)
    results.add(refused("a", "retryable", "the child died"), request=1)
    results.written(refused("a", "retryable", "the child died"), 10.0)
    assert results.crossed_with("a", 1, 10.0) is None


def test_of_outputs_that_cannot_all_be_kept_the_oldest_are_asked_for_again() -> None:
    results = Results(kept_bytes=10)
    outbox = EarlierOutbox()
    for run_id in ("a", "b", "c"):
        for each in (*results.add(result(run_id, 5)), result(run_id, 5)):
            outbox.put(each)
    gone = refused("a", "retryable", "the output could not be kept for so long")
    assert [outbox.pop() for _ in range(4)] == [gone, result("b", 5), result("c", 5), None]


def test_an_output_that_is_being_written_is_not_asked_for_again() -> None:
    results = Results(kept_bytes=10)
    results.add(result("a", 5))
    results.leaving("a")
    results.add(result("b", 5))
    gone = refused("b", "retryable", "the output could not be kept for so long")
    assert results.add(result("c", 5)) == [gone]


# --- dialing ----------------------------------------------------------------------------------------------------------


def dialing(*addresses: str, **patience: float) -> EarlierDialing:
    targets = tuple(parse_target(address) for address in addresses)
    return EarlierDialing(targets, Patience(**patience), lambda low, high: high)  # type: ignore[arg-type]


def test_pauses_double_up_to_a_bound_and_begin_anew_after_a_connection() -> None:
    it = dialing("a:1", delay_s=5.0, max_delay_s=30.0, jitter_s=1.0)
    target = Target("a", 1, False)
    assert [it.ended(REFUSED) for _ in range(4)] == [Dial(target, pause) for pause in (6.0, 11.0, 21.0, 31.0)]
    assert it.ended(LOST) == Dial(target, 6.0)


def test_each_address_is_tried_before_a_pause() -> None:
    it = dialing("a:1", "b:2", jitter_s=0.0)
    assert it.first().target.host == "a"
    assert it.ended(REFUSED) == Dial(Target("b", 2, False), 0.0)
    assert it.ended(REFUSED) == Dial(Target("a", 1, False), 5.0)


def test_who_is_not_the_leader_says_who_is() -> None:
    it = dialing("a:1")
    found = it.ended(Ended("FAILED_PRECONDITION", "not_leader:c:3"))
    assert found == Dial(Target("c", 3, False), redirect=True)


def test_whose_refusal_was_not_heard_is_asked_again_at_once_a_few_times() -> None:
    it = dialing("a:1", delay_s=5.0, jitter_s=0.0, attempts=1)
    unheard, target = Ended("INTERNAL", UNHEARD), Target("a", 1, False)
    assert [it.ended(unheard) for _ in range(UNHEARD_TRIES)] == [Dial(target)] * UNHEARD_TRIES
    assert it.ended(unheard) == Dial(target, 5.0)
    assert isinstance(it.ended(REFUSED), Fatal)


def test_after_so_many_attempts_in_a_row_it_is_over() -> None:
    it = dialing("a:1", attempts=2)
    assert isinstance(it.ended(REFUSED), Dial)
    assert isinstance(it.ended(REFUSED), Dial)
    assert isinstance(it.ended(REFUSED), Fatal)


# --- the outbox -------------------------------------------------------------------------------------------------------


def event(kind: str) -> WorkerEvent:
    return WorkerEvent(run_id="r", event_type=kind)


def test_what_jobs_say_of_themselves_gives_way_and_nothing_that_they_make() -> None:
    outbox = EarlierOutbox(bound=1)
    assert outbox.put(event("output.delta"))
    assert not outbox.put(event("job.log"))
    assert outbox.put(event("output.delta"))
    assert outbox.put(result("r"))
    outbox.put_back(event("output.completed"))
    assert outbox.pop() == event("output.completed")
    assert len(outbox) == 3


def test_another_connection_gets_results_and_items_and_neither_old_heartbeats_nor_sessions() -> None:
    outbox = EarlierOutbox()
    heartbeat = WorkerRegistration(resources=WorkerResources(worker_id="w"), is_heartbeat=True)
    kept: list[Report] = [event("output.delta"), result("r")]
    said: list[Report] = [heartbeat, heartbeat, RealtimeFrame(session_id="s"), *kept]
    for message in said:
        outbox.put(message)
    outbox.disconnected()
    assert [outbox.pop(), outbox.pop(), outbox.pop()] == [*kept, None]


# --- the registration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "written"),
    [
        (Wanted("hf", "a/b"), "hf:a/b"),
        (Wanted("hf", "a/b", revision="v1"), "hf:a/b@v1"),
        (Wanted("tensorhub", "a/b", tag="latest"), "cozy:a/b:latest"),
        (Wanted("tensorhub", "a/b"), "cozy:a/b:prod"),
        (Wanted("tensorhub", "a/b", digest="sha256:ab"), "cozy:a/b@sha256:ab"),
        (Wanted("civitai", "12", version="34"), "civitai:12@34"),
        (Wanted("modelscope", "a/b"), "modelscope:a/b"),
    ],
)
def test_models_are_called_as_the_earlier_generation_writes_them(wanted: Wanted, written: str) -> None:
    assert model_id(wanted) == written
    assert model_id(wanted_of(written, {})) == written, "what a worker is told is what it has said"


@pytest.mark.parametrize("limit", [0, 100, 1 << 40])
def test_nothing_is_sent_that_the_wire_would_drop(limit: int) -> None:
    assert sendable(limit) < MESSAGE_BYTES
    assert limit != 100 or sendable(limit) == 100


def test_figures_that_the_wire_cannot_carry_are_the_most_that_it_can() -> None:
    variables = {
        "WORKER_MAX_CONCURRENCY": "1000000000000",
        "WORKER_FAKE_GPU_COUNT": "10000000000",
        "WORKER_FAKE_GPU_MEMORY_BYTES": str(10**17),
    }
    settings = Settings.load(env=variables, folder=Path("/nowhere"), root=Path("/nowhere"))
    asked = Function(msgspec.structs.replace(fleet.function().own, max_concurrency=1 << 31))
    host = Host("w", cpu_cores=4, memory_bytes=1 << 34, gpu_driver="", versions=Versions())
    told = resources(
        fleet.Host(asked).fleet, host, settings, available=(), schemas=(), hot=(), warm=(), free_vram_bytes=0
    )
    found = decode(encode(WorkerRegistration(resources=told)))
    assert isinstance(found, WorkerRegistration)
    most = found.resources
    counts = (most.max_concurrency, most.gpu_count, *dict(most.function_concurrency).values())
    assert counts == ((1 << 31) - 1,) * 3
    assert most.gpu_memory_bytes == most.gpu_memory_free_bytes == (1 << 63) - 1


def test_versions_are_those_that_are_set_before_those_that_are_found() -> None:
    settings = Settings.load(env={"WORKER_TORCH_VERSION": "2.9.1+cu128", "WORKER_TENSORRT_VERSION": "10.9"})
    found = versions(settings)
    assert (found.torch, found.cuda, found.tensorrt) == ("2.9.1+cu128", "12.8", "10.9")


def needing(*slots: tuple[str, str, str]) -> SurveyedFunction:
    """Return an earlier function with models, each a parameter, a key and a repository; it may ask for `note`."""
    injections = [SurveyedInjection(param, "str", "deployment", key) for param, key, _ in slots]
    bound = [Slot(param, Wanted("tensorhub", repo, tag="latest")) for param, _, repo in slots]
    keys = {"note": "hf:acme/note", **{key: f"cozy:{repo}" for _, key, repo in slots}}
    return SurveyedFunction(
        "f", "f", "", "", "sync", "device", False, None, bound, injections=injections, model_keys=keys
    )


@pytest.mark.parametrize(
    ("names", "config", "ids"),
    [
        (("acme/a", "cozy:acme/a:latest", "hf:acme/b"), DeploymentModelConfig(), ("cozy:acme/a:latest", "hf:acme/b")),
        (("lines",), DeploymentModelConfig(), ("cozy:acme/lines:latest",)),
        (("note",), DeploymentModelConfig(), ("hf:acme/note",)),
        (("lines",), DeploymentModelConfig(model_id_by_key={"lines": "hf:acme/c"}), ("hf:acme/c",)),
        (("elsewhere",), DeploymentModelConfig(), ()),
        (("acme/a:latest",), DeploymentModelConfig(supported_model_ids=("cozy:acme/a",)), ("cozy:acme/a:latest",)),
    ],
)
def test_a_run_requires_models_by_keys_and_by_ids(
    names: tuple[str, ...], config: DeploymentModelConfig, ids: tuple[str, ...]
) -> None:
    assert required(names, needing(("weights", "lines", "acme/lines")), config, {"elsewhere"}) == ids


@pytest.mark.parametrize(
    ("name", "config", "why"),
    [
        ("acme/b", DeploymentModelConfig(supported_model_ids=("acme/a",)), "is not one of this deployment's"),
        ("b", DeploymentModelConfig(model_id_by_key={"b": "x y"}), "`x y`, which is no model"),
        ("x" * 10_000, DeploymentModelConfig(), "is no model"),
    ],
)
def test_what_is_no_model_of_the_deployments_cannot_be_required(
    name: str, config: DeploymentModelConfig, why: str
) -> None:
    with pytest.raises(NotRequirableError, match=re.escape(why)) as raised:
        required((name,), needing(), config, ())
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(("text", "names"), [("", ()), ('{"a": {"root": "/x"}}', ("a",)), ("[", ()), ("[1]", ())])
def test_models_that_the_environment_describes_are_known_by_their_ids(text: str, names: tuple[str, ...]) -> None:
    assert described_models({"WORKER_MODEL_ARTIFACTS_JSON": text}) == frozenset(names)
