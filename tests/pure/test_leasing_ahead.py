"""Which jobs wait inside a busy child, and which in the supervisor where another child can take them."""

import pytest

from gen_worker.models.wanted import Slot, Wanted
from gen_worker.wire.messages import Event
from gen_worker.wire.survey import SurveyedFunction
from gen_worker_supervisor.core.bodies import InlinePayload, OutputBody
from gen_worker_supervisor.core.decide import decide
from gen_worker_supervisor.core.phases import Phase
from gen_worker_supervisor.core.state import LEASED_AHEAD, Child, Device, Fleet, Function, Job, Outcome

SLOT = Slot("slot", Wanted("hf", "one/m"), ("*",))


class Nobody:
    link = "test"

    def answer(self, job: Job, outcome: Outcome, body: OutputBody) -> None: ...
    def item(self, job: Job, body: OutputBody, content_type: str) -> None: ...
    def event(self, job: Job, event: Event) -> None: ...
    def rerun(self, job: Job) -> None: ...


def function(name: str, *, takes_s: float | None) -> Function:
    made = Function(SurveyedFunction(name, name, "", "", "sync", "device", False, None))
    if takes_s is not None:
        made.ran(takes_s)
    return made


def wait_in(fleet: Fleet, wanted: Function, count: int) -> list[Job]:
    jobs = []
    for _ in range(count):
        fleet.number += 1
        job = Job(
            fleet.number, Nobody(), str(fleet.number), 1, False, wanted, InlinePayload(b""), "json", False, False, 0.0
        )
        fleet.enqueue(job)
        jobs.append(job)
    return jobs


@pytest.mark.parametrize(
    ("takes_s", "leased"),
    [(0.001, 1 + LEASED_AHEAD), (60.0, 1), (None, 1)],
    ids=["behind a fast job", "behind a slow job", "behind one of unknown length"],
)
def test_jobs_wait_in_a_child_only_behind_what_is_over_soon(takes_s: float | None, leased: int) -> None:
    first, quick = function("first", takes_s=takes_s), function("quick", takes_s=0.001)
    device = Device("cpu:0", "cpu")
    fleet = Fleet({"first": first, "quick": quick}, [device], 1000, 1 << 20, 1 << 20)
    child = device.child = Child(device, 1, 0.0, phase=Phase.READY, ready=True, credits={"device": 1, "loop": 64})
    wait_in(fleet, first, 1)
    decide(fleet, 0.0)
    wait_in(fleet, quick, 100)
    decide(fleet, 0.0)
    assert len(child.leased) == leased


def test_a_quick_function_stays_one_when_it_gets_other_models() -> None:
    quick = Function(SurveyedFunction("quick", "quick", "M", "M", "sync", "device", False, None, [SLOT]))
    quick.ran(0.001)
    fleet = Fleet({"quick": quick}, [Device("cpu:0", "cpu")])
    assert fleet.rebind("quick", [Slot("slot", Wanted("hf", "other/m"), ("*",))])
    assert fleet.functions["quick"] is not quick
    assert fleet.functions["quick"].fast
