"""Whether a GPU got the memory of a dead child back, and what its driver reports of it.

Pure: takes readings of the GPUs, changes the fleet, returns actions.
"""

from gen_worker_supervisor.core.actions import Action, Note
from gen_worker_supervisor.core.evidence import GpuReading
from gen_worker_supervisor.core.fates import SETTLE_S, after_loss, missing, spawn_child, strand
from gen_worker_supervisor.core.happenings import DeviceFault, GpusRead
from gen_worker_supervisor.core.phases import NEXT_HEALTH, Health, Phase, step
from gen_worker_supervisor.core.state import Death, Device, Fleet
from gen_worker_supervisor.core.steps import finish_if_drained, kill_child

SPARE_BYTES = 64 << 20  # over the baseline, that are no leak: drivers keep a little


def gpus_read(fleet: Fleet, happening: GpusRead, now: float) -> list[Action]:
    """Learn what is in use of the GPUs."""
    readings = {reading.device: reading for reading in happening.readings}
    actions: list[Action] = []
    for device in fleet.devices:
        read = [gpu for gpu in device.gpus if gpu.name in readings]
        silent = [gpu for gpu in device.gpus if gpu.name in happening.silent]
        for gpu in read:
            _learn(gpu, readings[gpu.name])
        for gpu in silent:
            gpu.vram_used = gpu.busy = gpu.temperature = gpu.watts = None
        if read or silent:
            device.sum_up()
        if not read or any(gpu.vram_used is None for gpu in device.gpus):
            continue
        if device.settle_by is not None and all(map(_has_come_back, device.gpus)):
            actions += _settled(fleet, device, now)
        if device.health is Health.DIRTY:
            actions += _clean(device)
    return actions


def _learn(gpu: Device, reading: GpuReading) -> None:
    """The baseline only falls: what our children leave behind is never taken for what was there before them."""
    gpu.vram_used, gpu.busy = reading.used, reading.busy
    gpu.temperature, gpu.watts = reading.temperature, reading.watts
    if gpu.vram_baseline is not None:
        gpu.vram_baseline = min(gpu.vram_baseline, reading.used)


def _has_come_back(gpu: Device) -> bool:
    return _in_excess(gpu) <= gpu.unattributed + SPARE_BYTES


def _in_excess(gpu: Device) -> int:
    return (gpu.vram_used or 0) - (gpu.vram_baseline or 0)


def _clean(device: Device) -> list[Action]:
    """Learn how much may be missing still: with a new child on the device, no more than what is in use now."""
    if device.settle_by is None:
        for gpu in device.gpus:
            gpu.unattributed = min(gpu.unattributed, max(0, _in_excess(gpu)))
    missed = any(gpu.unattributed > SPARE_BYTES for gpu in device.gpus)
    for gpu in () if missed else device.gpus:
        gpu.unattributed = 0
    device.sum_up()
    if missed:
        device.reason = missing(device)
        return []
    device.health, device.reason = step(NEXT_HEALTH, device.health, Health.OK), ""
    return [Note("info", device.name, "the missing memory has come back")]


def settle_over(fleet: Fleet, device: Device, now: float) -> list[Action]:
    """The time is over in which the memory should have come back: name what is missing, go on without it."""
    if device.settle_by is None or now < device.settle_by:
        return []  # of an earlier death
    if device.vram_used is None:
        text = f"its driver has not said for {SETTLE_S:.0f} s how much memory is in use: nobody waits until it does"
        return [Note("warning", device.name, text), *_settled(fleet, device, now)]
    for gpu in device.gpus:
        gpu.unattributed = _in_excess(gpu)
    device.sum_up()
    if device.health is not Health.DIRTY:
        device.health = step(NEXT_HEALTH, device.health, Health.DIRTY)
    device.reason = missing(device)
    text = f"{SETTLE_S:.0f} s after the child's death {device.reason}"
    return [Note("warning", device.name, text), *_settled(fleet, device, now)]


def _settled(fleet: Fleet, device: Device, now: float) -> list[Action]:
    """The next child may come."""
    device.settle_by = None
    child = device.child
    if child is None or child.phase is not Phase.SETTLING:
        return []
    child.move(Phase.BACKOFF)
    resting = device.restart_at is not None and now < device.restart_at
    return [] if fleet.draining or device.lost or resting else spawn_child(fleet, device, now)


def device_fault(fleet: Fleet, happening: DeviceFault, now: float) -> list[Action]:
    """A driver reported something of a GPU: after what is fatal it gets no more work, and what runs on it ends."""
    device, gpu = next((each, gpu) for each in fleet.devices for gpu in each.gpus if gpu.name == happening.device)
    if device.health is Health.RETIRED:
        return []
    reason = f"{gpu.name}: {happening.reason}" if device.members else happening.reason
    device.fault, device.fault_at = reason, now
    if not happening.fatal:
        return [Note("warning", device.name, reason)]
    device.health = step(NEXT_HEALTH, device.health, Health.RETIRED)
    device.reason, device.settle_by, device.restart_at = reason, None, None
    actions: list[Action] = [Note("error", device.name, f"{reason}: the device is retired")]
    death = Death(cause="device_lost")
    for child in fleet.children():
        if child.device is device and child.phase not in (Phase.SETTLING, Phase.BACKOFF):
            actions += strand(fleet, child, f"its GPU is lost: {reason}", death, now)
            actions += kill_child(fleet, child, now)
    actions += after_loss(fleet, device, now)
    return actions + (finish_if_drained(fleet) if fleet.draining else [])
