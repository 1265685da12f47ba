"""The models that jobs wait for: what is ordered when, who waits for it, and what becomes of those who do."""

import pytest

from gen_worker.models.wanted import Slot, Wanted, overridden_instance
from gen_worker.wire.fetching import Abort, Fetch, Fetching
from gen_worker.wire.messages import Load, Loaded, LoadFailed, LoadFailure, Resident, Returned, Unload, Unloaded, Wants
from gen_worker_supervisor.core.actions import LetGo, LoadOver, OrderFetch
from gen_worker_supervisor.core.catalog import RETRY_S, Catalog
from gen_worker_supervisor.core.decide import SWAP_PATIENCE
from gen_worker_supervisor.core.happenings import FetcherLost, FetcherReported, Vanished
from gen_worker_supervisor.core.phases import JobState, ModelState, Phase
from gen_worker_supervisor.core.reports import ROOM_S
from gen_worker_supervisor.core.state import NAMED_KEPT, Device, Job
from gen_worker_supervisor.core.verdicts import UNAVAILABLE_S
from tests.pure.host import Host, finishes, function, held_by, runs, sent, signals, snapshot


def host_with(*refs: str, devices: int | list[Device] = 1, eager: bool = False) -> Host:
    """Return a host with one class for each model; each has one function, named as the model's owner."""
    made = [function(ref.partition("/")[0], instance=f"{ref}!", models=[ref]) for ref in refs]
    return Host(*made, devices=devices, eager=eager)


def warm(host: Host, name: str, *, on: int = 0) -> Job:
    """Have a function's model come, and its first job run; return that job, which has ended."""
    job = host.submit(name)
    host.fetched(*[order for order in host.ordered() if order.wanted.ref.startswith(f"{name}/")])
    host.reports(host.child(on), Loaded(f"{name}/m!", 0.5, [Resident("slot0", f"{name}/m", "VRAM", 100)]))
    host.done(job)
    return job


# --- what is ordered --------------------------------------------------------------------------------------------------


def test_a_model_is_looked_for_on_this_host_before_it_is_downloaded() -> None:
    host = host_with("a/m")
    assert host.ordered() == []
    host.submit("a")
    (look,) = host.ordered()
    assert (look.wanted.ref, look.probe) == ("a/m", True)
    host.absent(look)
    (download,) = host.ordered(probe=False)
    assert download.wanted == look.wanted
    assert download.number != look.number


def test_two_jobs_that_need_one_model_cost_one_download() -> None:
    host = Host(function("one", instance="1", models=["a/m"]), function("two", instance="2", models=["a/m"]))
    jobs = [host.submit("one"), host.submit("two"), host.submit("one")]
    host.absent(*host.ordered())
    assert len(host.ordered(probe=False)) == 1
    host.fetched(*host.ordered(probe=False))
    assert len(host.ordered()) == 2
    assert all(host.unanswered(job) for job in jobs)
    assert host.child().loading in ("1", "2")


def test_so_many_models_are_downloaded_at_once_and_the_others_wait() -> None:
    host = host_with("a/m", "b/m", "c/m")
    host.fleet.catalog.at_once = 2
    for name in "abc":
        host.submit(name)
    host.absent(*host.ordered(probe=True))
    assert [order.wanted.ref for order in host.ordered(probe=False)] == ["a/m", "b/m"]
    host.fetched(host.ordered(probe=False)[0])
    assert [order.wanted.ref for order in host.ordered(probe=False)] == ["a/m", "b/m", "c/m"]


def test_what_is_on_disk_does_not_wait_behind_downloads() -> None:
    host = host_with("a/m", "b/m", "c/m")
    host.fleet.catalog.at_once = 1
    for name in "ab":
        host.submit(name)
    host.absent(*host.ordered())
    host.submit("c")
    host.fetched(host.ordered()[-1])
    assert host.child().loading == "c/m!"


def test_a_model_that_a_job_waits_for_is_downloaded_before_those_that_nobody_waits_for() -> None:
    catalog = Catalog(at_once=1)
    slots = {ref: [Slot("s", Wanted("hf", ref))] for ref in ("a/m", "b/m", "c/m")}
    catalog.ask(slots["a/m"], 0.0, urgent=False)
    catalog.ask(slots["b/m"], 0.0, urgent=False)
    catalog.ask(slots["c/m"], 0.0, urgent=True)
    for model in catalog.models.values():
        model.move(ModelState.QUEUED)
    (order,) = catalog.orders(0.0)
    assert isinstance(order, Fetch)
    assert order.wanted.ref == "c/m"


