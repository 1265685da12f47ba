"""Who is ended before the kernel ends somebody for lack of memory.

Pure: takes readings of the memory, changes the fleet, returns actions.
"""

from gen_worker_supervisor.state import Action, Fleet, MemoryRead


def memory_read(fleet: Fleet, happening: MemoryRead, now: float) -> list[Action]:
    """Learn how much memory is left; end a child when it is too little."""
    fleet.memory = happening.reading
    return []
