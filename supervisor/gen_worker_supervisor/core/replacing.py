"""Put a new child in the place of one that works: it boots and loads first where there is room for both.

Pure, like everything that `apply` and `decide` are made of.
"""

from gen_worker.wire.messages import Load, LoadFailed, Unload
from gen_worker_supervisor.core.actions import Action, Note, Send
from gen_worker_supervisor.core.endings import end_asked
from gen_worker_supervisor.core.fates import prepare_child, spawn_child
from gen_worker_supervisor.core.happenings import RestartAsked
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.phases import Phase
from gen_worker_supervisor.core.pinning import tell_pins
from gen_worker_supervisor.core.state import Child, Device, Fleet
from gen_worker_supervisor.core.steps import forgo_coming, retire_child

WARM_JOBS = 8  # after so many its memory is what it usually is
LOOK_AGAIN_S = 5.0  # at a child that is too old, while another one is replaced
CONTEXT_BYTES = 1 << 30  # what a process takes of a GPU beside its models, and a little room


def restart_asked(fleet: Fleet, happening: RestartAsked, now: float) -> list[Action]:
    """Replace a device's child as an operator wants it; with `at_once` the ladder ends its jobs."""
    device, child = happening.device, happening.device.child
    if fleet.draining or device.lost or child is None:
        return []
    if child.phase is Phase.BACKOFF:
        return spawn_child(fleet, device, now)
    if not happening.at_once:
        return _replace(fleet, device, child, "an operator wants it", now)
    actions: list[Action] = [Note("info", device.name, f"child {child.pid} is replaced: an operator wants it at once")]
    if not child.retiring:
        actions += retire_child(fleet, child, now)
    for job in [job for each in (child, *device.leaving) for job in each.leased.values()]:
        actions += end_asked(fleet, job, Reason.RESTART, True, now)
    return actions


def age_told(fleet: Fleet, child: Child, now: float) -> list[Action]:
    """Replace a child that is too old; where that cannot be now, look again."""
    actions = recycle_if_due(fleet, child, now)
    if child is child.device.child and child.serving and not actions and not fleet.draining:
        fleet.arm(max(child.device.replace_at, now + LOOK_AGAIN_S), ("recycle", child))
    return actions


def recycle_if_due(fleet: Fleet, child: Child, now: float) -> list[Action]:
    """Replace a child that has done enough, or has grown too much, or is too old; one at a time."""
    device, limits = child.device, fleet.recycling
    if child is not device.child or child.retiring or fleet.draining or now < device.replace_at:
        return []
    if not child.settled_rss and child.done >= WARM_JOBS:
        child.settled_rss = child.rss
    grown = child.rss - child.settled_rss if child.settled_rss else 0
    reason = ""
    if 0 < limits.jobs <= child.done:
        reason = f"it has done {child.done} job{'s' * (child.done > 1)}"
    elif 0 < limits.growth_bytes < grown:
        reason = f"its memory has grown by {grown / (1 << 20):.0f} MiB"
    elif 0 < limits.age_s <= now - child.born:
        reason = f"it is {now - child.born:.0f} s old"
    if not reason or fleet.replacing or _is_another_away(fleet, device):
        return []
    return _replace(fleet, device, child, reason, now)


def _is_another_away(fleet: Fleet, device: Device) -> bool:
    """Whether another device has no child that serves just now: then this one is needed."""
    others = [other for other in fleet.devices if other is not device and not other.lost]
    return any(other.child is None or not other.child.serving for other in others)


def _replace(fleet: Fleet, device: Device, child: Child, reason: str, now: float) -> list[Action]:
    if device.coming is not None or child.retiring:
        return []
    note = Note("info", device.name, f"child {child.pid} is replaced: {reason}")
    if child.serving and has_room_for_two(fleet, device, child):
        device.coming, actions = prepare_child(fleet, device, now)
        fleet.replacing = True
        return [note, *actions]
    return [note, *retire_child(fleet, child, now)]


def has_room_for_two(fleet: Fleet, device: Device, child: Child) -> bool:
    """Whether another child like this one fits beside it, as far as is measured.

    Over the GPUs of a group the author's code has placed its models itself, and nobody has counted them; nor what an
    engine server has of a GPU.
    """
    if (device.members or child.engines) and device.kind != "cpu":
        return False
    memory = fleet.memory
    if memory is None or memory.limit - memory.used < child.rss + fleet.memory_reserve:
        return False
    if device.kind == "cpu":
        return True
    held = sum(model.bytes for models in child.models.values() for model in models if model.tier == "VRAM")
    used, total = device.vram_used, device.vram_total
    return used is not None and total is not None and total - used >= held + CONTEXT_BYTES


def bring_on(fleet: Fleet, now: float) -> list[Action]:
    """Have each child that comes load what the one before it holds, then put it in that one's place."""
    actions: list[Action] = []
    for device in fleet.devices:
        if device.coming is not None and device.child is not None:
            actions += _bring_on(fleet, device, device.child, device.coming, now)
    fleet.replacing = any(device.coming is not None for device in fleet.devices)
    return actions


def _bring_on(fleet: Fleet, device: Device, child: Child, coming: Child, now: float) -> list[Action]:
    if not coming.serving or coming.loading is not None or child.killed:
        return []
    staying = child.loaded - child.going
    for instance in sorted(staying - coming.loaded, key=lambda each: (each not in child.pinned, each)):
        slots = fleet.slots_of(instance)
        if fleet.catalog.ready(slots):
            coming.loading = instance
            coming.loading_done = coming.loading_total = 0
            coming.settle_phase()
            return [*tell_pins(fleet, coming), Send(coming, Load(instance, fleet.catalog.slot_models(slots)))]
    gone = sorted(coming.loaded - staying)  # what the present one has let go of meanwhile, or is to
    for instance in gone:
        coming.drop(instance)
    note, *retired = succeed(fleet, device, child, coming, now)
    return [note, *(Send(coming, Unload(instance)) for instance in gone), *retired]


def succeed(fleet: Fleet, device: Device, child: Child, coming: Child, now: float) -> list[Action]:
    """Put a child that has come into its device's place; the one before goes when its jobs have ended."""
    device.child, device.coming = coming, None
    device.leaving.append(child)
    child.replaced = True
    device.restarts += 1
    fleet.placed += 1
    fleet.changes += 1
    note = Note("info", device.name, f"child {coming.pid} is in the place of child {child.pid}")
    return [note, *([] if child.retiring else retire_child(fleet, child, now))]


def coming_failed(fleet: Fleet, child: Child, message: LoadFailed, now: float) -> list[Action]:
    """What was to be a device's next child cannot load what the present one holds.

    Where it only lacks room, that one goes first; else it stays.
    """
    device = child.device
    actions = forgo_coming(fleet, device, now)
    crowded = message.kind == "out_of_memory" or message.reason == "insufficient_vram"
    if crowded and device.child is not None and not device.child.retiring:
        note = Note("info", device.name, f"there is no room for two children: child {device.child.pid} goes first")
        return [*actions, note, *retire_child(fleet, device.child, now)]
    text = f"the present child stays: in the next one {failed_setup(message)}"
    return [*actions, Note("error", device.name, text, tuple(message.stack))]


def failed_setup(message: LoadFailed) -> str:
    """Say what failed, and why."""
    why = f"{message.reason}: {message.message}" if message.reason else message.message
    return f"setup of `{message.instance}` failed: {why}"
