"""What an earlier orchestrator wants loaded, unloaded, or here for its runs, by the same operations as any other's."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gen_worker.models.refs import RefError
from gen_worker.wire.earlier import LoadModelCommand, LoadModelResult, Report, UnloadModelCommand, UnloadModelResult
from gen_worker.wire.fetching import FetchFailed
from gen_worker.wire.scheduler import ModelEvent, ModelOp, ModelOpKind, ModelState, WorkerFrame
from gen_worker_supervisor.core.catalog import Model
from gen_worker_supervisor.core.phases import ModelState as Coming
from gen_worker_supervisor.earlier_link.registration import hot_names, model_id
from gen_worker_supervisor.earlier_link.required import Missing, Wish, canonical
from gen_worker_supervisor.link.models import LinkModels
from gen_worker_supervisor.link.residency import binders, residency
from gen_worker_supervisor.supervisor import Supervisor


class EarlierModels:
    """The commands that have no result yet."""

    def __init__(self, supervisor: Supervisor, send: Callable[[Report], Any]) -> None:
        self.places = LinkModels(supervisor, self._told)
        supervisor.fleet.catalog.orchestrated = False  # nobody describes models here: their hub does
        self._supervisor = supervisor
        self._send = send
        self._commands: dict[tuple[ModelOpKind, str], dict[str, None]] = {}  # the ids of each model that wait
        self._wishes: list[Wish] = []

    @property
    def when_stocked(self) -> Callable[[Callable[[], None]], None]:
        """Calls back once it is known what lies in the caches."""
        return self.places.when_stocked

    def hot_and_warm(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the models that some child holds, and those that are here otherwise, as this wire writes them."""
        fleet = self._supervisor.fleet
        hot = hot_names(fleet)
        here = residency(fleet, self._supervisor.models.in_memory).keys()
        bound = [slot.wanted for function in fleet.variants() for slot in function.surveyed.slots]
        known = [*bound, *(model.wanted for model in fleet.catalog.models.values())]
        known += [stocked.wanted for stocked in fleet.catalog.shelf.values()]
        ids = {fleet.catalog.name_of(wanted): model_id(wanted) for wanted in reversed(known)}
        return _spelled(hot, ids), _spelled(here - hot, ids)

    def load(self, command: LoadModelCommand) -> None:
        """Have a model on a device; one result follows."""
        self._command(ModelOpKind.LOAD, command.model_id)

    def unload(self, command: UnloadModelCommand) -> None:
        """Have a model on no device; one result follows."""
        self._command(ModelOpKind.UNLOAD, command.model_id)

    def have(self, model_ids: Sequence[str], then: Callable[[Missing | None], None]) -> Wish:
        """Have models on the disk at least; `then` hears of it, before this returns where they are here."""
        refs = {self.places.name_of(ref): ref for ref in map(self._ref, model_ids)}
        wish = Wish(refs, then)
        coming = {name for other in self._wishes for name in other.names}
        self._wishes.append(wish)
        for name, ref in refs.items():
            if name not in coming and not wish.is_over:
                self.places.operate(ModelOp(op=ModelOpKind.DOWNLOAD, ref=ref))
        return wish

    def _command(self, kind: ModelOpKind, commanded: str) -> None:
        ref = self._ref(commanded)
        try:
            name = self.places.name_of(ref)
        except RefError as error:
            self._answer(kind, commanded, str(error))
            return
        waiting = self._commands.setdefault((kind, name), {})
        waiting[commanded] = None
        if len(waiting) == 1:  # else the one under way answers for both
            self.places.operate(ModelOp(op=kind, ref=ref))

    def _ref(self, told: str) -> str:
        """Return what an id means on the other link: no tag is `latest`, unless a function binds what it says there."""
        try:
            spelled = canonical(told)
        except RefError:
            return told
        fleet = self._supervisor.fleet
        bound = {fleet.catalog.name_of(slot.wanted) for each in fleet.variants() for slot in each.surveyed.slots}
        as_it_is = self.places.name_of(spelled) not in bound and self.places.name_of(told) in bound
        return told if as_it_is else spelled

    def _told(self, frame: WorkerFrame) -> None:
        """Hear what became of a model: it may be the end of a command, or of a wait."""
        if not isinstance(frame, ModelEvent) or frame.state is ModelState.DOWNLOADING:
            return
        name = self.places.name_of(frame.ref)
        failed = frame.state is ModelState.FAILED
        error = self._explained(name, frame.error)
        if failed or self._is_held(frame):
            self._end(ModelOpKind.LOAD, name, error)
        self._end(ModelOpKind.UNLOAD, name, error)
        if failed and self._is_hopeless(name):
            self._tell_who_waits(name, self._missing(name, frame.error))
        elif not failed and frame.state is not ModelState.EVICTED:
            self._tell_who_waits(name, None)

    def _end(self, kind: ModelOpKind, name: str, error: str) -> None:
        for commanded in self._commands.pop((kind, name), ()):
            self._answer(kind, commanded, error)

    def _explained(self, name: str, error: str) -> str:
        """Return the word of an error with what is known of it."""
        failure = self._failure(name)
        if error and failure is not None:
            return f"{error}: {failure.message}"
        if error == "load_failed" and not binders(self._supervisor.fleet, name):
            return f"{error}: no function here has `{name[:200]}` loaded"
        return error

    def _answer(self, kind: ModelOpKind, commanded: str, error: str) -> None:
        result = LoadModelResult if kind is ModelOpKind.LOAD else UnloadModelResult
        self._send(result(model_id=commanded, success=not error, error_message=error))

    def _tell_who_waits(self, name: str, missing: Missing | None) -> None:
        for wish in [each for each in self._wishes if name in each.names]:
            if missing is None:
                wish.came(name)
            else:
                wish.end(missing)
        self._wishes = [each for each in self._wishes if not each.is_over]

    def _missing(self, name: str, error: str) -> Missing:
        """Return why a model cannot be had."""
        failure = self._failure(name)
        told, retryable = (error, True) if failure is None else (failure.message, failure.retryable)
        return Missing(f"the run requires `{name[:200]}`, which cannot be had: {told}", retryable)

    def _failure(self, name: str) -> FetchFailed | None:
        return next((each.failure for each in self._models_of(name) if each.failure is not None), None)

    def _is_hopeless(self, name: str) -> bool:
        """Whether a model does not come any more: what failed may be a load, while its files are on their way."""
        models = self._models_of(name)
        return not models or any(each.state is Coming.FAILED for each in models)

    def _models_of(self, name: str) -> list[Model]:
        return [each for each in self._supervisor.fleet.catalog.models.values() if each.name == name]

    def _is_held(self, event: ModelEvent) -> bool:
        """Whether a child has a model: one that is only in the host's memory is loaded by none."""
        if event.state is ModelState.IN_VRAM:
            return True
        return event.state is ModelState.IN_RAM and self.places.name_of(event.ref) in hot_names(self._supervisor.fleet)


def _spelled(names: Iterable[str], ids: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(ids.get(name, name) for name in names))
