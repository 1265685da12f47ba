"""What an orchestrator describes, wants done with models and is told of them, as stories on the pure core."""

from typing import get_args

import pytest

from gen_worker.models.errors import ModelErrorKind
from gen_worker.models.wanted import Wanted
from gen_worker.wire.fetching import Fetch, FetchFailed, Fetching, Stocked
from gen_worker.wire.messages import Load, LoadFailed, Unload, Wants
from gen_worker.wire.scheduler import HelloAck, ModelOpKind, ModelResidency, ResidencyTier, Snapshot
from gen_worker_supervisor.core.actions import LetGo, OrderFetch
from gen_worker_supervisor.core.catalog import DIGESTS_KEPT
from gen_worker_supervisor.core.happenings import FetcherLost, FetcherReported
from gen_worker_supervisor.core.phases import JobState, ModelState
from gen_worker_supervisor.core.state import Function
from gen_worker_supervisor.link.residency import error_of
from tests.pure.host import KILLED, held_by, runs, sent
from tests.pure.linked import MIB, A, B, Worker, bound, described, gpu, hub

DOWNLOAD, LOAD, UNLOAD = ModelOpKind.DOWNLOAD, ModelOpKind.LOAD, ModelOpKind.UNLOAD
REF = "acme/m"


def worker(**options: object) -> Worker:
    """A worker with one GPU and a function whose model its orchestrator describes."""
    return Worker(bound("f", hub(REF)), devices=[gpu()], **options)  # type: ignore[arg-type]


# --- what is described ------------------------------------------------------------------------------------------------


def test_a_job_that_describes_its_model_has_it_fetched_as_described() -> None:
    the = worker()
    job = the.runs("f", {REF: described()})
    (probe,) = the.host.ordered(probe=True)
    assert (probe.wanted.provider, probe.wanted.repo, probe.wanted.digest) == ("tensorhub", REF, f"blake3:{A}")
    orders = [action for action in the.host.actions if isinstance(action, OrderFetch)]
    assert [file.url for file in orders[-1].described] == [f"https://store/{A}?1"]
    the.brings()
    (load,) = sent(the.host.actions, Load)
    assert [model.path for model in load.models] == [f"/cache/{REF}@blake3:{A}"]
    assert runs(the.loads()) == [job]


def test_a_model_that_nobody_described_is_asked_for_once_and_its_jobs_are_told_so() -> None:
    the = worker(eager=True)
    (probe,) = the.host.ordered()
    the.host.fetch_fails(probe, kind="not_configured")
    job = the.runs("f")
    answer = the.host.answer(job)
    assert (answer.state, answer.kind) == (JobState.RETRYABLE, "model_resolution")
    assert "has not said what it consists of" in answer.message
    the.host.passes(3600.0)
    assert the.host.ordered() == [probe]
    assert the.told() == []
    assert the.fleet.functions["f"].unavailable is None
    the.runs("f", {REF: described()})
    the.brings()
    assert len(sent(the.host.actions, Load)) == 1


def test_a_snapshot_with_another_digest_is_fetched_although_the_ref_is_known() -> None:
    the = worker()
    first = the.serves("f", {REF: described(A)})
    second = the.runs("f", {REF: described(B)})
    the.brings()
    assert {order.wanted.digest for order in the.host.ordered(probe=False)} == {f"blake3:{A}", f"blake3:{B}"}
    assert the.host.done(first) is not None
    (started,) = runs(the.loads())
    assert started is second


def test_a_job_keeps_the_snapshot_that_it_came_with() -> None:
    the = worker()
    running = the.serves("f", {REF: described(A)})
    waiting = the.runs("f", {REF: described(A)})
    later = the.runs("f", {REF: described(B)})
    assert waiting.instance == running.instance != later.instance
    assert not sent(the.host.actions, Unload)
    the.host.done(running)
    the.host.starts(waiting)
    the.host.done(waiting)
    assert [order.instance for order in sent(the.host.actions, Unload)] == [running.instance]
    the.brings()
    assert runs(the.loads()) == [later]
    assert list(the.fleet.named) == []
    assert [model.wanted.digest for model in the.fleet.catalog.models.values()] == [f"blake3:{B}"]
    assert f"key-{REF}@blake3:{A}" in [action.key for action in the.host.actions if isinstance(action, LetGo)]


