"""Which child stands so still that its fault handler may be asked where it is."""

import pytest

from gen_worker.wire.page import Reading
from gen_worker_supervisor.stacks import TURNS, Seen, stands_still

READING = Reading(1, 0.0, 0, 0, 0, 7, 0.0, 0, 0.0, "")
BEFORE = Seen(3, READING, 100, 50)


@pytest.mark.parametrize(
    ("now", "still"),
    [
        (BEFORE._replace(waits=50 + TURNS), True),
        (BEFORE._replace(waits=None), True),
        (BEFORE, False),
        (BEFORE._replace(waits=50 + TURNS, done=4), False),
        (BEFORE._replace(waits=50 + TURNS, reading=Reading(2, 0.0, 0, 0, 0, 7, 0.0, 0, 0.0, "")), False),
        (BEFORE._replace(waits=50 + TURNS, reader=101), False),
    ],
    ids=[
        "it looked for a turn and got none",
        "nothing tells whether it looked",
        "it gets no processor",
        "a job of it ended",
        "it beat",
        "another thread is to answer",
    ],
)
def test_a_child_whose_python_may_run_is_not_asked_by_a_signal(now: Seen, still: bool) -> None:
    assert stands_still(BEFORE, now) is still
