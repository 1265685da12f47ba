"""What is in a log when the author's module has been imported."""

import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.process,
    pytest.mark.needs("torch", "diffusers", "transformers"),
    pytest.mark.timeout(120),
]

IMPORT = "from gen_worker.discovery.walk import import_main; import_main('diffusers.pipelines.stable_diffusion', [])"
WARM = "from gen_worker_child.zygote import warm_up; warm_up(['diffusers.pipelines.stable_diffusion'])"
NAMED = "; from diffusers import StableDiffusionPipeline"
WARNED = "; import logging; logging.getLogger('transformers.utils.import_utils').warning('a fault')"


def logged(program: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


@pytest.mark.parametrize("program", [IMPORT, WARM])
def test_that_a_library_is_not_installed_which_nobody_needs_is_no_line_in_the_log(program: str) -> None:
    assert logged(program + NAMED + WARNED) == "[transformers] a fault\n"
