"""The link's messages become bytes and come back as they were."""

import importlib.util
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.models.wanted import SnapshotFile
from gen_worker.pb import CONNECT, convert
from gen_worker.pb import worker_scheduler_pb2 as pb
from gen_worker.pb.packing import OTHER_NAMES
from gen_worker.wire import scheduler as wire

PB = Path(convert.__file__).parent
INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
SMALL = {"gpu_count", "gpu_index", "vram_gb", "concurrency_at_start", "protocol_version"}
STRINGS = st.text(st.characters(codec="utf-8"))


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a struct, with integers that its message has room for."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = {name: INT32 if name in SMALL else field(hint) for name, hint in typing.get_type_hints(kind).items()}
        return st.builds(kind, **fields).map(with_one_output)
    return st.from_type(kind)


def field(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a field."""
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return st.none() | field(arguments[0])
    if typing.get_origin(hint) is tuple:
        return st.lists(field(arguments[0]), max_size=3).map(tuple)
    if arguments:
        return st.dictionaries(STRINGS, field(arguments[1]), max_size=3)
    return {str: STRINGS, int: INT64}[hint] if hint in (str, int) else values(hint)


def with_one_output(frame: msgspec.Struct) -> msgspec.Struct:
    """Take one of a result's two away."""
    if isinstance(frame, wire.JobResult) and frame.inline is not None:
        return msgspec.structs.replace(frame, blob_ref=None)
    return frame


@given(st.one_of(*(values(kind) for kind in typing.get_args(wire.WorkerFrame))))
def test_what_a_worker_says_comes_back_as_it_was(frame: wire.WorkerFrame) -> None:
    assert convert.decode_worker(convert.encode_worker(frame)) == frame


@given(st.one_of(*(values(kind) for kind in typing.get_args(wire.SchedulerFrame))))
def test_what_an_orchestrator_says_comes_back_as_it_was(frame: wire.SchedulerFrame) -> None:
    assert convert.decode_scheduler(convert.encode_scheduler(frame)) == frame


def test_every_message_of_the_proto_has_its_value() -> None:
    for envelope, frames in ((pb.WorkerMessage, wire.WorkerFrame), (pb.SchedulerMessage, wire.SchedulerFrame)):
        named = {each.message_type.name for each in envelope.DESCRIPTOR.fields if each.message_type}
        assert named == {kind.__name__ for kind in typing.get_args(frames)}


def test_every_field_of_the_proto_is_one_of_its_value() -> None:
    for name, message in pb.DESCRIPTOR.message_types_by_name.items():
        if name.endswith("Message"):
            continue
        kind = SnapshotFile if name == "SnapshotFile" else getattr(wire, name)
        ours = {OTHER_NAMES.get(each, each) for each in kind.__struct_fields__}
        assert ours == {each.name for each in message.fields}, name


def test_every_number_of_an_enum_is_one_of_its_value() -> None:
    for name, enum in pb.DESCRIPTOR.enum_types_by_name.items():
        if name == "ProtocolVersion":
            assert enum.values_by_name["PROTOCOL_VERSION_CURRENT"].number == wire.PROTOCOL_VERSION
            continue
        prefix = re.sub("(?<!^)(?=[A-Z])", "_", name).upper()
        ours = {f"{prefix}_{member.name}": member.value for member in getattr(wire, name)}
        assert ours == {each.name: each.number for each in enum.values}


def test_the_method_is_the_one_of_the_service() -> None:
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    assert f"/{service.full_name}/{service.methods[0].name}" == CONNECT


def test_an_envelope_with_nothing_known_in_it_is_nothing() -> None:
    unknown = b"\xaa\x06\x03abc"  # field 101
    for packet in (b"", unknown):
        assert convert.decode_scheduler(packet) is None
        assert convert.decode_worker(packet) is None


@pytest.mark.parametrize("packet", [b"\xff\xff\xff", b"\x12\x05ab", b"\x12\x04\x0a\x02\xff\xfe"])
def test_what_is_no_envelope_is_told(packet: bytes) -> None:
    with pytest.raises(DecodeError):
        convert.decode_scheduler(packet)


def test_unknown_numbers_of_an_enum_and_unknown_fields_are_ignored() -> None:
    packet = pb.SchedulerMessage(model_op=pb.ModelOp(ref="a/b")).model_op.SerializeToString() + b"\x08\x63\xaa\x06\x01x"
    envelope = b"\x22" + bytes([len(packet)]) + packet
    assert convert.decode_scheduler(envelope) == wire.ModelOp(op=wire.ModelOpKind.UNSPECIFIED, ref="a/b")


def test_an_empty_part_is_not_an_absent_one() -> None:
    for result in (
        wire.JobResult(request_id="r", attempt=1, status=wire.JobStatus.OK),
        wire.JobResult(request_id="r", attempt=1, status=wire.JobStatus.OK, inline=b""),
        wire.JobResult(request_id="r", attempt=1, status=wire.JobStatus.OK, blob_ref=""),
        wire.JobResult(request_id="r", attempt=1, status=wire.JobStatus.OK, metrics=wire.JobMetrics()),
    ):
        assert convert.decode_worker(convert.encode_worker(result)) == result


def test_text_that_utf_8_cannot_carry_is_escaped() -> None:
    torn = wire.JobResult(
        request_id="r", attempt=1, status=wire.JobStatus.FATAL, safe_message="a\ud800b", inline=b"\xff"
    )
    sent = convert.decode_worker(convert.encode_worker(torn))
    assert sent == msgspec.structs.replace(torn, safe_message="a\\ud800b")


def test_who_imports_gen_worker_loads_no_protobuf() -> None:
    loads = "import sys, gen_worker, gen_worker.wire.scheduler; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", loads], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    assert not {"google.protobuf", "gen_worker.pb"} & set(loaded.split())


@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is None, reason="needs grpcio-tools")
def test_the_generated_code_is_that_of_the_proto(tmp_path: Path) -> None:
    """Byte for byte but for the generator's own version: that of `make proto` is the oldest runtime the code takes."""
    command = ["-m", "grpc_tools.protoc", f"-I{PB}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    subprocess.run([sys.executable, *command, "worker_scheduler.proto", "scheduler.proto"], check=True, timeout=30)
    for made in tmp_path.iterdir():
        assert without_version(made.read_text()) == without_version((PB / made.name).read_text())


def without_version(code: str) -> str:
    """Leave out of generated code which protobuf it came with, and how that annotates a flag."""
    code = code.replace("_Optional[bool]", "bool")
    return re.sub(r"Protobuf Python Version: .*|PUBLIC,\s+\d+,\s+\d+,\s+\d+,", "", code)
