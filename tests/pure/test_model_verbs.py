"""What an operator asks for models by hand, and what is answered when."""

from collections.abc import Callable

import pytest

from gen_worker.wire.control import Model as Frame
from gen_worker.wire.control import Modeled
from gen_worker.wire.messages import Load, Loaded, LoadFailed, Pin, Resident, Unload
from gen_worker.wire.scheduler import ModelOpKind, ModelState
from gen_worker_supervisor.clients.model_verbs import ModelVerbs
from gen_worker_supervisor.core.actions import Action, Send
from gen_worker_supervisor.core.evidence import MemoryReading
from gen_worker_supervisor.core.happenings import Happening, MemoryRead
from gen_worker_supervisor.core.pinning import meant, pinned_keys
from gen_worker_supervisor.core.state import Child, Device, Function, Recycling
from gen_worker_supervisor.logs.redaction import redacted
from gen_worker_supervisor.status.model_report import host_models, resident_models
from tests.pure.host import Host, function, sent
from tests.pure.linked import Worker, gpu, hub
from tests.pure.linked import bound as wired
from tests.pure.test_replacing import boots

GIB = 1 << 30


class Operator:
    """A host without processes, and who asks for models there."""

    def __init__(self, *functions: Function, devices: int | list[Device] = 1, eager: bool = False) -> None:
        self.host = Host(*functions, devices=devices, eager=eager)
        self.host.fleet.booting = False
        self.fleet = self.host.fleet
        self._waiting: list[Callable[[], bool]] = []
        self.verbs = ModelVerbs(self, lambda: self.host.now, hide=redacted)
        self.answers: list[Modeled] = []

    def handle(self, *happenings: Happening) -> None:
        """Do what a supervisor does."""
        self.host.happens(*happenings)

    def look(self, over: Callable[[], bool]) -> None:
        """Keep whoever waits for something."""
        self._waiting.append(over)

    def asks(self, operation: str, ref: str = "acme/a", device: str = "") -> None:
        """Have the operator ask for something."""
        self.verbs.perform(Frame(operation, ref, device), self.answers.append)  # type: ignore[arg-type]

    def told(self) -> list[tuple[str, list[str]]]:
        """Return how what was asked went, and where, since this was called last."""
        waiting, self._waiting = self._waiting, []
        self._waiting += [over for over in waiting if not over()]
        answers, self.answers[:] = list(self.answers), []
        return [(answer.outcome, answer.devices) for answer in answers]

    def message(self) -> str:
        """Return what is told of the one thing that was asked."""
        waiting, self._waiting = self._waiting, []
        self._waiting += [over for over in waiting if not over()]
        (answer,) = self.answers
        self.answers.clear()
        return answer.message

    def brings(self) -> None:
        """Have the fetcher look for everything it was asked for, find nothing, and fetch it."""
        for probe in (True, False):
            for order in self.host.ordered(probe=probe):
                model = self.fleet.catalog.models.get(order.wanted.key)
                if model is not None and model.number == order.number and not model.settled:
                    (self.host.absent if probe else self.host.fetched)(order)

    def loads(self, child: Child | None = None, size: int = GIB) -> list[Action]:
        """Have a child set up what it is told to, with models of this size."""
        child = child or self.host.child()
        assert child.loading is not None, "nothing is being set up"
        slots = self.fleet.slots_of(child.loading)
        residents = [Resident(slot.name, slot.wanted.ref, "RAM", size) for slot in slots]
        return self.host.reports(child, Loaded(child.loading, 0.5, residents))

    def has(self, ref: str = "acme/a", device: int = 0) -> None:
        """Have a device hold a model."""
        self.asks("load", ref, f"cpu:{device}")
        self.brings()
        self.loads(self.host.child(device))
        assert self.told() == [("done", [f"cpu:{device}"])]


def painter(name: str = "a", *models: str, vram_gb: float | None = None) -> Function:
    return function(name, instance=name.upper(), models=models or [f"acme/{name}"], vram_gb=vram_gb)


