"""The table of what was broken, after the tests that broke it; `CHAOS_TABLE=FILE` writes it there, too."""

import os
import re
from pathlib import Path

import pytest

from tests.chaos.results import ROWS, table

_PART = re.compile(r"(<!-- measured: chaos -->\n).*?(<!-- end of chaos -->)", re.DOTALL)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if not ROWS:
        return
    terminalreporter.section("what was broken, and what came of it")
    for line in table():
        terminalreporter.write_line(line)
    if page := os.environ.get("CHAOS_TABLE"):
        text = Path(page).read_text()
        lines = "\n".join(table())
        Path(page).write_text(_PART.sub(lambda found: f"{found[1]}\n{lines}\n\n{found[2]}", text))


@pytest.fixture(scope="session")
def grpc_awake() -> None:
    """Have gRPC open what it keeps open as long as a process lives, before a test's descriptors are counted."""
    from tests.scripted.orchestrator import rehearse

    rehearse()
