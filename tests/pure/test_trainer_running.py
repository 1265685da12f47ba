"""One training in its process, as it is handed over: from its contract to what it says of its end."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gen_worker import CanceledError, TrainingContext
from gen_worker.api.errors import FatalError
from gen_worker.trainer import TrainerSubprocessContractV1, write_subprocess_contract
from gen_worker.trainer.running import TrainingEnd, TrainingOrder, train_as_ordered

PLUGIN = """
import os

class Trainer:
    def setup(self, ctx):
        self.told = os.environ.get("TOLD", "")

    def configure(self, ctx):
        return {"sum": 0}

    def prepare_batch(self, raw, state, ctx):
        return raw["a"][0] if isinstance(raw, dict) else raw

    def train_step(self, batch, state, ctx):
        state["sum"] += batch
        return {"loss": 1 / state["sum"]}

    def state_dict(self, state):
        return {**state, "told": self.told}

    def load_state_dict(self, state, payload, ctx):
        state.update(payload)

    def sample(self, *, prompts, seed, step, state, output_dir, ctx):
        return [{"seed": seed + at, "said": prompt.get("negative_prompt", "")} for at, prompt in enumerate(prompts)]
"""


class Handed:
    """A training that was handed over in a folder."""

    def __init__(self, folder: Path, **contract: Any) -> None:
        self.folder = folder
        (folder / "handed_trainer.py").write_text(PLUGIN)
        self.contract = TrainerSubprocessContractV1(
            job_spec_path=str(folder / "job.json"),
            checkpoints_dir=str(folder / "checkpoints"),
            samples_dir=str(folder / "samples"),
            events_path=str(folder / "metrics/events.jsonl"),
            **contract,
        )
        write_subprocess_contract(self.contract, folder / "contract.json")
        self.told: list[dict[str, Any]] = []

    def train(self, *, resume: bool = False, **spec: Any) -> TrainingEnd:
        """Train as a process does that is told so."""
        given = {"trainer": "handed_trainer", "request_id": "r", "max_steps": 3, "mock_batches": [1, 2, 3]}
        (self.folder / "job.json").write_text(json.dumps({**given, **spec}))
        ctx = TrainingContext(request_id="r", emitter=self.told.append, local_output_dir=self.folder / "outputs")
        return train_as_ordered(ctx, TrainingOrder(contract_path=str(self.folder / "contract.json"), resume=resume))

    def logged(self) -> list[str]:
        """What the log was told."""
        return [each["payload"]["message"] for each in self.told if "message" in each.get("payload", ())]

    def state(self, step: int) -> Any:
        """What was kept of a step."""
        return json.loads((self.folder / f"checkpoints/step-{step:08d}.json").read_text())["state"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("handed_trainer", None)
    os.environ.pop("TOLD", None)


@pytest.mark.needs("pyarrow")
def test_rows_of_an_arrow_file_and_variables_come_with_the_contract(folder: Path) -> None:
    import pyarrow

    table = pyarrow.table({"a": [4, 5, 6]})
    with pyarrow.OSFile(str(folder / "rows.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    handed = Handed(folder, arrow_ipc_path=str(folder / "rows.arrow"), extra_env={"TOLD": "by the contract"})
    end = handed.train(mock_batches=[], dataset={"batch_size": 1})
    assert end.step == 3
    assert handed.state(3) == {"sum": 15, "told": "by the contract"}


def test_samples_are_made_of_the_prompts_and_the_seed_of_the_job_spec(folder: Path) -> None:
    prompts = ["a cat", {"name": "dog", "prompt": "a dog", "negative_prompt": "a cat"}]
    Handed(folder).train(sample_every=2, sample_prompts=prompts, sample_seed=7)
    made = [json.loads(path.read_text()) for path in sorted((folder / "samples").iterdir())]
    assert [path.name for path in sorted((folder / "samples").iterdir())] == [
        "step-00000002-00.json", "step-00000002-01.json"
    ]  # fmt: skip
    assert [each["sample"] for each in made] == [{"seed": 7, "said": ""}, {"seed": 8, "said": "a cat"}]
    assert [each["prompt"]["name"] for each in made] == ["sample-00", "dog"]


def test_what_is_complete_completes_at_once_and_what_is_not_goes_on_from_the_highest_checkpoint(folder: Path) -> None:
    handed = Handed(folder)
    handed.train(checkpoint_every=1)
    (folder / "checkpoints/final.json").unlink()
    (folder / "checkpoints/step-00000003.json").write_text("{")
    end = handed.train(resume=True, max_steps=4)
    assert (end.step, handed.state(4)["sum"]) == (4, 7)
    assert end.final_checkpoint_sha256
    again = handed.train(resume=True, max_steps=4)
    assert (again.step, again.final_checkpoint) == (4, end.final_checkpoint)
    said = "the training was complete after step 4: nothing is trained again"
    assert said in handed.logged()
    assert handed.train(resume=True, max_steps=9).step == 4
    more = "; for more steps begin another one, with the last checkpoint as `resume_checkpoint_path`"
    assert said + more in handed.logged()
    events = [json.loads(line) for line in (folder / "metrics/events.jsonl").read_text().splitlines()]
    assert [each.get("resumed_from") for each in events if each["event"] == "started"] == [None, 2]
    assert [each["step"] for each in events if each["event"] == "completed"] == [3, 4, 4, 4]
    assert [each["seq"] for each in events] == [*range(1, len(events) + 1)]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"trainer": "no_such_module"}, "startup: ValueError: no module `no_such_module`"),
        ({"mock_batches": []}, "input: InputError: there is nothing to train on"),
        ({"resume_checkpoint_path": "/nowhere"}, "input: CheckpointError: `/nowhere` cannot be read"),
        ({"mock_batches": ["x"]}, "train-step: TypeError: unsupported operand"),
        ({"max_steps": -1}, "startup: startup.invalid_job_spec: `max_steps`"),
    ],
)
def test_an_error_begins_with_the_part_of_the_training_that_it_is_of(
    folder: Path, spec: dict[str, Any], said: str
) -> None:
    with pytest.raises(FatalError) as caught:
        Handed(folder).train(**spec)
    assert str(caught.value).startswith(said)


def test_a_cancel_file_ends_it_with_a_checkpoint(folder: Path) -> None:
    (folder / "cancel").write_text("yes")
    with pytest.raises(CanceledError, match="after step 0"):
        Handed(folder).train(cancel_file_path=str(folder / "cancel"))
