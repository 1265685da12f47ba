"""Put a new child in the place of one that works: it boots and loads first where there is room for both.

Pure, like everything that `apply` is made of.
"""

from gen_worker_supervisor.state import Action, Fleet, RestartAsked


def restart_asked(fleet: Fleet, happening: RestartAsked, now: float) -> list[Action]:
    """Replace a device's child as an operator wants it."""
    return []