def frames(actions: list[Action], child: Child) -> list[object]:
    """Return what a child was sent of models."""
    return [
        each.message
        for each in actions
        if isinstance(each, Send) and each.child is child and isinstance(each.message, Load | Unload | Pin)
    ]


# --- what is meant ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ref", ["acme/xl", "hf:acme/xl", "xl"])
def test_a_model_is_meant_by_its_ref_with_or_without_its_provider_and_by_its_last_name(ref: str) -> None:
    fleet = Host(painter("a", "acme/xl"), painter("b", "acme/small")).fleet
    assert meant(fleet, ref) == (frozenset({"acme/xl"}), [])


def test_a_name_that_two_models_have_means_neither_and_names_both() -> None:
    fleet = Host(painter("a", "acme/xl"), painter("b", "lab/xl"), painter("c", "lab/small")).fleet
    assert meant(fleet, "xl") == (frozenset(), ["acme/xl", "lab/xl"])


def test_what_no_function_needs_is_not_found_and_what_there_is_is_named() -> None:
    operator = Operator(painter())
    operator.asks("load", "acme/b")
    (answer,) = operator.answers
    assert (answer.outcome, answer.candidates) == ("not_found", ["acme/a"])


def test_a_device_that_is_not_there_is_not_found() -> None:
    operator = Operator(painter())
    operator.asks("pin", "a", "cuda:0")
    (answer,) = operator.answers
    assert (answer.outcome, answer.candidates) == ("not_found", ["cpu:0"])


# --- load -------------------------------------------------------------------------------------------------------------


def test_a_load_is_answered_when_the_model_has_come_and_is_set_up() -> None:
    operator = Operator(painter())
    operator.asks("load")
    operator.brings()
    assert operator.told() == []
    operator.loads()
    assert operator.told() == [("done", ["cpu:0"])]
    assert not operator.fleet.ordered


def test_a_load_goes_to_the_device_with_most_room_and_to_one_that_is_named() -> None:
    operator = Operator(painter("a"), painter("b"), devices=3)
    operator.has("a", 0)
    operator.asks("load", "b")
    operator.brings()
    assert [operator.host.child(at).loading for at in range(3)] == [None, "B", None]
    operator.loads(operator.host.child(1))
    operator.asks("load", "b", "cpu:2")
    operator.loads(operator.host.child(2))
    assert operator.told() == [("done", ["cpu:1"]), ("done", ["cpu:2"])]


def test_a_load_of_what_is_loaded_somewhere_is_over_at_once() -> None:
    operator = Operator(painter(), devices=2)
    operator.has("a", 1)
    operator.asks("load")
    assert operator.told() == [("done", ["cpu:1"])]


def test_a_load_sets_up_every_class_that_needs_the_model() -> None:
    operator = Operator(painter("a"), painter("b", "acme/a", "acme/b"))
    operator.asks("load")
    operator.brings()
    operator.loads()
    assert operator.told() == []
    operator.loads()
    assert operator.told() == [("done", ["cpu:0"])]
    assert operator.host.child().loaded >= {"A", "B"}


def test_a_load_that_fails_is_answered_with_its_error_and_can_be_asked_for_again() -> None:
    operator = Operator(painter())
    operator.asks("load")
    operator.brings()
    operator.host.load_fails(operator.host.child())
    assert operator.message() == "setup of `A` failed: ValueError: no"
    operator.has("a")


@pytest.mark.promise(39)
def test_what_a_setup_raised_is_told_without_its_secrets() -> None:
    operator = Operator(function("paint", instance="p", models=["acme/a"]))
    operator.asks("load")
    operator.host.fetched(*operator.host.ordered())
    operator.host.reports(operator.host.child(), LoadFailed("p", "ValueError: no such token=abc123", [], "setup"))
    assert operator.message() == "setup of `p` failed: ValueError: no such token=[secret]"


def test_a_load_of_a_model_that_cannot_be_had_fails_and_is_not_tried_for_ever() -> None:
    operator = Operator(painter())
    operator.asks("load")
    operator.host.absent(*operator.host.ordered(probe=True))
    operator.host.fetch_fails(*operator.host.ordered(probe=False))
    assert operator.message() == "no acme/a"
    looked = len(operator.host.ordered())
    operator.host.passes(3600)
    assert len(operator.host.ordered()) == looked