def test_a_download_that_nobody_waits_for_any_more_makes_room_and_goes_on_later() -> None:
    host = host_with("a/m", "b/m")
    host.fleet.catalog.at_once = 1
    given_up = host.submit("a")
    host.absent(*host.ordered())
    host.ends(given_up)
    host.submit("b")
    host.absent(host.ordered()[-1])
    (first, second) = host.ordered(probe=False)
    assert (first.wanted.ref, second.wanted.ref) == ("a/m", "b/m")
    assert [action.order for action in host.actions if isinstance(action, OrderFetch)][-2:] == [
        Abort(first.number),
        second,
    ]
    host.fetched(second)
    assert host.ordered(probe=False)[-1].wanted.ref == "a/m"


def test_while_no_child_serves_models_come_all_the_same() -> None:
    host = Host(function("a", instance="A", models=["a/m"]), up=False)
    host.submit("a")
    assert [order.wanted.ref for order in host.ordered()] == ["a/m"]


# --- what waits -------------------------------------------------------------------------------------------------------


def test_a_class_is_set_up_once_all_its_models_are_there_with_where_each_lies() -> None:
    host = Host(function("a", instance="A", models=["a/m", "b/m"]))
    job = host.submit("a")
    first, second = host.ordered()
    host.fetched(first)
    assert host.child().loading is None
    host.fetched(second)
    (load,) = sent(host.actions, Load)
    assert [(model.slot, model.ref, model.path) for model in load.models] == [
        ("slot0", "a/m", "/cache/a/m"),
        ("slot1", "b/m", "/cache/b/m"),
    ]
    assert runs(host.loaded(host.child())) == [job]


def test_a_job_whose_model_is_resident_does_not_wait_behind_a_download() -> None:
    host = host_with("a/m", "b/m")
    warm(host, "a")
    host.submit("b")
    host.absent(*[order for order in host.ordered() if order.wanted.ref == "b/m"])
    job = host.submit("a")
    assert job.state is not JobState.QUEUED


def test_a_dead_fetcher_costs_nothing_but_time() -> None:
    host = host_with("a/m", "b/m")
    host.submit("a")
    host.absent(*host.ordered())
    host.submit("b")
    before = host.ordered()
    host.happens(FetcherLost())
    again = host.ordered()[len(before) :]
    assert {(order.wanted.ref, order.probe) for order in again} == {("a/m", False), ("b/m", True)}
    host.fetched(*before)  # late words of the dead one
    assert host.child().loading is None
    host.fetched(*again)
    assert host.child().loading in ("a/m!", "b/m!")


def test_a_download_is_not_lost_with_the_job_that_wanted_it() -> None:
    host = host_with("a/m")
    job = host.submit("a")
    host.absent(*host.ordered())
    host.ends(job)
    assert host.answer(job).kind == "canceled"
    host.fetched(*host.ordered(probe=False))
    host.submit("a")
    assert host.child().loading == "a/m!"


def test_how_far_a_download_is_can_be_seen() -> None:
    host = host_with("a/m")
    host.submit("a")
    host.absent(*host.ordered())
    (order,) = host.ordered(probe=False)
    host.happens(FetcherReported(Fetching(order.number, 50, 100, 3)))
    (model,) = host.fleet.catalog.under_way()
    assert (model.bytes_done, model.bytes_total, model.retries) == (50, 100, 3)


# --- what cannot be had -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retryable", [True, False])
def test_jobs_that_wait_for_a_model_that_cannot_be_had_are_told_why_and_what_to_do(retryable: bool) -> None:
    host = host_with("a/m", "b/m")
    jobs = [host.submit("a"), host.submit("a")]
    other = host.submit("b")
    host.fetch_fails(*[order for order in host.ordered() if order.wanted.ref == "a/m"], retryable=retryable)
    for job in jobs:
        outcome = host.answer(job)
        assert outcome.kind == "model_resolution"
        assert outcome.message == "`a` cannot run: no a/m"
        assert outcome.retryable is retryable
        assert outcome.detail is not None
        assert (outcome.detail.cause, outcome.detail.hint) == ("gated", "ask")
    assert host.unanswered(other)


def test_a_model_that_could_not_be_had_is_asked_for_again_after_a_while() -> None:
    host = host_with("a/m")
    host.submit("a")
    host.fetch_fails(*host.ordered())
    assert host.answer(host.submit("a")).kind == "model_resolution"
    assert len(host.ordered()) == 1
    host.passes(RETRY_S)
    job = host.submit("a")
    assert host.unanswered(job)
    host.fetched(host.ordered()[-1])
    assert host.child().loading == "a/m!"