def test_a_snapshot_that_comes_again_changes_nothing() -> None:
    the = worker()
    job = the.serves("f", {REF: described(A)})
    ordered = len(the.host.ordered())
    again = the.runs("f", {f" {REF}:prod": described(A, stamp="2")})
    assert again.function is job.function
    assert len(the.host.ordered()) == ordered


def test_the_download_of_a_superseded_snapshot_is_given_up_when_no_job_waits_for_it() -> None:
    the = worker()
    the.operates(DOWNLOAD, REF, described(A))
    (probe,) = the.host.ordered(probe=True)
    the.host.absent(probe)
    (first,) = the.host.ordered(probe=False)
    the.operates(DOWNLOAD, REF, described(B))
    the.brings()
    assert ("acme/m", "ON_DISK", "") in the.told()
    late = the.host.fetched(first)
    assert [action.key for action in late if isinstance(action, LetGo)] == [f"key-{REF}@blake3:{A}"]


def test_fresh_urls_of_the_same_digest_end_an_expiry_and_the_same_ones_do_not() -> None:
    the = worker()
    job = the.runs("f", {REF: described()})
    the.host.absent(*the.host.ordered(probe=True))
    the.host.fetch_fails(*the.host.ordered(probe=False), kind="url_expired", retryable=True)
    assert the.host.answer(job).state is JobState.RETRYABLE
    assert the.told()[-1] == (REF, "FAILED", "url_expired")
    ordered = len(the.host.ordered())
    refused = the.runs("f", {REF: described()})
    assert the.host.answer(refused).state is JobState.RETRYABLE
    assert len(the.host.ordered()) == ordered
    taken = the.runs("f", {REF: described(stamp="2")})
    assert the.host.unanswered(taken)
    the.brings()
    assert len(sent(the.host.actions, Load)) == 1


def test_urls_that_expire_while_fresh_ones_have_come_cost_nobody_anything() -> None:
    the = worker()
    job = the.runs("f", {REF: described()})
    the.host.absent(*the.host.ordered(probe=True))
    (first,) = the.host.ordered(probe=False)
    the.runs("f", {REF: described(stamp="2")})
    the.host.fetch_fails(first, kind="unauthorized")
    assert the.host.unanswered(job)
    orders = [action for action in the.host.actions if isinstance(action, OrderFetch)]
    assert [file.url for file in orders[-1].described] == [f"https://store/{A}?2"]
    the.brings()
    assert runs(the.loads())[0] is job


@pytest.mark.parametrize("kind", ["unauthorized", "gated", "not_found", "file_not_found", "url_expired"])
def test_whatever_a_described_url_is_refused_with_it_has_expired(kind: ModelErrorKind) -> None:
    the = worker()
    job = the.runs("f", {REF: described()})
    the.host.absent(*the.host.ordered(probe=True))
    the.host.fetch_fails(*the.host.ordered(probe=False), kind=kind, retryable=kind == "url_expired")
    assert the.host.answer(job).state is JobState.RETRYABLE
    assert the.told()[-1] == (REF, "FAILED", "url_expired")


def test_a_fetcher_that_dies_is_replaced_by_one_that_is_told_the_same() -> None:
    the = worker()
    job = the.runs("f", {REF: described()})
    the.host.absent(*the.host.ordered(probe=True))
    orders = [action for action in the.host.happens(FetcherLost()) if isinstance(action, OrderFetch)]
    assert [(type(each.order), [file.url for file in each.described]) for each in orders] == [
        (Fetch, [f"https://store/{A}?1"])
    ]
    the.brings()
    assert runs(the.loads()) == [job]


def test_a_snapshot_serves_a_model_of_another_provider_too() -> None:
    the = Worker(bound("f", Wanted("hf", "org/base", dtype="bf16")), devices=[gpu()])
    the.serves("f", {"org/base": described()})
    (wanted,) = {order.wanted for order in the.host.ordered()}
    assert (wanted.provider, wanted.digest, wanted.dtype) == ("tensorhub", f"blake3:{A}", "bf16")
    assert the.told()[-1] == ("org/base", "IN_VRAM", "")


# --- models that jobs name --------------------------------------------------------------------------------------------


