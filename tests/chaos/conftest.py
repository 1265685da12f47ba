"""The table of what was broken, after the tests that broke it; `CHAOS_TABLE=FILE` writes it there, too."""

import os
import re
from pathlib import Path

import pytest

from tests.chaos.results import ROWS, table


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if not ROWS:
        return
    terminalreporter.section("what was broken, and what came of it")
    for line in table():
        terminalreporter.write_line(line)
    if page := os.environ.get("CHAOS_TABLE"):
        write(Path(page), "soak" if {promise for promise, _ in ROWS} == {44} else "chaos")


def write(page: Path, part: str) -> None:
    """Put the table into a page, in the place of the last one."""
    pattern = rf"(<!-- measured: {part} -->\n).*?(<!-- end of {part} -->)"
    lines = "\n".join(table())
    page.write_text(
        re.sub(pattern, lambda found: f"{found[1]}\n{lines}\n\n{found[2]}", page.read_text(), flags=re.DOTALL)
    )


@pytest.fixture(scope="session")
def grpc_awake() -> None:
    """Have gRPC open what it keeps open as long as a process lives, before a test's descriptors are counted."""
    from tests.scripted.orchestrator import rehearse

    rehearse()
