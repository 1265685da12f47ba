"""A process whose user the system does not know, and who has no home, still has a place for its models."""

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.process, pytest.mark.root]
NOBODY = 54321
LOOK = f"""
import os, pwd
from pathlib import Path
from gen_worker.sources import default_cache_dir
os.environ.pop("HOME", None)
os.setuid({NOBODY})
print(default_cache_dir({{}}, Path("/nowhere")))
"""


def test_a_user_without_a_name_and_a_home_keeps_models_where_containers_do() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=20, check=False)
    assert (done.stdout, done.stderr) == ("/tmp/model_cache\n", "")