def test_a_job_may_name_a_model_for_any_slot_and_it_is_loaded_as_the_binding_says() -> None:
    the = Worker(bound("f", hub(REF, dtype="bf16"), hub("acme/vae")), devices=[gpu()])
    mine = {"acme/other": described(B), "acme/vae": described(A)}
    function = the.function("f", mine, [("m0", "acme/other:v2"), ("m1", "acme/vae")])
    assert isinstance(function, Function)
    assert function.chosen
    assert [slot.wanted.ref for slot in function.surveyed.slots] == ["acme/other:v2", f"acme/vae@blake3:{A}"]
    mine = {"acme/other:v2": described(B)}
    function = the.function("f", mine, [("m0", "acme/other:v2")])
    assert isinstance(function, Function)
    (first, second) = function.surveyed.slots
    assert (first.wanted.ref, first.wanted.dtype) == (f"acme/other@blake3:{B}", "bf16")
    assert second.wanted.ref == f"acme/vae@blake3:{A}"


def test_a_snapshot_that_a_job_names_again_after_another_one_is_as_good_as_before() -> None:
    the = worker()
    named = [("m0", "acme/other")]
    first = the.runs("f", {"acme/other": described(A)}, named)
    the.runs("f", {"acme/other": described(B)}, named)
    again = the.runs("f", {"acme/other": described(A)}, named)
    assert again.function is first.function
    assert again.function not in the.fleet.superseded
    assert len(the.fleet.superseded) == 1


def test_a_job_that_names_what_is_bound_runs_as_the_function_does() -> None:
    the = worker()
    function = the.function("f", {REF: described()}, [("m0", f"{REF}:prod")])
    assert function is the.fleet.functions["f"]


@pytest.mark.parametrize(
    ("snapshots", "models", "told"),
    [
        ({}, [("m9", REF)], "no slot `m9` in `f`, there is: `m0`"),
        ({}, [("m0", "plain")], "`plain` has no owner"),
        ({"../x": described()}, [], "is no ref of the platform's hub"),
    ],
)
def test_a_job_that_names_what_cannot_be_is_invalid(
    snapshots: dict[str, Snapshot], models: list[tuple[str, str]], told: str
) -> None:
    found = worker().function("f", snapshots, models)
    assert isinstance(found, str)
    assert told in found


def test_a_payload_that_names_one_model_runs_with_what_the_others_were_described_as() -> None:
    the = Worker(bound("f", hub(REF), hub("acme/vae"), overrides=("*",)), devices=[gpu()])
    job = the.serves("f", {REF: described(A), "acme/vae": described(B)})
    own = the.fleet.functions["f"].own
    named = [own.slots[0], own.slots[1].__class__("m1", hub("acme/other"), ("*",))]
    instance = f"F?m1={hub('acme/other').key}"
    the.host.reports(held_by(job), Wants(job.number, instance, named))
    assert [slot.wanted.ref for slot in job.function.surveyed.slots] == [f"{REF}@blake3:{A}", "acme/other"]
    assert job.function.chosen
    assert the.host.unanswered(job)


# --- operations -------------------------------------------------------------------------------------------------------


def test_a_download_ends_on_disk_and_says_so() -> None:
    the = worker()
    the.operates(DOWNLOAD, REF, described())
    assert the.told() == []
    the.host.absent(*the.host.ordered(probe=True))
    assert the.told() == [(REF, "DOWNLOADING", "")]
    the.host.fetched(*the.host.ordered(probe=False))
    assert the.told() == [(REF, "ON_DISK", "")]
    the.operates(DOWNLOAD, REF)
    assert the.told() == [(REF, "ON_DISK", "")], "at least one event for each"
    assert not sent(the.host.actions, Load)


def test_a_model_that_no_function_has_is_downloaded_and_then_left_to_eviction() -> None:
    the = worker()
    the.operates(DOWNLOAD, "acme/other", described(B))
    the.brings()
    assert the.told() == [("acme/other", "ON_DISK", "")]
    assert [action.key for action in the.host.actions if isinstance(action, LetGo)] == [f"key-acme/other@blake3:{B}"]
    assert [each.ref for each in the.link.residency()] == ["acme/other"]
    the.link.acknowledged(HelloAck())
    the.models.on_evicted(f"acme/other@blake3:{B}")
    assert the.told() == [("acme/other", "EVICTED", "")]


