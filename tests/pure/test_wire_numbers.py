"""The orchestrators' wires are a promise to programs of others: their numbers, types and names never change."""

from pathlib import Path

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor, FileDescriptor

from gen_worker.pb import scheduler_pb2, worker_scheduler_pb2

NUMBERS = Path(__file__).parents[1] / "wire_numbers.txt"
_KINDS = {3: "int64", 5: "int32", 8: "bool", 9: "string", 12: "bytes"}


def test_the_numbers_of_both_wires_stay_as_they_are() -> None:
    said = [*described(worker_scheduler_pb2.DESCRIPTOR), *described(scheduler_pb2.DESCRIPTOR)]
    assert said == NUMBERS.read_text().splitlines()


def described(file: FileDescriptor) -> list[str]:
    """Return a line for each method, field and value of a proto."""
    lines = [
        f"{method.full_name} {method.input_type.name} -> {method.output_type.name}"
        for service in file.services_by_name.values()
        for method in service.methods
    ]
    for name, message in sorted(file.message_types_by_name.items()):
        lines += [f"{name} {_field(each)}" for each in message.fields]
    for name, enum in sorted(file.enum_types_by_name.items()):
        lines += [f"{name} {each}" for each in _values(enum)]
    return lines


def _field(field: FieldDescriptor) -> str:
    repeated = "repeated " if field.is_repeated and not _kind(field).startswith("map") else ""
    oneof = f" of {field.containing_oneof.name}" if field.containing_oneof else ""
    return f"{field.number} {repeated}{_kind(field)} {field.name}{oneof}"


def _kind(field: FieldDescriptor) -> str:
    if field.message_type and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        return f"map<{_kind(key)}, {_kind(value)}>"
    named = field.message_type or field.enum_type
    return named.name if named else _KINDS[field.type]


def _values(enum: EnumDescriptor) -> list[str]:
    return [f"{each.number} {each.name}" for each in enum.values]
