"""Whom the kernel ends first when memory runs out: children, then what can be made anew, the supervisor last.

See proc(5), `oom_score_adj`: one point is a thousandth of all memory, as if the process took so much more. What a
process starts inherits its score.
"""

from contextlib import suppress

CHILD = 300
ZYGOTE = 150  # else a supervisor goes while the memory of a child that was just ended is still being freed
FETCHER = 100
_MOST = 1000


def go_before(supervisor_pid: int, points: int) -> None:
    """Have the kernel end this process before its supervisor: by so many points, as far as there are."""
    with suppress(OSError):  # a system that forbids it, or shows no other process: the kernel chooses by size alone
        with open(f"/proc/{supervisor_pid}/oom_score_adj") as supervisors:
            score = min(_MOST, int(supervisors.read()) + points)
        with open("/proc/self/oom_score_adj", "w") as own:
            own.write(str(score))
