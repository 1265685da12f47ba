"""What must happen in time counts a clock that nobody can set; the time of day is for people to read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("supervisor/gen_worker_supervisor", "child/gen_worker_child")
OF_DAY = {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "datetime.datetime.utcnow"}
SINCE = {"time.monotonic", "time.monotonic_ns", "time.perf_counter", "time.perf_counter_ns"}
# Since when a link is up; when a child died, when a job came and ended.
SHOWN = {"worker.py", "history/postmortems.py", "history/records.py", "history/spans.py"}


def reckoned(module: ast.Module) -> Iterator[ast.AST]:
    """Every sum, difference and comparison that the time of day is part of."""
    for node in ast.walk(module):
        if isinstance(node, ast.BinOp | ast.Compare):
            calls = (each for each in ast.walk(node) if isinstance(each, ast.Call))
            if any(ast.unparse(each.func) in OF_DAY for each in calls):
                yield node


@pytest.mark.promise(20)
@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_reckoned_with_the_time_of_day(package: str) -> None:
    files = (ROOT / package).rglob("*.py")
    found = {str(file.relative_to(ROOT / package)) for file in files if any(reckoned(ast.parse(file.read_text())))}
    assert found <= SHOWN


@pytest.mark.promise(20)
def test_the_core_is_told_the_time_and_never_asks_for_it() -> None:
    for file in (ROOT / PACKAGES[0] / "core").glob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        asked = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)} & (OF_DAY | SINCE)
        imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        assert not asked, file.name
        assert imported.isdisjoint({"datetime", "asyncio"}), file.name
