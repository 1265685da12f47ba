"""What a control plane prints about what happens, for people."""

from pathlib import Path
from typing import Any

import pytest

from gen_worker.cli.orchestrator import _told
from gen_worker.orchestrator.app import Options


@pytest.mark.parametrize(
    ("event", "facts", "line"),
    [
        ("worker_connected", {"functions": 1}, "worker `w` connected, with 1 function"),
        ("worker_connected", {"functions": 3}, "worker `w` connected, with 3 functions"),
        ("worker_draining", {"jobs": 0}, "worker `w` drains"),
        ("worker_draining", {"jobs": 1}, "worker `w` drains with 1 job"),
        ("worker_left", {"drained": True, "jobs": 0}, "worker `w` left, drained"),
        ("worker_left", {"drained": False, "jobs": 2}, "worker `w` left with 2 jobs, for which it is awaited"),
    ],
)
def test_a_worker_that_comes_drains_or_goes_has_a_line(event: str, facts: dict[str, Any], line: str) -> None:
    assert _told(event, {"worker": "w", **facts}, Options(state=Path("state"))) == [line]
