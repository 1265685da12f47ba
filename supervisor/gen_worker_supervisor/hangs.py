"""How a child hangs: named from five signals, none of which is enough alone.

Pure: takes looks at children, changes the fleet, returns actions.
"""

from gen_worker_supervisor.state import Action, Fleet, Watched


def watched(fleet: Fleet, happening: Watched, now: float) -> list[Action]:
    """Learn from a look at the children."""
    return []