def test_at_boot_a_model_that_cannot_be_had_ends_an_eager_server_with_the_code_for_that() -> None:
    host = host_with("a/m", eager=True)
    assert finishes(host.fetch_fails(*host.ordered())) == [3]


def test_the_files_of_a_model_that_cannot_be_loaded_are_verified_before_its_jobs_end() -> None:
    host = host_with("a/m")
    job = host.submit("a")
    host.fetched(*host.ordered())
    actions = host.load_fails(host.child(), "model")
    assert [(action.used, action.paths) for action in actions if isinstance(action, LoadOver)] == [([], frozenset())]
    assert host.unanswered(job)
    first, again = host.ordered()
    assert (first.verify, again.verify) == (False, True)
    host.fetched(again)
    host.load_fails(host.child(), "model")
    assert host.answer(job).kind == "model_resolution"


def test_what_the_hardware_refused_is_not_tried_again() -> None:
    host = host_with("a/m")
    job = host.submit("a")
    host.fetched(*host.ordered())
    host.load_fails(host.child(), "hardware")
    assert (host.answer(job).kind, host.answer(job).retryable) == ("unavailable", True)
    host.passes(1e6)
    assert host.answer(host.submit("a")).kind == "unavailable"


def test_a_function_that_declares_more_than_the_budget_of_every_device_is_refused_with_both_figures() -> None:
    device = Device("cpu:0", "cpu", budget_bytes=2 << 30)
    host = Host(function(gpu=True, vram_gb=24), devices=[device])
    outcome = host.answer(host.submit())
    assert (outcome.kind, outcome.retryable) == ("unavailable", True)
    assert "insufficient_vram: it declares 24 GB, the largest device here may take 2 GB" in outcome.message


# --- models that take turns -------------------------------------------------------------------------------------------


def test_an_instance_that_had_to_go_is_set_up_again_for_its_next_job() -> None:
    host = host_with("a/m", "b/m")
    warm(host, "a")
    host.submit("b")
    host.fetched(*[order for order in host.ordered() if order.wanted.ref == "b/m"])
    child = host.child()
    host.reports(child, Unloaded("a/m!", "no room"), Loaded("b/m!", 0.5, [Resident("slot0", "b/m", "VRAM", 100)]))
    assert set(child.models) == {"b/m!"}
    host.done(next(iter(child.leased.values())))
    job = host.submit("a")
    assert child.loading == "a/m!"
    assert runs(host.loaded(child)) == [job]


def test_a_job_that_reached_a_child_too_late_for_its_instance_comes_back_and_runs() -> None:
    host = host_with("a/m")
    warm(host, "a")
    child = host.child()
    job = host.submit("a")
    host.reports(child, Unloaded("a/m!"), Returned(job.number))
    assert child.loading == "a/m!"
    assert signals(host.actions) == []
    assert runs(host.loaded(child)) == [job]


def test_two_models_do_not_take_turns_with_every_job() -> None:
    host = host_with("a/m", "b/m")
    warm(host, "a")
    first = host.submit("a")
    host.submit("b")
    host.fetched(*[order for order in host.ordered() if order.wanted.ref == "b/m"])
    second = host.submit("a")
    assert runs(host.done(first)) == [second]
    assert host.child().loading is None


def test_a_function_whose_model_is_not_resident_gets_its_turn_however_busy_the_other_is() -> None:
    host = host_with("a/m", "b/m")
    warm(host, "a")
    running = host.submit("a")
    host.submit("b")
    host.fetched(*[order for order in host.ordered() if order.wanted.ref == "b/m"])
    for _ in range(20):
        following = host.submit("a")
        host.passes(SWAP_PATIENCE * 0.5 / 10)
        host.done(running)
        if host.child().loading == "b/m!":
            break
        running = following
    assert host.child().loading == "b/m!"


def test_a_model_goes_to_the_device_that_holds_fewest() -> None:
    host = host_with("a/m", "b/m", devices=2)
    warm(host, "a")
    host.submit("b")
    host.fetched(*[order for order in host.ordered() if order.wanted.ref == "b/m"])
    assert (host.child(0).loading, host.child(1).loading) == (None, "b/m!")


# --- models that a request names --------------------------------------------------------------------------------------


def named(ref: str, *, overrides: tuple[str, ...] = ("*",)) -> list[Slot]:
    """Return the slots with another model."""
    return [Slot("slot0", Wanted("hf", ref), overrides)]


def wanting(host: Host, job: Job, slots: list[Slot]) -> str:
    """Have the job's child say that it names models; return the instance that has them."""
    instance = overridden_instance("A", job.function.surveyed.slots, slots)
    host.reports(held_by(job), Wants(job.number, instance, slots))
    return instance