def test_a_load_waits_for_the_job_of_its_device_and_disturbs_none() -> None:
    operator = Operator(function("f"), painter())
    busy = operator.host.started("f")
    operator.asks("load")
    operator.brings()
    assert operator.host.child().loading is None
    operator.host.done(busy)
    operator.loads()
    assert operator.told() == [("done", ["cpu:0"])]


def test_a_load_is_not_kept_waiting_by_short_jobs_that_never_end_to_come() -> None:
    operator = Operator(function("f"), painter())
    for _ in range(4):
        operator.host.done(operator.host.started("f"), run_s=0.001)
    jobs = [operator.host.submit("f") for _ in range(40)]
    leased = [job for job in jobs if job.child is not None]
    assert len(leased) > 1, "they are leased ahead"
    operator.asks("load")
    operator.brings()
    for job in leased:
        operator.host.done(job, run_s=0.001)
    assert operator.host.child().loading == "A"
    operator.loads()
    assert operator.told() == [("done", ["cpu:0"])]
    assert any(job.child is not None for job in jobs[len(leased) :])


def test_a_load_goes_on_in_the_next_child() -> None:
    operator = Operator(function("f"), painter())
    busy = operator.host.started("f")
    operator.asks("load")
    operator.brings()
    operator.host.dies(operator.host.child())
    operator.host.boot()
    operator.loads()
    assert operator.told() == [("done", ["cpu:0"])]
    operator.host.ends(busy)


def test_a_setup_that_kills_its_child_is_not_tried_again_by_hand_for_ever() -> None:
    operator = Operator(painter())
    operator.asks("load")
    operator.brings()
    operator.host.dies(operator.host.child())
    assert operator.message() == "setup of `A` killed its child: SIGKILL"
    operator.host.passes(1)
    operator.host.boot()
    assert operator.host.child().loading is None


def test_a_load_on_a_device_that_lacks_what_it_needs_is_refused_once_that_is_known() -> None:
    operator = Operator(function("paint", instance="p", models=["acme/a"]), devices=2)
    operator.asks("load", device="cpu:0")
    operator.host.fetched(*operator.host.ordered())
    operator.host.load_fails(operator.host.child(), "hardware")
    assert operator.told() == [("failed", ["cpu:0"])]
    operator.asks("load", device="cpu:0")
    assert "cpu:0 lacks what `p` needs" in operator.message()
    operator.answers.clear()
    operator.asks("load")
    operator.host.loaded(operator.host.child(1))
    assert operator.told() == [("done", ["cpu:1"])]


def test_a_load_on_a_device_that_may_not_hold_it_is_refused() -> None:
    small, large = (Device(f"cpu:{at}", "cpu", budget_bytes=size * GIB) for at, size in enumerate((4, 24)))
    operator = Operator(painter(vram_gb=16), devices=[small, large])
    operator.asks("load", "a", "cpu:0")
    assert operator.message() == "`a` cannot be loaded on `cpu:0`: no function that needs it may run there"
    operator.asks("load", "a")
    operator.brings()
    assert operator.host.child(1).loading == "A"


# --- unload -----------------------------------------------------------------------------------------------------------


def test_an_unload_is_answered_when_the_model_is_gone() -> None:
    operator = Operator(painter())
    operator.has()
    operator.asks("unload")
    assert operator.told() == [("done", ["cpu:0"])]
    assert "A" not in operator.host.child().loaded
    assert len(sent(operator.host.actions, Unload)) == 1


def test_an_unload_of_one_device_leaves_the_others() -> None:
    operator = Operator(painter(), devices=2, eager=True)
    operator.brings()
    for at in range(2):
        operator.loads(operator.host.child(at))
    operator.asks("unload", "a", "cpu:1")
    assert operator.told() == [("done", ["cpu:1"])]
    operator.host.passes(600)
    assert ["A" in operator.host.child(at).loaded or operator.host.child(at).loading for at in range(2)] == [True, None]


