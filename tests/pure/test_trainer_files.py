"""The files of a training: whole or passed over, and what they say is what was meant."""

import enum
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gen_worker.trainer import TrainerSubprocessContractV1, read_subprocess_contract, write_subprocess_contract
from gen_worker.trainer.archives import as_one_file, is_archive, unpacked
from gen_worker.trainer.checkpoints import (
    CheckpointError,
    CheckpointFolder,
    latest,
    read_checkpoint,
    read_final,
    steps_in,
)
from gen_worker.trainer.contracts import StatePayload
from gen_worker.trainer.events import EventFile, last_event
from gen_worker.trainer.packing import pack, unpack


class Colour(enum.IntEnum):
    RED = 1


class Plugin:
    """A trainer that writes a file of its own."""

    def save_checkpoint(self, *, state: Any, step: int, output_dir: str, final: bool, ctx: Any) -> dict[str, Any]:
        path = Path(output_dir, "weights.bin")
        path.write_bytes(b"w" * step)
        return {"primary_path": str(path), "final": final}


def write(folder: Path, step: int, trainer: Any = None, request_id: str = "r", **state: Any) -> Path:
    payload = StatePayload(state, {"step": step, "taken": step})
    writer = CheckpointFolder(folder, request_id)
    return Path(writer.write_checkpoint(step=step, state_payload=payload, trainer=trainer, state=None, ctx=None))


@pytest.fixture
def said() -> list[str]:
    return []


def test_the_highest_checkpoint_is_gone_on_from(tmp_path: Path, said: list[str]) -> None:
    for step in (10, 2, 30):
        write(tmp_path, step, Plugin(), loss=step / 2)
    found = latest(tmp_path, "r", said.append)
    assert found is not None
    assert (found.step, found.payload, found.payload.runtime) == (30, {"loss": 15.0}, {"step": 30, "taken": 30})
    assert (found.checkpoint_dir, said) == (str(tmp_path / "step-00000030"), [])


@pytest.mark.parametrize("victim", ["step-00000020.json", "step-00000020/weights.bin"])
@pytest.mark.parametrize("harm", ["torn", "changed", "gone", "empty"])
def test_a_checkpoint_of_which_a_byte_is_wrong_is_passed_over_and_that_is_said(
    tmp_path: Path, said: list[str], victim: str, harm: str
) -> None:
    write(tmp_path, 10, Plugin())
    path = write(tmp_path, 20, Plugin(), loss=0.5).parent / victim
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes({"torn": content[:-3], "changed": b"#" + content[1:], "empty": b""}[harm])
    found = latest(tmp_path, "r", said.append)
    assert found is not None
    assert found.step == 10
    assert len(said) == (0 if victim.endswith(".json") and harm == "gone" else 1)


