"""What the status document says of a job."""

import msgspec

from gen_worker.models.wanted import Slot, Wanted
from gen_worker.wire.messages import Event
from gen_worker.wire.survey import SurveyedFunction
from gen_worker_supervisor.bodies import InlinePayload, OutputBody
from gen_worker_supervisor.log import HIDDEN, Look
from gen_worker_supervisor.report import _download, _function, _job
from gen_worker_supervisor.state import Device, Fleet, Function, Job, Outcome


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
    assert _job(fleet, waiting, now=110.0, hide=str).stage == "waiting for acme/xl"
    model = fleet.catalog.of(slot.wanted)
    model.bytes_done, model.bytes_total = 30, 120
    assert _job(fleet, waiting, now=110.0, hide=str).stage == "downloading acme/xl 25%"


def test_jobs_that_wait_for_models_of_their_own_count_for_their_function() -> None:
    slot = Slot("weights", Wanted("hf", "acme/xl"), ("*",))
    paint = Function(SurveyedFunction("paint", "paint", "A", "A", "sync", "device", False, None, [slot]))
    other = Function(SurveyedFunction("other", "other", "", "", "sync", "device", False, None))
    fleet = Fleet({"paint": paint, "other": other}, [Device("cpu:0", "cpu")])
    own = Slot("weights", Wanted("hf", "acme/own"), ("*",))
    named = fleet.with_models(paint, "A own", [own])
    for number, function in enumerate((paint, named, named)):
        waiting = job(deadline=None)
        waiting.number, waiting.function = number, function
        fleet.enqueue(waiting)
    assert [_function(fleet, each, 110.0, str).queued for each in (paint, other)] == [3, 0]
    assert _download(fleet, fleet.catalog.of(own.wanted), 110.0).wanted_by == ["paint"]
