"""What messages say of installing gen-worker goes, and is what the README says."""

import re
import tomllib
from pathlib import Path

from gen_worker.extras import installed_by

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("src", "child", "supervisor") for path in (ROOT / folder).rglob("*.py")]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_the_command_is_that_of_the_readme() -> None:
    assert installed_by() == "`pip install -e .` in the clone of gen-worker"
    assert installed_by("images") == "`pip install -e '.[images]'` in the clone of gen-worker"
    assert "pip install -e ." in (ROOT / "README.md").read_text()


def test_no_message_says_another_command_and_each_names_an_extra_there_is() -> None:
    named = set()
    for path in SOURCES:
        text = path.read_text()
        assert not re.search(r"pip install[^`\n]*gen-worker", text), path
        named |= set(re.findall(r"""(?:installed_by|require)\(["']([a-z]+)["']""", text))
    assert "http" in named <= EXTRAS.keys()
