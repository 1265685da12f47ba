"""What the orchestrator is told of this worker's functions: which can be called, which come, which cannot be had here.

Pure: takes a fleet and the time, returns values. What was told before, and whether it is told again, is not known here.
"""

from collections.abc import Mapping
from typing import NamedTuple

from gen_worker.models.wanted import Slot
from gen_worker.wire.scheduler import FnUnavailable, StateDelta, WorkerPhase
from gen_worker_supervisor.core.phases import Health, ModelState
from gen_worker_supervisor.core.state import (
    Device,
    Fleet,
    Function,
    capacity_bytes,
    drained_away,
    holds,
    takes,
    too_few,
    too_old,
    too_small,
    unheld,
)
from gen_worker_supervisor.core.verdicts import INSUFFICIENT_DISK

FREE_STEP = 20  # free memory is told in so many steps of all there is, so that a byte less is no news
DESCRIBED = "tensorhub"  # the provider whose models the orchestrator describes, with the addresses of their files
_FETCHED = (ModelState.QUEUED, ModelState.FETCHING)  # from the hub, which says what an orchestrator does not
_COMING = (ModelState.SEEKING, ModelState.QUEUED, ModelState.FETCHING)


class Availability(NamedTuple):
    """What a worker can do at one moment."""

    state: StateDelta
    gated: list[FnUnavailable]
    """The functions that it cannot run at all, by name."""


def availability(fleet: Fleet, now: float, *, draining: bool, free_vram_bytes: int) -> Availability:
    """Return what to tell of the functions. `free_vram_bytes` is what is free on all GPUs that take jobs."""
    functions = sorted(fleet.functions.values(), key=lambda function: function.name)
    gated = [gate for function in functions if (gate := _gate(fleet, function, now)) is not None]
    names = {gate.function_name for gate in gated}
    others = [function for function in functions if function.name not in names]
    served = [function for function in others if not drained_away(fleet, function)]  # the others come back by a word
    ready = [function for function in served if _is_ready(fleet, function)]
    loading = [function for function in served if function not in ready]
    state = StateDelta(
        phase=_phase(fleet, others, loading),
        available_functions=() if draining else tuple(function.name for function in ready),
        loading_functions=() if draining else tuple(function.name for function in loading),
        free_vram_bytes=_floored(free_vram_bytes, fleet),
    )
    return Availability(state, gated)


def _floored(free_bytes: int, fleet: Fleet) -> int:
    step = sum(device.vram_total or 0 for device in fleet.devices) // FREE_STEP
    return free_bytes // step * step if step else 0


# --- what cannot be had here ------------------------------------------------------------------------------------------


def _gate(fleet: Fleet, function: Function, now: float) -> FnUnavailable | None:
    """Return why a function cannot run here: what the host lacks first, then what has gone wrong."""
    return _host_gate(fleet, function) or _fault_gate(fleet, function, now)


def _host_gate(fleet: Fleet, function: Function) -> FnUnavailable | None:
    surveyed = function.surveyed
    if any(holds(device, function) for device in fleet.devices):
        return None
    detail = unheld(fleet, function)
    there = [device for device in fleet.devices if takes(device, function)]
    if surveyed.gpu and not there:
        gpus = sum(device.gpu_count for device in fleet.devices if device.kind == "cuda")
        return _told(function, "cuda_unavailable", detail, {"gpu_count": str(gpus)})
    if surveyed.missing:
        return _told(function, "missing_cuda_library", detail, {"missing": ",".join(surveyed.missing)})
    if there and all(too_few(device, function) for device in there):
        return _told(function, "insufficient_gpus", detail, _counts(function, there))
    there = [device for device in there if not too_few(device, function)]
    if there and all(too_old(device, function) for device in there):
        return _told(function, "compute_capability_unmet", detail, _ages(function, there))
    small = [device for device in there if too_small(device, function)]
    if small:
        return _told(function, "insufficient_vram", detail, _sizes(function, small))
    return _told(function, "no_device", detail, {})


def _counts(function: Function, devices: list[Device]) -> dict[str, str]:
    most = max(device.gpu_count for device in devices)
    return {"required_gpu_count": str(function.surveyed.gpu_count), "detected_gpu_count": str(most)}


def _ages(function: Function, devices: list[Device]) -> dict[str, str]:
    newest = max(int(device.sm) for device in devices)
    return {"detected_sm": str(newest), "required_sm": str(round((function.surveyed.compute_capability or 0) * 10))}


