"""Whom the kernel ends first when memory runs out: children, then the fetcher, then the keeper, the supervisor last.

See proc(5), `oom_score_adj`: one point is a thousandth of all memory, as if the process took so much more. Children of a
process inherit its score.
"""

from contextlib import suppress

CHILD = 300
FETCHER = 100
_MOST = 1000
_FILE = "/proc/self/oom_score_adj"


def raised(score: int, by: int) -> int:
    """Return the score that is so much higher than another, as far as there is one."""
    return min(_MOST, score + by)


def go_before(by: int) -> None:
    """Have the kernel end this process before its parent: by so many points more than the score it inherited."""
    with suppress(OSError):  # a system that forbids it, or has no `/proc`: the kernel chooses by size alone
        with open(_FILE) as own:
            score = int(own.read())
        with open(_FILE, "w") as own:
            own.write(str(raised(score, by)))
