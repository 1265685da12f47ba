"""The files of a training: whole or passed over, and what they say is what was meant."""

import enum
import errno
import json
import resource
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gen_worker.trainer import TrainerSubprocessContractV1, read_subprocess_contract, write_subprocess_contract
from gen_worker.trainer.archives import as_one_file, is_archive, unpacked
from gen_worker.trainer.checkpoints import (
    CheckpointError,
    CheckpointFolder,
    SampleFolder,
    final_named,
    latest,
    read_checkpoint,
    read_final,
    steps_in,
)
from gen_worker.trainer.contracts import StatePayload
from gen_worker.trainer.events import EventFile, last_event
from gen_worker.trainer.packing import pack, unpack
from gen_worker.trainer.room import NoRoomError, lacks_room


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


def test_an_archive_without_room_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "weights.bin").write_bytes(bytes(200_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with (
            pytest.raises(NoRoomError, match=r"no room for `.*final\.tar`: it takes 200000"),
            as_one_file(tmp_path / "final"),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


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


class Full(Plugin):
    """Writes to a disk that has no room."""

    def save_checkpoint(self, *, state: Any, step: int, output_dir: str, final: bool, ctx: Any) -> dict[str, Any]:
        super().save_checkpoint(state=state, step=step, output_dir=output_dir, final=final, ctx=ctx)
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")
        return {}


@pytest.mark.parametrize("who", ["plugin", "step file", "final"])
def test_a_checkpoint_without_room_leaves_nothing_of_itself_and_all_of_the_one_before(
    tmp_path: Path, said: list[str], who: str
) -> None:
    write(tmp_path, 10, Plugin(), loss=1.0)
    before = sorted(tmp_path.rglob("*"))
    payload = StatePayload({"loss": 0.5}, {"step": 20})
    writer = CheckpointFolder(tmp_path, "r")
    named: dict[str, Any] = {"state_payload": payload, "state": None, "ctx": None}
    if who == "step file":
        (tmp_path / ".step-00000020.json.part").symlink_to("/dev/full")
    attempts: dict[str, Callable[[], object]] = {
        "plugin": lambda: writer.write_checkpoint(step=20, trainer=Full(), **named),
        "step file": lambda: writer.write_checkpoint(step=20, trainer=Plugin(), **named),
        "final": lambda: writer.finalize(trainer=Full(), **named),
    }
    with pytest.raises(NoRoomError) as caught:
        attempts[who]()
    path = tmp_path / ("final.json" if who == "final" else "step-00000020.json")
    assert str(caught.value).startswith(f"no room for `{path}`: it takes ")
    assert "; blocks, inodes or a quota are used up, although " in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
    found = latest(tmp_path, "r", said.append)
    assert found is not None
    assert (found.step, said) == (10, [])
    write(tmp_path, 20, Plugin(), loss=0.5)
    assert [step for step, _ in steps_in(tmp_path)] == [20, 10]


def test_another_error_than_want_of_room_stays_what_it_is_and_leaves_nothing_either(tmp_path: Path) -> None:
    class Broken(Plugin):
        def save_checkpoint(self, **asked: Any) -> dict[str, Any]:
            super().save_checkpoint(**asked)
            raise KeyError("weights")

    with pytest.raises(KeyError, match="weights"):
        write(tmp_path, 10, Broken())
    assert list(tmp_path.iterdir()) == []


def test_a_sample_without_room_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    class Sampling:
        def sample(self, **asked: Any) -> list[dict[str, Any]]:
            return [{"said": "hi"}]

    (tmp_path / ".step-00000002-00.json.part").symlink_to("/dev/full")
    with pytest.raises(NoRoomError, match=f"no room for `{tmp_path}/step-00000002-00.json`: it takes "):
        SampleFolder(tmp_path, Sampling(), [{}], 0, "r").write(step=2, state=None, ctx=None)
    assert list(tmp_path.iterdir()) == []


def test_what_libraries_say_of_a_full_disk_is_understood(tmp_path: Path) -> None:
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = Exception(text)
    assert lacks_room(wrapped, tmp_path)
    assert lacks_room(OSError(errno.EDQUOT, "over quota"), tmp_path)
    assert not lacks_room(OSError(errno.EACCES, "not yours"), tmp_path)


def test_an_event_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = EventFile(path, "r")
    path.symlink_to("/dev/full")
    with pytest.raises(NoRoomError, match=f"no room for `{path}`"):
        events.write("started", run_id="r")
    path.unlink()
    assert events.write("started", run_id="r")["seq"] == 1


@pytest.mark.parametrize("made", [5, {"text": "a cat"}, "a cat"])
def test_samples_that_are_none_are_told_by_the_hook_that_made_them(tmp_path: Path, made: Any) -> None:
    class Sampling:
        def sample(self, **asked: Any) -> Any:
            return made

    with pytest.raises(TypeError, match=f"^`sample` returns a mapping for each prompt, .* not {type(made).__name__}$"):
        SampleFolder(tmp_path, Sampling(), [{}], 0, "r").write(step=2, state=None, ctx=None)


@pytest.mark.parametrize("trainer", [Plugin(), None])
def test_what_was_made_is_found_where_its_folder_has_been_moved_to(tmp_path: Path, trainer: Any) -> None:
    before, now = tmp_path / "out" / "checkpoints", tmp_path / "moved" / "checkpoints"
    state = StatePayload({}, {"step": 7})
    made = CheckpointFolder(before, "r").finalize(state_payload=state, trainer=trainer, state=None, ctx=None)
    assert made is not None
    (tmp_path / "out").rename(tmp_path / "moved")
    there = str(now / Path(made).relative_to(before))
    assert read_final(now, "r", pytest.fail) == (7, there)
    assert final_named(now) == there


@pytest.mark.parametrize("torn", ["", "x" * 200_000])
def test_events_go_on_from_a_last_line_of_any_length(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "events.jsonl"
    for number in range(1, 4):
        assert EventFile(path, "r").write("failed", step=1, error="x" * 200_000)["seq"] == number
        with path.open("a") as file:
            file.write(torn)
    assert last_event(path) == "failed"
    EventFile(path, "r")
    assert [json.loads(line)["seq"] for line in path.read_text().splitlines()] == [1, 2, 3]


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