def test_how_far_a_download_is_comes_at_most_every_five_seconds() -> None:
    the = worker()
    the.operates(DOWNLOAD, REF, described())
    the.host.absent(*the.host.ordered(probe=True))
    (order,) = the.host.ordered(probe=False)
    assert [event.bytes_done for event in the.events()] == [0]
    for second in range(1, 12):
        the.host.passes(1.0)
        the.host.happens(FetcherReported(Fetching(order.number, second * 10, 1000)))
        the.link.tick()
    assert [(event.state.name, event.bytes_done, event.bytes_total) for event in the.events()] == [
        ("DOWNLOADING", 50, 1000),
        ("DOWNLOADING", 100, 1000),
    ]


def test_a_load_fetches_and_sets_up_every_instance_that_has_the_model() -> None:
    one, two = bound("one", hub(REF)), bound("two", hub(REF), hub("acme/vae"))
    the = Worker(one, two, bound("three", hub("acme/else")), devices=[gpu()])
    the.function("two", {"acme/vae": described(B)})
    the.operates(LOAD, REF, described(A))
    the.brings()
    the.loads()
    assert (REF, "IN_VRAM", "") in the.told()
    the.loads()
    loaded = {order.instance.partition("?")[0] for order in sent(the.host.actions, Load)}
    assert loaded == {"One", "Two"}
    mine = [event for event in the.events() if event.ref == REF]
    assert [(event.state.name, event.vram_bytes) for event in mine] == [("IN_VRAM", 10 * MIB)]
    the.operates(LOAD, REF)
    assert the.told() == [(REF, "IN_VRAM", "")]
    assert the.fleet.loads == {}


def test_a_load_goes_to_the_child_that_has_the_least_to_lose() -> None:
    the = Worker(bound("f", hub(REF)), bound("g", hub("acme/g")), devices=[gpu("cuda:0"), gpu("cuda:1")])
    the.host.done(the.serves("g", {"acme/g": described(B)}))
    the.operates(LOAD, REF, described(A))
    the.brings()
    assert the.host.child(1).loading is not None
    assert the.host.child(0).loading is None


def test_without_a_gpu_a_loaded_model_is_in_ram() -> None:
    the = Worker(bound("f", hub(REF)))
    the.operates(LOAD, REF, described(A))
    the.brings()
    the.loads()
    assert [(event.state.name, event.vram_bytes) for event in the.events()][-1] == ("IN_RAM", 0)


def test_a_load_of_what_no_function_has_fails() -> None:
    the = worker()
    the.operates(LOAD, "acme/other", described())
    assert the.told() == [("acme/other", "FAILED", "load_failed")]


def test_a_load_waits_until_the_job_that_runs_has_ended_and_comes_before_those_that_wait() -> None:
    the = Worker(bound("f", hub(REF)), bound("g", hub("acme/g")), devices=[gpu()])
    running = the.serves("g", {"acme/g": described(B)})
    waiting = the.runs("g")
    the.operates(LOAD, REF, described(A))
    the.brings()
    assert the.host.child().loading is None
    the.host.done(running)
    assert the.host.child().loading is not None
    assert waiting.state is JobState.QUEUED


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (LoadFailed("", "no room", [], "out_of_memory"), "oom"),
        (LoadFailed("", "no room", [], "hardware", "insufficient_vram"), "oom"),
        (LoadFailed("", "ValueError", [], "setup"), "load_failed"),
    ],
)
def test_a_load_that_fails_is_told_by_its_reason_once(message: LoadFailed, error: str) -> None:
    the = worker()
    the.operates(LOAD, REF, described())
    the.brings()
    the.told()
    child = the.host.child()
    assert child.loading is not None
    message.instance = child.loading
    the.host.reports(child, message)
    assert the.told() == [(REF, "FAILED", error)]
    assert the.fleet.loads == {}
    ordered = len(sent(the.host.actions, Load))
    the.operates(LOAD, REF)
    assert len(sent(the.host.actions, Load)) == ordered + 1, "who orders it again means it"


def test_a_load_whose_child_dies_of_it_has_failed() -> None:
    the = worker()
    the.operates(LOAD, REF, described())
    the.brings()
    the.told()
    the.host.dies(the.host.child(), KILLED)
    assert the.told() == [(REF, "FAILED", "load_failed")]


