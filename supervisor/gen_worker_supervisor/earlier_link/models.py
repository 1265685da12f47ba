"""What an earlier orchestrator wants loaded and unloaded, over the same operations as any other's."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gen_worker.wire.earlier import LoadModelCommand, LoadModelResult, Report, UnloadModelCommand, UnloadModelResult
from gen_worker.wire.scheduler import ModelEvent, ModelOp, ModelOpKind, ModelState, WorkerFrame
from gen_worker_supervisor.earlier_link.registration import hot_names, model_id
from gen_worker_supervisor.link.models import LinkModels
from gen_worker_supervisor.link.residency import residency
from gen_worker_supervisor.supervisor import Supervisor


class EarlierModels:
    """The commands that have no result yet."""

    def __init__(self, supervisor: Supervisor, send: Callable[[Report], Any]) -> None:
        self.places = LinkModels(supervisor, self._told)
        supervisor.fleet.catalog.orchestrated = False  # nobody describes models here: their hub does
        self._supervisor = supervisor
        self._send = send
        self._loading: dict[str, None] = {}
        self._unloading: dict[str, None] = {}

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
        self._operate(ModelOpKind.LOAD, command.model_id, self._loading)

    def unload(self, command: UnloadModelCommand) -> None:
        """Have a model on no device; one result follows."""
        self._operate(ModelOpKind.UNLOAD, command.model_id, self._unloading)

    def _operate(self, kind: ModelOpKind, model_id: str, waiting: dict[str, None]) -> None:
        if model_id in waiting:
            return  # the one under way answers for both
        waiting[model_id] = None
        self.places.operate(ModelOp(op=kind, ref=model_id))

    def _told(self, frame: WorkerFrame) -> None:
        """Hear what became of a model: it may be the end of a command."""
        if not isinstance(frame, ModelEvent):
            return
        failed = frame.state is ModelState.FAILED
        if frame.ref in self._loading and (failed or self._is_held(frame)):
            del self._loading[frame.ref]
            self._send(LoadModelResult(model_id=frame.ref, success=not failed, error_message=frame.error))
        elif frame.ref in self._unloading and frame.state is not ModelState.DOWNLOADING:
            del self._unloading[frame.ref]
            self._send(UnloadModelResult(model_id=frame.ref, success=not failed, error_message=frame.error))

    def _is_held(self, event: ModelEvent) -> bool:
        """Whether a child has a model: one that is only in the host's memory is loaded by none."""
        if event.state is ModelState.IN_VRAM:
            return True
        return event.state is ModelState.IN_RAM and self.places.name_of(event.ref) in hot_names(self._supervisor.fleet)


def _spelled(names: Iterable[str], ids: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(ids.get(name, name) for name in names))