def overridable() -> tuple[Host, Job]:
    """Return a host with a job that runs, of a function whose model may be another."""
    host = Host(function("a", instance="A", models=["a/m"], overrides=("*",)))
    job = host.submit("a")
    host.fetched(*host.ordered())
    host.loaded(host.child())
    return host, job


def test_a_request_that_names_another_model_runs_on_an_instance_that_has_it() -> None:
    host, job = overridable()
    instance = wanting(host, job, named("b/m"))
    assert job.state is JobState.QUEUED
    host.fetched(host.ordered()[-1])
    assert host.child().loading == instance
    assert runs(host.loaded(host.child())) == [job]
    assert job.instance == instance
    host.done(job)
    assert host.answer(job).state is JobState.OK


def test_a_request_whose_own_model_cannot_be_had_says_so_and_the_function_goes_on() -> None:
    host, job = overridable()
    wanting(host, job, named("b/m"))
    host.fetch_fails(host.ordered()[-1])
    assert host.answer(job).kind == "model_resolution"
    host.done(host.submit("a"))


def test_a_request_whose_own_model_the_hardware_refused_before_is_refused_at_once() -> None:
    host, job = overridable()
    wanting(host, job, named("b/m"))
    host.fetched(host.ordered()[-1])
    host.load_fails(host.child(), "hardware")
    assert host.answer(job).kind == "unavailable"
    again = host.submit("a")
    wanting(host, again, named("b/m"))
    assert host.answer(again).kind == "unavailable"
    host.done(host.submit("a"))


def test_a_request_that_waits_for_its_own_model_holds_up_no_other_of_the_function() -> None:
    host, job = overridable()
    wanting(host, job, named("b/m"))
    other = host.submit("a")
    assert other.state is JobState.LEASED
    host.done(other)
    assert host.unanswered(job)


def test_functions_that_requests_made_by_naming_models_are_forgotten_when_nobody_uses_them() -> None:
    host, job = overridable()
    for number in range(3 * NAMED_KEPT):
        instance = wanting(host, job, named(f"b/m{number}"))
        host.fetched(host.ordered()[-1])
        child = host.child()
        host.reports(child, *(Unloaded(each, "no room") for each in sorted(child.loaded - {"A", ""})))
        assert child.loading == instance
        host.loaded(child)
        host.done(job)
        job = host.submit("a")
    assert len(host.fleet.named) <= NAMED_KEPT + 1
    assert len(host.fleet.catalog.models) <= NAMED_KEPT + 2
    let_go = [action.key for action in host.actions if isinstance(action, LetGo)]
    assert len(set(let_go)) == len(let_go) >= 2 * NAMED_KEPT - 1


def test_instances_that_requests_made_and_nobody_uses_are_taken_down_the_oldest_first() -> None:
    host, job = overridable()
    made = []
    for number in range(2 * NAMED_KEPT):
        made.append(wanting(host, job, named(f"b/m{number}")))
        host.fetched(host.ordered()[-1])
        host.passes(1)
        host.reports(host.child(), Loaded(made[-1], 0.5, [Resident("slot0", "b", "DISK", 0)]))
        host.done(job)
        job = host.submit("a")
    taken_down = [order.instance for order in sent(host.actions, Unload)]
    assert taken_down == made[: len(taken_down)]
    assert len(host.child().loaded) <= NAMED_KEPT + 3


def test_a_child_may_not_ask_for_models_where_nobody_may_name_any() -> None:
    host = Host(function("a", instance="A", models=["a/m"]))
    job = host.submit("a")
    host.fetched(*host.ordered())
    host.loaded(host.child())
    wanting(host, job, named("b/m"))
    assert signals(host.actions) == [9]
    assert len(host.ordered()) == 1


# --- copies in another dtype ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "believed"),
    [
        ("/cache/derived/key-a/m-fp32", False),
        ("/cache/derived/key-m-fp32", True),
        ("/etc/key-m-fp32", False),
        ("/cache/derived/other-fp32", False),
    ],
)
def test_a_copy_in_the_wanted_dtype_is_loaded_from_where_copies_are_only(path: str, believed: bool) -> None:
    host = Host(function("a", instance="A", models=["m"]))
    host.fleet.catalog.derived_root = "/cache/derived"
    host.submit("a")
    host.fetched(*host.ordered())
    host.reports(host.child(), Loaded("A", 0.5, [Resident("slot0", "m", "VRAM", 100, path)]))
    host.dies(host.child())
    host.boot()
    load = sent(host.actions, Load)[-1]
    expected = (path, path.rpartition("/")[2]) if believed else ("/cache/m", "key-m")
    assert [(model.path, model.key) for model in load.models] == [expected]