def test_a_model_that_a_job_uses_is_not_unloaded() -> None:
    the = worker()
    job = the.serves("f", {REF: described()})
    the.told()
    the.operates(UNLOAD, REF)
    assert the.told() == [(REF, "FAILED", "model_in_use")]
    the.host.done(job)
    the.operates(UNLOAD, REF)
    assert the.told() == [(REF, "ON_DISK", "")]
    assert len(sent(the.host.actions, Unload)) == 1
    the.operates(UNLOAD, REF)
    assert the.told() == [(REF, "ON_DISK", "")]


def test_what_is_unloaded_stays_in_ram_where_the_host_holds_it_and_comes_back_for_a_job() -> None:
    the = worker(eager=True)
    the.host.done(the.serves("f", {REF: described()}))
    the.models.held.add(REF)
    the.models.changes += 1
    the.told()
    the.operates(UNLOAD, REF)
    assert the.told() == [(REF, "IN_RAM", "")]
    loads = len(sent(the.host.actions, Load))
    the.host.passes(60.0)
    assert len(sent(the.host.actions, Load)) == loads, "an eager worker does not undo it"
    the.runs("f")
    the.loads()
    assert the.told() == [(REF, "IN_VRAM", "")]


def test_what_is_being_set_up_is_unloaded_once_it_is() -> None:
    the = worker()
    the.operates(LOAD, REF, described())
    the.brings()
    the.operates(UNLOAD, REF)
    the.told()
    the.loads()
    told = the.told() + the.told()
    assert told[-1] == (REF, "ON_DISK", "")
    assert len(sent(the.host.actions, Unload)) == 1


def test_an_unload_of_what_is_not_here_says_that_it_is_not_here() -> None:
    the = worker()
    the.operates(UNLOAD, "acme/other")
    assert the.told() == [("acme/other", "EVICTED", "")]


def test_an_operation_on_what_is_no_ref_fails() -> None:
    the = worker()
    the.operates(DOWNLOAD, "../../etc")
    the.operates(LOAD, "")
    assert [error for _, _, error in the.told()] == ["download_failed", "load_failed"]


def test_every_reason_why_a_model_cannot_be_had_has_a_name_on_the_wire() -> None:
    names = {error_of(FetchFailed(1, kind, "", "", retryable=False)) for kind in get_args(ModelErrorKind)}
    assert names == {
        *("url_expired", "digest_mismatch", "insufficient_disk", "read_only", "load_failed", "download_failed")
    }


@pytest.mark.parametrize("kind", ["digest_mismatch", "insufficient_disk", "read_only", "unreachable"])
def test_a_download_that_fails_says_why_once_and_a_new_order_tries_again(kind: ModelErrorKind) -> None:
    the = worker()
    for times in (1, 2):
        the.operates(DOWNLOAD, REF, described())
        assert len(the.host.ordered(probe=True)) == times
        the.host.absent(the.host.ordered(probe=True)[-1])
        the.told()
        the.host.fetch_fails(the.host.ordered(probe=False)[-1], kind=kind)
        expected = kind if kind != "unreachable" else "download_failed"
        assert the.told() == [(REF, "FAILED", expected)]


def test_what_was_unloaded_gives_up_its_room_on_the_disk_to_what_is_wanted_now() -> None:
    the = Worker(bound("f", hub(REF)), bound("g", hub("acme/g")), bound("h", hub("acme/g")), devices=[gpu()])
    the.host.done(the.serves("f", {REF: described(A)}))
    the.operates(UNLOAD, REF)
    the.operates(DOWNLOAD, "acme/big", described(B))
    the.host.absent(the.host.ordered(probe=True)[-1])
    the.told()
    the.host.fetch_fails(the.host.ordered(probe=False)[-1], kind="insufficient_disk")
    assert the.told() == [], "it is on the disk until it is evicted"
    assert [action.key for action in the.host.actions if isinstance(action, LetGo)] == [f"key-{REF}@blake3:{A}"]
    the.models.on_evicted(f"{REF}@blake3:{A}")
    the.brings()
    assert the.told() == [("acme/big", "ON_DISK", ""), (REF, "EVICTED", "")]
    the.runs("f")
    assert the.host.ordered()[-1].wanted.repo == REF, "it is looked for, and fetched, when a job needs it"


