"""What authors write is typed: `tests/typing/authors.py` holds what is right, and with which error what is not."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_an_authors_code_is_checked_as_it_is_meant() -> None:
    command = [sys.executable, "-m", "mypy", "tests/typing/authors.py"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert checked.returncode == 0, checked.stdout
