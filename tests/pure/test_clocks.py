"""A clock that is set back or forth changes no time-out: the time of day is told to people and compared with files."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = ["supervisor/gen_worker_supervisor", "child/gen_worker_child", "src/gen_worker/fetch", "src/gen_worker/api"]
TOLD = {
    "supervisor/gen_worker_supervisor/code_watch.py": "since when files may have changed",
    "supervisor/gen_worker_supervisor/logs/log.py": "when a line was written",
    "supervisor/gen_worker_supervisor/history/postmortems.py": "when a child died, and how old its file is",
    "supervisor/gen_worker_supervisor/history/records.py": "when a job ended",
    "supervisor/gen_worker_supervisor/status/report.py": "when a status was made",
    "supervisor/gen_worker_supervisor/serve.py": "since when a server is ready",
    "supervisor/gen_worker_supervisor/history/spans.py": "when a job came, started and ended",
    "supervisor/gen_worker_supervisor/worker.py": "how long a link is as it is",
    "supervisor/gen_worker_supervisor/link/redialing.py": "since when a link is as it is",
    "src/gen_worker/api/context.py": "a deadline as unix time, for authors who ask for it",
    "src/gen_worker/api/diagnostics.py": "when something was told",
    "src/gen_worker/fetch/cache/ledger.py": "when a model was used last",
    "src/gen_worker/fetch/cache/store.py": "when a model was used last",
    "src/gen_worker/fetch/cache/sweeping.py": "how old a file is",
    "src/gen_worker/fetch/inputs/cache.py": "how old a file is",
    "src/gen_worker/fetch/network/patience.py": "what a server says as a date",
    "src/gen_worker/fetch/sources/tensorhub.py": "until when keys for a bucket are good",
}
WALL_CLOCKS = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}


@cache
def modules() -> list[tuple[str, list[ast.AST]]]:
    """Return each module of the processes that have time-outs, and all that it says."""
    paths = [path for folder in PROCESSES for path in sorted((ROOT / folder).rglob("*.py"))]
    return [(str(path.relative_to(ROOT)), list(ast.walk(ast.parse(path.read_text())))) for path in paths]


def asks_the_time_of_day(node: ast.AST) -> bool:
    """Whether an expression is a look at the wall clock."""
    if isinstance(node, ast.ImportFrom) and node.module == "time":
        return any(alias.name in ("time", "time_ns") for alias in node.names)
    called = node.func if isinstance(node, ast.Call) else None
    if not isinstance(called, ast.Attribute) or not isinstance(called.value, ast.Name):
        return False
    return (called.value.id, called.attr) in WALL_CLOCKS


@pytest.mark.promise(20)
def test_the_time_of_day_is_asked_for_only_where_it_is_told_or_compared_with_files() -> None:
    asking = {name for name, nodes in modules() if any(map(asks_the_time_of_day, nodes))}
    assert asking == set(TOLD)


@pytest.mark.promise(20)
def test_no_point_in_time_is_made_of_the_time_of_day_and_a_length() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name, nodes in modules()
        for node in nodes
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)
        if asks_the_time_of_day(node.left) or asks_the_time_of_day(node.right)
        if name != "src/gen_worker/api/context.py"
    ]
    assert found == []