def test_an_unload_waits_for_the_job_that_uses_the_model_and_no_other_begins_on_it() -> None:
    operator = Operator(painter())
    operator.has()
    busy, waiting = operator.host.started("a"), operator.host.submit("a")
    operator.asks("unload")
    assert operator.told() == []
    assert not sent(operator.host.actions, Unload)
    actions = operator.host.done(busy)
    assert operator.told() == [("done", ["cpu:0"])]
    assert frames(actions, operator.host.child())[:1] == [Unload("A")]
    assert operator.host.child().loading == "A", "the job that waits needs it"
    operator.loads()
    operator.host.starts(waiting)
    operator.host.done(waiting)


def test_what_is_being_set_up_goes_once_it_is() -> None:
    operator = Operator(painter())
    operator.asks("load")
    operator.brings()
    operator.asks("unload")
    assert [outcome for outcome, _ in operator.told()] == ["failed"]
    operator.loads()
    assert operator.told() == [("done", [])]
    assert "A" not in operator.host.child().loaded


def test_an_unload_of_what_no_device_has_is_over_at_once() -> None:
    operator = Operator(painter())
    operator.asks("unload")
    assert operator.told() == [("done", [])]


# --- pins -------------------------------------------------------------------------------------------------------------


def test_a_child_is_told_of_pins_at_once_and_of_all_with_the_next_load() -> None:
    operator = Operator(painter("a"), painter("b"))
    operator.has("a")
    operator.asks("pin", "a")
    assert sent(operator.host.actions, Pin) == [Pin(["A"])]
    operator.asks("pin", "b")
    operator.asks("unpin", "a")
    assert sent(operator.host.actions, Pin)[1:] == [Pin(["A", "B"]), Pin(["B"])]
    assert operator.told() == [("done", ["cpu:0"])] * 3


def test_a_pin_loads_nothing() -> None:
    operator = Operator(painter())
    operator.asks("pin")
    assert operator.told() == [("done", ["cpu:0"])]
    assert not operator.host.ordered()


def test_a_pin_of_one_device_says_nothing_of_the_others() -> None:
    operator = Operator(painter(), devices=2)
    operator.asks("pin", "a", "cpu:1")
    operator.asks("load", "a", "cpu:0")
    operator.brings()
    assert not sent([each for each in operator.host.actions if _to(each, operator.host.child(0))], Pin)
    assert [model.pinned for model in host_models(operator.fleet, lambda model: False, str, 0.0)] == [["cpu:1"]]


def _to(action: Action, child: Child) -> bool:
    return isinstance(action, Send) and action.child is child


def test_what_is_pinned_comes_back_after_a_death_before_a_job_asks_for_it_and_pinned() -> None:
    operator = Operator(painter("a"), painter("b"))
    operator.has("a")
    operator.has("b")
    operator.asks("pin", "b")
    operator.host.dies(operator.host.child())
    operator.host.boot()
    child = operator.host.child()
    assert [type(each) for each in frames(operator.host.actions, child)] == [Pin, Load]
    assert child.loading == "B"
    operator.loads()
    assert child.loading is None, "what is not pinned waits for a job"


def test_a_pinned_model_whose_setup_kills_its_child_is_not_brought_back_for_ever() -> None:
    operator = Operator(painter())
    operator.has()
    operator.asks("pin")
    operator.host.dies(operator.host.child())
    operator.host.boot()
    operator.host.dies(operator.host.child())
    operator.host.passes(10)
    operator.host.boot()
    assert operator.host.child().loading is None


def test_a_child_that_takes_anothers_place_gets_the_pins_and_what_is_pinned_first() -> None:
    operator = Operator(painter("a"), painter("b"))
    operator.has("a")
    operator.has("b")
    operator.asks("pin", "b")
    operator.fleet.recycling = Recycling(jobs=1)
    operator.handle(MemoryRead(MemoryReading(0.0, GIB, 64 * GIB, "host", {})))
    operator.host.done(operator.host.started("a"))
    coming = operator.fleet.devices[0].coming
    assert coming is not None
    seen = len(operator.host.actions)
    boots(operator.host, coming)
    assert frames(operator.host.actions[seen:], coming)[0] == Pin(["B"])
    assert coming.loading == "B"


