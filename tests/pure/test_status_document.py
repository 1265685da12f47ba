"""What the status document says of a job."""

import gc
import time

import msgspec
import pytest

from gen_worker.models.wanted import Slot, Wanted
from gen_worker.wire.messages import Event
from gen_worker.wire.survey import SurveyedFunction
from gen_worker_supervisor.core.bodies import InlinePayload, OutputBody
from gen_worker_supervisor.core.state import Device, Fleet, Function, Job, Outcome
from gen_worker_supervisor.history.tally import Tally
from gen_worker_supervisor.logs.log import HIDDEN, Look
from gen_worker_supervisor.status.report import _download, _functions, _job, _jobs
from tests.pure.host import Host, function


class Nobody:
    """A client that listens to nothing."""

    link = "serve"

    def answer(self, job: Job, outcome: Outcome, body: OutputBody) -> None: ...

    def item(self, job: Job, body: OutputBody, content_type: str) -> None: ...

    def event(self, job: Job, event: Event) -> None: ...

    def rerun(self, job: Job) -> None: ...


FLEET = Fleet({}, [Device("cpu:0", "cpu")])


def job(deadline: float | None) -> Job:
    surveyed = SurveyedFunction("echo", "echo", "", "", "sync", "device", False, None)
    return Job(
        number=1,
        client=Nobody(),
        request_id="r1",
        attempt=1,
        named=True,
        function=Function(surveyed),
        payload=InlinePayload(b"{}"),
        encoding="json",
        stream=False,
        events=False,
        submitted=100.0,
        deadline=deadline,
    )


def test_the_deadline_of_a_job_is_the_time_it_has_left() -> None:
    assert _job(FLEET, job(deadline=130.0), now=110.0, hide=str).deadline_s == 20.0


def test_a_job_past_its_deadline_has_no_time_left() -> None:
    assert _job(FLEET, job(deadline=130.0), now=131.0, hide=str).deadline_s == 0.0


def test_a_job_without_a_deadline_has_none() -> None:
    assert _job(FLEET, job(deadline=None), now=110.0, hide=str).deadline_s is None


def test_what_a_job_says_of_itself_is_told_without_secrets() -> None:
    talkative = job(deadline=None)
    talkative.request_id, talkative.stage = "r1-hunter22", "logs in with hunter22"
    status = _job(FLEET, talkative, now=110.0, hide=Look(secrets=["hunter22"]).hide)
    assert (status.id, status.stage) == (f"r1-{HIDDEN}", f"logs in with {HIDDEN}")


def test_a_job_that_waits_for_a_model_says_how_far_its_download_is() -> None:
    fleet = Fleet({}, [Device("cpu:0", "cpu")])
    slot = Slot("weights", Wanted("hf", "acme/xl"))
    surveyed = SurveyedFunction("paint", "paint", "", "painter", "sync", "device", False, None, [slot])
    waiting = msgspec.structs.replace(job(deadline=None), function=Function(surveyed))
    fleet.jobs[waiting.number] = waiting
    fleet.enqueue(waiting)
    assert _jobs(fleet, 110.0, str)[0].stage == "waiting for acme/xl"
    model = fleet.catalog.of(slot.wanted)
    model.bytes_done, model.bytes_total = 30, 120
    assert _jobs(fleet, 110.0, str)[0].stage == "downloading acme/xl 25%"


def test_jobs_that_wait_for_models_of_their_own_count_for_their_function() -> None:
    slot = Slot("weights", Wanted("hf", "acme/xl"), ("*",))
    paint = Function(SurveyedFunction("paint", "paint", "A", "A", "sync", "device", False, None, [slot]))
    other = Function(SurveyedFunction("other", "other", "", "", "sync", "device", False, None))
    fleet = Fleet({"paint": paint, "other": other}, [Device("cpu:0", "cpu")])
    own = Slot("weights", Wanted("hf", "acme/own"), ("*",))
    named = fleet.with_models(paint, "A own", [own])
    for number, each in enumerate((paint, named, named)):
        waiting = job(deadline=None)
        waiting.number, waiting.function = number, each
        fleet.enqueue(waiting)
    assert {each.name: each.queued for each in _functions(fleet, 110.0, str, Tally())} == {"paint": 3, "other": 0}
    assert _download(fleet, fleet.catalog.of(own.wanted), 110.0).wanted_by == ["paint"]


@pytest.mark.quiet
def test_an_endpoint_of_five_thousand_functions_does_not_hold_the_loop_for_each_document() -> None:
    surveyed = [SurveyedFunction(f"f{n}", f"f{n}", "", "", "sync", "device", False, None) for n in range(5_000)]
    fleet = Fleet({each.name: Function(each) for each in surveyed}, [Device("cpu:0", "cpu")])
    began = time.thread_time()
    assert len(_functions(fleet, 110.0, str, Tally())) == 5_000
    assert time.thread_time() - began < 0.25  # some 40 ms; each function that looks at all others takes seconds


def test_jobs_that_wait_have_their_place_and_start_as_they_will_be_served() -> None:
    host = Host()
    for _ in range(8):
        host.done(host.submit(), run_s=4.0)
    host.started()
    first, other = [host.submit(tenant="ada") for _ in range(2)], host.submit(tenant="bob")
    urgent = host.submit(priority=5)
    running, *waiting = _jobs(host.fleet, host.now, str)
    assert (running.position, running.starts_in_s, running.tenant, running.priority) == (None, None, None, 0)
    assert [each.id for each in waiting] == [each.request_id for each in (urgent, first[0], other, first[1])]
    assert [(each.position, each.starts_in_s) for each in waiting] == [(1, 4.0), (2, 8.0), (3, 12.0), (4, 16.0)]
    assert [(each.tenant, each.priority) for each in waiting] == [(None, 5), ("ada", 0), ("bob", 0), ("ada", 0)]


def test_when_a_job_starts_counts_the_children_that_are_warm() -> None:
    host = Host(devices=2)
    for _ in range(8):
        host.done(host.submit(), run_s=4.0)
    for _ in range(3):
        host.submit()
    assert [each.starts_in_s for each in _jobs(host.fleet, host.now, str)] == [None, None, 2.0]


def test_when_a_job_starts_that_waits_for_a_load_counts_that() -> None:
    host = Host(function(instance="C"))
    host.fleet.instance("C").load_s = 30.0
    assert host.child().loading is None
    host.fleet.functions["f"].ran(4.0)
    host.submit()
    host.submit()
    assert [(each.stage, each.starts_in_s) for each in _jobs(host.fleet, host.now, str)] == [
        ("loading", 30.0),
        ("loading", 34.0),
    ]


def test_nobody_guesses_when_a_job_of_a_function_starts_that_has_never_run() -> None:
    host = Host()
    host.started()
    host.submit()
    assert [each.starts_in_s for each in _jobs(host.fleet, host.now, str)] == [None, None]


@pytest.mark.promise(34)
def test_ten_thousand_waiting_jobs_are_told_of_without_holding_the_loop() -> None:
    host = Host(max_queued=20_000)
    host.started()
    for number in range(10_000):
        host.submit(tenant=str(number % 7))
    gc.freeze()  # what the other tests have left is not looked at meanwhile
    try:
        began = time.thread_time()
        assert len(_jobs(host.fleet, host.now, str)) == 10_001
        assert time.thread_time() - began < 0.05
    finally:
        gc.unfreeze()
