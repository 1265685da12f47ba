"""The documented way to try a worker: the mock orchestrator, and a worker that is told nothing but its address."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripted.entrypoint import working

pytestmark = pytest.mark.process

COMMAND = [sys.executable, "-m", "gen_worker.testing.mock_orchestrator", "--listen", "127.0.0.1:0", "--wait-s", "60"]


def run(folder: Path, *arguments: str, wire: str = "ORCHESTRATOR_PUBLIC_ADDR") -> tuple[int, list[str], str]:
    """Run one request on a worker that is told nothing but this; return exit code, what was printed, complaints."""
    files = ["--serve-files-dir", str(folder / "files"), "--serve-files-listen", "127.0.0.1:0", "--file-token", "TOKEN"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    with subprocess.Popen([*COMMAND, *files, *arguments], text=True, **pipes) as mock:  # type: ignore[call-overload]
        try:
            address = mock.stderr.readline().split()[-1]
            only = {"ORCHESTRATOR_PUBLIC_ADDR": None, wire: address}
            with working(folder / "worker", address, only):
                printed, complaints = mock.communicate(timeout=60)
                return mock.returncode, printed.splitlines(), complaints
        finally:
            mock.kill()


def test_a_request_runs_with_its_stream_and_its_events(tmp_path: Path) -> None:
    code, lines, complaints = run(tmp_path, "--run", "stream", "--payload-json", '{"text": "done"}', "--print-events")
    assert code == 0, complaints
    assert '[event] output.delta: "grüße"' in lines
    assert '[event] output.delta: {"text":"piece","number":3}' in lines
    assert lines[-1] == "[output] null"


def test_a_file_that_a_request_saves_comes_by_an_upload(tmp_path: Path) -> None:
    code, lines, complaints = run(tmp_path, "--run", "save", "--payload-json", '{"text": "a.bin", "times": 300000}')
    assert code == 0, complaints
    (stored,) = (path for path in (tmp_path / "files").rglob("a.bin") if path.is_file())
    assert stored.read_bytes() == b"x" * 300_000
    assert str(stored.relative_to(tmp_path / "files")) in lines[-1]
    assert any(line.startswith("[file-api] POST /api/v1/media/") for line in lines)
    assert "TOKEN" not in "".join(lines) + complaints


def test_an_output_that_is_too_long_for_its_result_is_fetched_from_the_files(tmp_path: Path) -> None:
    code, lines, complaints = run(tmp_path, "--run", "repeat", "--payload-json", '{"text": "ab", "times": 50000}')
    assert code == 0, complaints
    assert "ab" * 50_000 in lines[-1]
    assert any((tmp_path / "files" / "results").iterdir())


def test_a_worker_that_is_told_only_scheduler_addr_answers_over_the_earlier_wire(tmp_path: Path) -> None:
    payload = ["--payload-json", '{"text": "done"}', "--print-events", "--print-registrations"]
    code, lines, complaints = run(tmp_path, "--run", "stream", *payload, wire="SCHEDULER_ADDR")
    assert code == 0, complaints
    assert any(line.startswith('[connected] {"resources":{"worker_id":') for line in lines)
    assert any(line.startswith("[sent] run_request run_id=mock-") for line in lines)
    assert '[event] output.delta: {"text":"piece","number":3}' in lines
    assert "[event] output.completed: {}" in lines
    assert lines[-1] == "[output] null"


def test_a_request_that_fails_over_the_earlier_wire_is_told_with_its_type(tmp_path: Path) -> None:
    code, _, complaints = run(tmp_path, "--run", "absent", wire="SCHEDULER_ADDR")
    assert code == 1
    assert "[error] internal: no function `absent`; there are: " in complaints