def _sizes(function: Function, devices: list[Device]) -> dict[str, str]:
    most = max(capacity_bytes(device, function) for device in devices)
    return {
        "required_vram_gb": f"{function.surveyed.vram_gb:g}",
        "detected_vram_gb": str(round(most / (1 << 30))),  # a 24 GB card reports 23.99 GiB
    }


def _fault_gate(fleet: Fleet, function: Function, now: float) -> FnUnavailable | None:
    verdict = function.verdict
    if function.unavailable is not None and verdict.reason != INSUFFICIENT_DISK:
        return _told(function, verdict.reason, function.unavailable, verdict.axes)
    lost = [device for device in fleet.devices if holds(device, function)]
    if all(device.lost for device in lost):
        return _told(function, "device_lost", lost[0].loss, {})
    broken = fleet.blame.breaker(function.name, now)
    if broken is not None:
        return _told(function, "breaker_open", broken.partition(";")[0], {})  # how long still would be news each time
    return _model_gate(fleet, function)


def _model_gate(fleet: Fleet, function: Function) -> FnUnavailable | None:
    """Return which model of a function its provider refuses for good; one that is described may be described anew."""
    for slot in function.surveyed.slots:
        model = fleet.catalog.models.get(slot.wanted.key)
        failure = model.failure if model is not None and model.state is ModelState.FAILED else None
        if failure is None or failure.retryable or slot.wanted.provider == DESCRIBED:
            continue
        if failure.kind not in (INSUFFICIENT_DISK, "read_only"):
            return _told(function, "model_unavailable", failure.message, {"ref": slot.wanted.ref})
    return None


def _told(function: Function, reason: str, detail: str, axes: Mapping[str, str]) -> FnUnavailable:
    text = detail.removeprefix(f"{reason}: ")
    return FnUnavailable(function_name=function.name, reason=reason, detail=text, axes=axes)


# --- what can be called now -------------------------------------------------------------------------------------------


def _is_ready(fleet: Fleet, function: Function) -> bool:
    """Whether a job of a function would run without anything new to be fetched or tried.

    What was set up once counts although another model may be in its place now, or its child be gone: it comes back by
    itself when a job wants it, and an orchestrator that waited for that would send none.
    """
    surveyed = function.surveyed
    if not any(holds(device, function) and device.proven and _is_sound(device) for device in fleet.devices):
        return False
    if _is_undescribed(fleet, function):
        return False
    known = fleet.instances.get(surveyed.instance)
    if known is not None and known.failures:
        return False
    if not surveyed.class_name or not surveyed.slots:
        return True
    return known is not None and known.learned and all(_is_here(fleet, slot) for slot in surveyed.slots)


def _is_sound(device: Device) -> bool:
    return not (device.lost or device.drained) and device.health is not Health.WEDGED


def _is_here(fleet: Fleet, slot: Slot) -> bool:
    model = fleet.catalog.models.get(slot.wanted.key)
    return model is not None and model.here


def _is_undescribed(fleet: Fleet, function: Function) -> bool:
    """Whether the orchestrator has yet to say which files a model of a function has."""
    for slot in function.surveyed.slots:
        model = fleet.catalog.models.get(slot.wanted.key)
        known = model is not None and (model.here or model.files or model.state in _FETCHED)
        if slot.wanted.provider == DESCRIBED and not known:
            return True
    return False


# --- how far the start is ---------------------------------------------------------------------------------------------


def _phase(fleet: Fleet, runnable: list[Function], loading: list[Function]) -> WorkerPhase:
    """Return how far the worker is; what waits for the orchestrator's description holds nothing up."""
    if fleet.functions and (not runnable or all(device.lost for device in fleet.devices)):
        return WorkerPhase.ERROR
    if not any(device.proven for device in fleet.devices):
        return WorkerPhase.BOOTING
    coming = [function for function in loading if not _is_undescribed(fleet, function)]
    if not coming:
        return WorkerPhase.READY
    if any(_is_fetched(fleet, slot) for function in coming for slot in function.surveyed.slots):
        return WorkerPhase.DOWNLOADING_MODELS
    return WorkerPhase.LOADING_PIPELINES


def _is_fetched(fleet: Fleet, slot: Slot) -> bool:
    """Whether the worker is about to have a model from where it is published."""
    model = fleet.catalog.models.get(slot.wanted.key)
    return slot.wanted.provider != DESCRIBED and model is not None and model.state in _COMING
