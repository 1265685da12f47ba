"""How a job that must end is ended: the rungs, and when each of them is due.

Pure: takes what is known of one ending and the time, returns the rungs to climb. Never signals anybody.
"""

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from gen_worker.wire.messages import Climbed


class Reason(StrEnum):
    """Why a job is being ended."""

    CANCEL = "cancel"
    DISCONNECT = "disconnect"
    KILL = "kill"
    DEADLINE = "deadline"
    DRAIN = "drain"
    RESTART = "restart"
    STALL = "stall"


class Rung(IntEnum):
    """One step of the ladder, from the gentlest."""

    COOPERATE = 1
    INTERRUPT = 2
    DUMP = 3
    TERMINATE = 4
    KILL = 5


GRACE_S = {
    Reason.CANCEL: 30.0,
    Reason.DISCONNECT: 30.0,
    Reason.KILL: 5.0,
    Reason.DEADLINE: 5.0,
    Reason.DRAIN: 10.0,
    Reason.RESTART: 10.0,
    Reason.STALL: 5.0,
}
UNHEARD = {Reason.CANCEL, Reason.DISCONNECT, Reason.KILL, Reason.DEADLINE}
"""What nobody wants to hear more of a job after; its items are dropped."""

INTERRUPT_BEFORE_S = 1.0  # rung 2 is tried this long before the grace ends
TERMINATE_AFTER_S = 0.3  # what a stack dump may take
KILL_AFTER_S = 1.3  # what the default action of SIGTERM may take, on two busy cores


@dataclass(slots=True)
class Ending:
    """One job on its way out: why, since when, and how far up the ladder it is."""

    reason: Reason
    began: float
    at_once: bool = False
    rung: int = 0
    hang: str = ""  # how its child hung, when it had not ended by itself
    stack: list[str] = field(default_factory=list)  # where it was
    climbed: list[Climbed] = field(default_factory=list)
    asked: float = field(init=False)  # when somebody first wanted it ended
    unheard: bool = field(init=False)  # nobody wants more items of its stream
    cut: bool = False  # such items came

    def __post_init__(self) -> None:
        self.asked = self.began
        self.unheard = self.reason in UNHEARD

    @property
    def ends(self) -> float:
        """When the job's time to end by itself is over."""
        return self.began if self.at_once else self.began + GRACE_S[self.reason]

    def schedule(self) -> list[tuple[float, Rung]]:
        """Return when each rung is due."""
        ends = self.ends
        gentle = [] if self.at_once else [(self.began, Rung.COOPERATE), (ends - INTERRUPT_BEFORE_S, Rung.INTERRUPT)]
        return [
            *gentle,
            (ends, Rung.DUMP),
            (ends + TERMINATE_AFTER_S, Rung.TERMINATE),
            (ends + KILL_AFTER_S, Rung.KILL),
        ]

    def next_due(self) -> float | None:
        """Return when the next rung is due, None at the top of the ladder."""
        return next((at for at, rung in self.schedule() if rung > self.rung), None)

    def climb(self, now: float) -> list[Rung]:
        """Return the rungs that are due and count them as climbed; a late call leaves none out."""
        due = [rung for at, rung in self.schedule() if rung > self.rung and at <= now]
        for rung in due:
            self.rung = rung
            self.climbed.append(Climbed(int(rung), rung.name.lower(), round(now - self.asked, 3)))
        return due

    def told(self, now: float) -> str:
        """Return in words how far up the ladder it was, and how long after somebody first wanted it ended."""
        rung = f"rung {self.rung}, {Rung(self.rung).name.lower()}" if self.rung else "no rung"
        return f"{rung}, after {max(0.0, now - self.asked):.1f} s"

    def hasten(self, reason: Reason, now: float, *, at_once: bool) -> None:
        """A second order for the same job: the sooner end counts, and an operator's kill names the reason."""
        other = Ending(reason, now, at_once)
        self.unheard = self.unheard or other.unheard
        sooner = other.schedule()[-1][0] < self.schedule()[-1][0]
        if sooner:
            self.began, self.at_once = now, at_once
        if sooner or reason is Reason.KILL:
            self.reason = reason