def test_a_changed_number_in_a_step_file_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, 10, loss=0.5)
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def test_of_checkpoints_so_many_stay_as_are_wanted_and_each_goes_whole(tmp_path: Path, said: list[str]) -> None:
    writer = CheckpointFolder(tmp_path, "r", keep=2)
    (tmp_path / "step-00000002.safetensors").touch()  # a death has left it
    for step in (5, 10, 15, 20):
        payload = StatePayload({"at": step}, {"step": step})
        writer.write_checkpoint(step=step, state_payload=payload, trainer=Plugin(), state=None, ctx=None)
    names = {"step-00000015", "step-00000015.json", "step-00000020", "step-00000020.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    (tmp_path / "step-00000020.json").write_text("torn")
    found = latest(tmp_path, "r", said.append)
    assert found is not None
    assert found.step == 15


def test_checkpoints_of_another_training_are_none_of_this_one(tmp_path: Path, said: list[str]) -> None:
    write(tmp_path, 10, request_id="other")
    assert latest(tmp_path, "r", said.append) is None
    assert "another training, `other`" in said[0]


def test_parts_that_a_death_has_left_are_no_checkpoints(tmp_path: Path, said: list[str]) -> None:
    write(tmp_path, 10)
    (tmp_path / ".step-00000020.json.part").write_text("{")
    (tmp_path / "step-00000020").mkdir()
    (tmp_path / "step-x.json").write_text("{}")
    assert [step for step, _ in steps_in(tmp_path)] == [10]


def test_the_end_says_where_what_was_made_is(tmp_path: Path, said: list[str]) -> None:
    writer = CheckpointFolder(tmp_path, "r")
    payload = StatePayload({}, {"step": 7})
    path = writer.finalize(state_payload=payload, trainer=Plugin(), state=None, ctx=None)
    assert path == str(tmp_path / "final/weights.bin")
    assert read_final(tmp_path, "r", said.append) == (7, path)
    assert read_final(tmp_path, "other", said.append) is None
    Path(path).write_bytes(b"other")
    assert read_final(tmp_path, "r", said.append) is None
    assert len(said) == 2
    plain = tmp_path / "plain"
    path = CheckpointFolder(plain, "r").finalize(state_payload=payload, trainer=None, state=None, ctx=None)
    assert path == str(plain / "step-00000007.json")


@pytest.mark.parametrize("hook", [None, Plugin()])
def test_a_checkpoint_travels_as_one_file_that_has_all_of_it(tmp_path: Path, hook: Any, said: list[str]) -> None:
    step = write(tmp_path / "here", 5, hook, loss=0.5)
    with as_one_file(step) as file:
        assert is_archive(file) == (hook is not None)  # a step file that is all there is travels as it is
        there = unpacked(file, tmp_path / "there") if is_archive(file) else step.parent
    found = latest(there, "r", said.append)
    assert found is not None
    assert (found.step, found.payload, found.checkpoint_dir is None, said) == (5, {"loss": 0.5}, hook is None, [])
    assert not list(step.parent.glob(".*"))


def test_an_archive_writes_nowhere_but_into_its_folder(tmp_path: Path) -> None:
    (tmp_path / "evil").write_text("x")
    with tarfile.open(tmp_path / "evil.tar", "w") as file:
        file.add(tmp_path / "evil", "../out")
    with pytest.raises(CheckpointError, match="cannot be unpacked"):
        unpacked(tmp_path / "evil.tar", tmp_path / "there")
    assert not (tmp_path / "out").exists()


def test_what_is_no_state_is_refused_by_its_place() -> None:
    with pytest.raises(TypeError, match=r"`state.a\[1\]` cannot be kept .* `object`"):
        pack({"a": [1, object()]}, {})


@pytest.mark.parametrize(
    "value",
    [
        {"state": {0: (1, 2.5), 1: None}, "$odd": [b"\x00\xff", True]},
        {"big": 2**200, "inf": float("inf"), "text": "ü", "sets": {1, 2}},
        Counter({3: 1}),
        Colour.RED,
    ],
)
def test_states_come_back_as_they_were(value: Any) -> None:
    assert unpack(json.loads(json.dumps(pack(value, {}))), {}) == value


def test_events_go_on_where_a_death_has_torn_the_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics" / "events.jsonl"
    events = EventFile(path, "r")
    events.write("started", run_id="r")
    events.write("metric", name="train/loss", value=1.0, step=1)
    with path.open("ab") as file:
        file.write(b'{"event": "met')
    assert last_event(path) == "metric"
    EventFile(path, "r").write("failed", step=1, error="it died")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["event"], line["seq"]) for line in lines] == [("started", 1), ("metric", 2), ("failed", 3)]
    assert {line["schema_version"] for line in lines} == {"trainer_event.v1"}


def test_a_subprocess_contract_is_read_as_it_was_written(tmp_path: Path) -> None:
    contract = TrainerSubprocessContractV1(job_spec_path="/job.json", trainer_plugin="a:B", extra_env={"A": "1"})
    path = write_subprocess_contract(contract, tmp_path / "deep" / "contract.json")
    assert read_subprocess_contract(path) == contract
    assert contract.checkpoints_dir == "/tmp/training/checkpoints"
    for wrong in (
        '{"trainer_plugin": "a"}',
        '{"job_spec_path": ""}',
        '{"job_spec_path": "a", "contract_version": "v9"}',
    ):
        path.write_text(wrong)
        with pytest.raises(ValueError, match="subprocess contract"):
            read_subprocess_contract(path)
