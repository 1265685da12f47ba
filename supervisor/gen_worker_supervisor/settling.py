"""Whether a GPU got the memory of a dead child back, and what its driver reports of it.

Pure: takes readings of the GPUs, changes the fleet, returns actions.
"""

from gen_worker_supervisor.state import Action, Device, DeviceFault, Fleet, GpusRead


def gpus_read(fleet: Fleet, happening: GpusRead, now: float) -> list[Action]:
    """Learn what is in use of the GPUs."""
    return []


def device_fault(fleet: Fleet, happening: DeviceFault, now: float) -> list[Action]:
    """A GPU is broken: it gets no more work."""
    return []


def settle_over(fleet: Fleet, device: Device, now: float) -> list[Action]:
    """The time is over in which the memory should have come back."""
    return []