def test_what_is_in_use_gives_up_nothing_for_the_disk() -> None:
    the = worker()
    the.serves("f", {REF: described(A)})
    the.operates(DOWNLOAD, "acme/big", described(B))
    the.host.absent(the.host.ordered(probe=True)[-1])
    the.told()
    the.host.fetch_fails(the.host.ordered(probe=False)[-1], kind="insufficient_disk")
    assert the.told() == [("acme/big", "FAILED", "insufficient_disk")]
    assert not [action for action in the.host.actions if isinstance(action, LetGo)]


def test_an_order_for_what_nobody_described_fails_and_the_next_description_mends_it() -> None:
    the = worker()
    the.operates(DOWNLOAD, REF)
    the.host.fetch_fails(*the.host.ordered(), kind="not_configured")
    assert the.told() == [(REF, "FAILED", "download_failed")]
    the.operates(DOWNLOAD, REF, described())
    the.brings()
    assert the.told()[-1] == (REF, "ON_DISK", "")


# --- what is told of them ---------------------------------------------------------------------------------------------


def test_changes_are_told_once_and_a_new_connection_begins_with_what_is() -> None:
    the = worker()
    the.host.done(the.serves("f", {REF: described()}))
    assert the.told()[-1] == (REF, "IN_VRAM", "")
    assert the.told() == []
    assert the.link.residency() == (ModelResidency(ref=REF, tier=ResidencyTier.VRAM, vram_bytes=5 * MIB),)
    the.host.dies(the.host.child())
    assert the.told() == [], "nothing is said before the orchestrator has answered"
    the.link.acknowledged(HelloAck())
    assert the.told() == [(REF, "ON_DISK", "")]


def test_failures_from_before_a_connection_are_not_told_on_it_but_for_the_answer_to_an_order() -> None:
    the = worker()
    the.runs("f", {REF: described()})
    the.host.fetch_fails(*the.host.ordered(), kind="digest_mismatch")
    the.link.residency()
    the.link.acknowledged(HelloAck())
    assert the.told() == []
    the.operates(DOWNLOAD, REF)
    the.host.fetch_fails(the.host.ordered()[-1], kind="digest_mismatch")
    the.link.residency()
    the.link.acknowledged(HelloAck())
    assert the.told() == [(REF, "FAILED", "digest_mismatch")]


def test_refs_are_told_as_the_orchestrator_writes_them() -> None:
    the = worker()
    the.operates(DOWNLOAD, f"{REF}:prod", described())
    the.brings()
    assert the.told()[-1] == (f"{REF}:prod", "ON_DISK", "")
    assert [each.ref for each in the.link.residency()] == [f"{REF}:prod"]


def test_copies_on_several_devices_count_together() -> None:
    the = Worker(bound("f", hub(REF)), devices=[gpu("cuda:0"), gpu("cuda:1")], eager=True)
    the.operates(DOWNLOAD, REF, described())
    the.brings()
    the.loads(the.host.child(0))
    the.loads(the.host.child(1))
    (model,) = the.link.residency()
    assert (model.tier, model.vram_bytes) == (ResidencyTier.VRAM, 10 * MIB)


def test_a_superseded_snapshot_is_gone_for_the_orchestrator_until_the_new_one_is_here() -> None:
    the = worker()
    job = the.serves("f", {REF: described(A)})
    the.told()
    the.operates(DOWNLOAD, REF, described(B))
    assert the.link.residency() == ()
    the.link.acknowledged(HelloAck())
    the.brings()
    assert the.told()[-1] == (REF, "ON_DISK", "")
    assert the.host.unanswered(job)


# --- what is kept, and what a restart finds ---------------------------------------------------------------------------


def test_what_is_to_be_kept_is_kept_under_every_name_that_the_disk_has_for_it() -> None:
    the = worker()
    the.host.done(the.serves("f", {REF: described(A)}))
    the.operates(DOWNLOAD, "acme/other:v2", described(B))
    the.brings()
    the.told()
    the.link.acknowledged(HelloAck(keep=(f"{REF}:prod", "acme/other:v2", "acme/absent", "no ref")))
    assert the.models.kept == [REF, f"{REF}@blake3:{A}", f"acme/other@blake3:{B}"]
    assert the.models.spared == [f"key-{REF}@blake3:{A}"]
    the.link.acknowledged(HelloAck())
    assert the.models.kept == [REF]
    assert the.models.spared == []