def test_a_snapshot_says_where_its_files_lie() -> None:
    made = snapshot(Wanted("hf", "a/m", subfolder="unet"))
    assert (made.load_path, made.size) == ("/cache/a/m/unet", 10)


# --- loads that fail --------------------------------------------------------------------------------------------------


def two_devices_one_warm() -> tuple[Host, Job]:
    """Return a host whose first device has the model, and whose second one loads it for a long queue."""
    host = host_with("a/m", devices=2)
    warm(host, "a")
    running = host.submit("a")
    for _ in range(20):
        host.submit("a")
    assert host.child(1).loading == "a/m!"
    return host, running


@pytest.mark.parametrize("kind", ["out_of_memory", "hardware", "model"])
def test_a_second_copy_that_cannot_be_loaded_costs_no_job_of_the_first(kind: LoadFailure) -> None:
    host, running = two_devices_one_warm()
    host.load_fails(host.child(1), kind)
    assert host.child(1).loading is None
    following = host.submit("a")
    assert host.unanswered(following)
    assert runs(host.done(running))
    assert host.child(1).loading is None
    host.passes(UNAVAILABLE_S)
    assert (host.child(1).loading == "a/m!") == (kind == "out_of_memory")


def test_where_one_device_is_too_small_another_is_tried() -> None:
    host = host_with("a/m", devices=2)
    job = host.submit("a")
    host.fetched(*host.ordered())
    small, large = host.child(0), host.child(1)
    assert small.loading == "a/m!"
    host.load_fails(small, "hardware")
    assert large.loading == "a/m!"
    assert runs(host.loaded(large)) == [job]


def test_when_the_only_device_that_could_load_a_model_is_lost_its_jobs_are_refused() -> None:
    host = host_with("a/m", devices=2)
    job = host.submit("a")
    host.fetched(*host.ordered())
    host.load_fails(host.child(0), "hardware")
    assert host.unanswered(job)
    for _ in range(4):
        if host.fleet.devices[1].lost:
            break
        host.dies(host.child(1))
        host.passes(120)
    assert host.fleet.devices[1].lost
    assert host.answer(job).kind == "unavailable"
    assert host.answer(host.submit("a")).kind == "unavailable"


def test_a_model_that_needs_the_room_of_jobs_that_run_waits_for_them() -> None:
    beside = function("beside", shape="async", lane="loop")
    host = Host(function("a", instance="A", models=["a/m"]), beside)
    running = host.submit("beside")
    host.starts(running)
    job = host.submit("a")
    host.fetched(*host.ordered())
    child = host.child()
    host.reports(child, LoadFailed("A", "8 GB are in use", [], "hardware", "insufficient_vram"))
    assert host.unanswered(job)
    assert host.child().loading is None
    host.done(running)
    host.passes(ROOM_S)
    assert host.child().loading == "A"
    host.reports(child, LoadFailed("A", "8 GB are too little", [], "hardware", "insufficient_vram"))
    assert "insufficient_vram: 8 GB are too little; tried again in 30 s" in host.answer(job).message


def test_a_load_whose_files_left_the_hosts_memory_says_nothing_of_those_on_the_disk() -> None:
    host = host_with("a/m")
    job = host.submit("a")
    host.fetched(*host.ordered())
    ordered = len(host.ordered())
    child = host.child()
    for _ in range(5):
        host.happens(Vanished(child, LoadFailed("a/m!", "no such file", [])))
        assert child.loading == "a/m!"
    assert len(host.ordered()) == ordered
    host.loaded(child)
    host.starts(job)
    host.done(job)
    assert host.answer(job).state is JobState.OK
    host.happens(Vanished(child, LoadFailed("a/m!", "no such file", [])))  # which nobody asked for
    assert host.child().phase is Phase.DYING


def test_every_job_that_a_failed_load_refuses_is_told_the_same() -> None:
    host = host_with("a/m")
    first = host.submit("a")
    for _ in range(2):  # the second time with verified files
        host.fetched(host.ordered()[-1])
        host.reports(host.child(), LoadFailed("a/m!", "no such class", ["line 1"], "model", hint="change it"))
    for job in (first, host.submit("a")):
        outcome = host.answer(job)
        assert (outcome.kind, outcome.retryable) == ("model_resolution", False)
        assert outcome.message == "`a` is unavailable: setup of `a/m!` failed: no such class"
        assert outcome.detail is not None
        assert (outcome.detail.hint, outcome.detail.stack) == ("change it", ["line 1"])