def test_what_is_pinned_is_unloaded_by_nobody() -> None:
    operator = Operator(painter("a", "acme/a", "acme/x"))
    operator.has("a")
    operator.asks("pin", "a")
    operator.told()
    operator.asks("unload", "x")
    assert operator.message() == "`x` stays where it is: `acme/a` is pinned to cpu:0"
    operator.asks("unpin", "a")
    operator.asks("unload", "x")
    assert operator.told() == [("done", ["cpu:0"])] * 2


def test_an_orchestrator_that_wants_a_pinned_model_unloaded_is_told_that_it_is_in_use() -> None:
    worker = Worker(wired("a", hub("acme/a")), devices=[gpu()])
    worker.operates(ModelOpKind.LOAD, "acme/a")
    worker.brings()
    worker.loads()
    worker.events()
    worker.fleet.pins = frozenset({("acme/a", "cuda:0")})
    worker.operates(ModelOpKind.UNLOAD, "acme/a")
    (event,) = worker.events()
    assert (event.state, event.error) == (ModelState.FAILED, "model_in_use")
    assert "A" in worker.host.child().loaded


def test_what_had_no_room_beside_a_pinned_model_is_tried_again_once_that_is_pinned_no_longer() -> None:
    operator = Operator(painter("a"), painter("b"))
    operator.has("a")
    operator.asks("pin", "a")
    operator.told()
    operator.asks("load", "b")
    operator.brings()
    child = operator.host.child()
    operator.host.reports(child, LoadFailed("B", "no room; 1 GB are of `acme/a`", [], "hardware", "insufficient_vram"))
    assert operator.message() == "setup of `B` failed: insufficient_vram: no room; 1 GB are of `acme/a`"
    assert operator.fleet.functions["b"].unavailable is not None
    operator.asks("unpin", "a")
    job = operator.host.submit("b")
    assert operator.host.unanswered(job)
    assert child.loading == "B"


def test_a_pinned_model_leaves_the_hosts_memory_for_nobody() -> None:
    operator = Operator(painter("a"), painter("b"))
    operator.has("a")
    operator.asks("pin", "a")
    assert pinned_keys(operator.fleet) == {"key-acme/a"}
    operator.asks("unpin", "a")
    assert pinned_keys(operator.fleet) == frozenset()


def test_unpinning_what_is_not_pinned_changes_nothing() -> None:
    operator = Operator(painter())
    operator.asks("unpin")
    assert operator.told() == [("done", [])]


# --- what is told of them ---------------------------------------------------------------------------------------------


def test_the_status_says_of_a_model_what_needs_it_where_it_is_pinned_and_when_it_was_used() -> None:
    operator = Operator(painter("a"), painter("b", "acme/a", "acme/b"))
    (one, other) = host_models(operator.fleet, lambda model: False, str, operator.host.now)
    assert (one.ref, one.state, one.functions, one.used_s, one.load_s) == ("acme/a", "COLD", ["a", "b"], None, None)
    assert (other.ref, other.functions) == ("acme/b", ["b"])
    operator.asks("load")
    operator.brings()
    operator.loads()
    operator.loads()
    operator.asks("pin")
    operator.host.passes(60)
    (one, _) = host_models(operator.fleet, lambda model: False, str, operator.host.now)
    assert (one.state, one.pinned, one.used_s, one.load_s) == ("RAM", ["cpu:0"], 60.0, 0.5)
    held = {(each.instance, each.ref): each.pinned for each in resident_models(operator.fleet, operator.host.child())}
    assert held == {("A", "acme/a"): True, ("B", "acme/a"): True, ("B", "acme/b"): False}
    operator.host.started("b")
    (one, _) = host_models(operator.fleet, lambda model: False, str, operator.host.now + 5)
    assert one.used_s == 0.0