def test_what_many_jobs_described_is_forgotten_but_for_what_is_bound() -> None:
    the = worker()
    the.host.done(the.serves("f", {REF: described(A)}))
    for number in range(2 * DIGESTS_KEPT):
        the.function("f", {f"acme/v{number}": described(f"{number:064x}")})
    assert len(the.fleet.catalog.digests) <= DIGESTS_KEPT + 1
    assert len(the.fleet.catalog.models) < 10
    assert the.runs("f").instance in the.host.child().loaded


def test_functions_that_jobs_named_models_for_are_forgotten_but_for_those_to_be_kept() -> None:
    the = worker()
    the.link.acknowledged(HelloAck(keep=("acme/v0",)))
    for number in range(12):
        job = the.runs("f", {f"acme/v{number}": described(f"{number:064x}")}, [("m0", f"acme/v{number}")])
        the.brings()
        the.loads()
        the.host.starts(job)
        the.host.done(job)
    children = the.host.child().loaded
    assert any("acme-v0" in instance for instance in children)
    assert not any("acme-v1-" in instance for instance in children)
    assert len(the.fleet.named) <= 9


def test_what_lies_on_disk_is_known_after_a_restart_and_is_loaded_without_being_described() -> None:
    the = worker(acknowledged=False, eager=True)
    the.host.fetch_fails(*the.host.ordered(), kind="not_configured")
    assert the.models.stock is not None
    known: list[bool] = []
    the.link.when_stocked(lambda: known.append(True))
    the.models.stock(
        [
            Stocked(hub(REF, tag="prod", digest=f"blake3:{B}"), 10),
            Stocked(hub(REF, tag="prod", digest=f"blake3:{A}"), 10),
            Stocked(hub("acme/other", tag="v2", digest=f"blake3:{A}"), 10),
            Stocked(Wanted("hf", "org/base"), 10),
        ]
    )
    assert known == [True]
    assert [(each.ref, each.tier.name) for each in the.link.residency()] == [
        (REF, "DISK"),
        ("acme/other:v2", "DISK"),
        ("org/base", "DISK"),
    ]
    the.link.acknowledged(HelloAck())
    probe = the.host.ordered(probe=True)[-1]
    assert probe.wanted.digest == f"blake3:{B}", "of two the one that was used last"
    the.host.fetched(probe)
    the.loads()
    assert the.told() == [(REF, "IN_VRAM", "")]


def test_what_lies_on_disk_of_an_older_snapshot_is_not_the_model_that_is_meant_now() -> None:
    the = worker(acknowledged=False)
    assert the.models.stock is not None
    the.models.stock([Stocked(hub("acme/other", tag="prod", digest=f"blake3:{A}"), 10)])
    assert [each.ref for each in the.link.residency()] == ["acme/other"]
    the.link.acknowledged(HelloAck())
    the.operates(DOWNLOAD, "acme/other", described(B))
    assert the.link.residency() == ()


def test_what_the_stock_was_wrong_about_is_gone() -> None:
    the = worker(acknowledged=False)
    assert the.models.stock is not None
    the.models.stock([Stocked(hub(REF, tag="prod", digest=f"blake3:{A}"), 10)])
    the.link.residency()
    the.link.acknowledged(HelloAck())
    the.runs("f")
    the.host.fetch_fails(*the.host.ordered(probe=True), kind="not_configured")
    assert the.told() == [(REF, "EVICTED", "")]
    (model,) = the.fleet.catalog.models.values()
    assert model.state is ModelState.FAILED


def test_a_snapshot_of_another_provider_is_known_by_its_binding_after_a_restart() -> None:
    base = Wanted("hf", "org/base", revision="v1", dtype="bf16")
    the = Worker(bound("f", base), devices=[gpu()], acknowledged=False)
    assert the.models.stock is not None
    the.models.stock([Stocked(Wanted("tensorhub", "org/base", revision="v1", digest=f"blake3:{A}"), 10)])
    assert [each.ref for each in the.link.residency()] == ["org/base@v1"]
    (slot,) = the.fleet.functions["f"].surveyed.slots
    assert (slot.wanted.digest, slot.wanted.dtype) == (f"blake3:{A}", "bf16")
