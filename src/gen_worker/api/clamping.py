"""Bring decoded payloads into the ranges of their `Clamp` marks.

What is to be done is worked out once per type; a type without a Clamp costs nothing.
"""

import copy
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

import msgspec

from gen_worker.api.payload_constraints import Clamp
from gen_worker.api.shapes import (
    Choice,
    Field,
    Fixed,
    Many,
    Marks,
    Plain,
    Record,
    Table,
    fields_of,
    last_mark,
    marked,
    parts_of,
    shape_of,
)

Change: TypeAlias = Callable[[Any], Any]
Plan: TypeAlias = Mapping[type, Change]  # what to do with a value, by its exact type; nothing for all others


def clamping_of(type_: type[msgspec.Struct]) -> Change | None:
    """Return what brings a value of this type into its ranges, as it is or as a copy; None when it has no Clamp.

    Raises ValueError, naming the field, for a Clamp that marks no number or leaves none.
    """
    if not marked(type_, Clamp):
        return None
    return _Planner().plan(type_, ())[type_]


def clamped(annotation: Any, value: Any) -> Any:
    """Return a value of this type as its Clamps leave it; raises ValueError as `clamping_of` does."""
    return _applied(_Planner().plan(annotation, ()), value)


class _Planner:
    """Works out what to do with each type, once for each record: a record may contain itself."""

    def __init__(self) -> None:
        self._records: dict[Any, Plan] = {}

    def plan(self, annotation: Any, around: Marks) -> Plan:
        """Return the plan of a type; `around` are the marks on the containers it stands in."""
        shape, own = shape_of(annotation)
        marks = around + own
        match shape:
            case Plain():
                found = _number_plan(shape.type, marks)
            case Record():
                found = self._record(shape)
            case Many() | Fixed() | Table() | Choice():
                found = _container_plan(shape, [self.plan(part, marks) for _, part in parts_of(shape)])
        if last_mark(own, Clamp) is not None and (not found or isinstance(shape, Record)):
            raise ValueError("`Clamp` marks something that is no number")
        return found

    def _record(self, record: Record) -> Plan:
        if record.type not in self._records:
            self._records[record.type] = {}
            if marked(record.type, Clamp):
                self._add(record)
        return self._records[record.type]

    def _add(self, record: Record) -> None:
        """Plan a record that has Clamps; known before its fields are looked at, which may hold the record itself."""
        kind = dict if typing.is_typeddict(record.cls) else record.cls
        self._records[record.type] = {kind: (fields := _Fields(record))}
        for field in fields_of(record):
            if plan := self._field(record, field):
                fields.plans[field.name] = plan

    def _field(self, record: Record, field: Field) -> Plan:
        try:
            return self.plan(field.annotation, ())
        except _FieldError:
            raise
        except ValueError as error:
            raise _FieldError(f"the field `{record.cls.__name__}.{field.name}`: {error}") from None


class _FieldError(ValueError):
    """What is wrong, with the field where it is."""


def _number_plan(type_: Any, marks: Marks) -> Plan:
    clamp = last_mark(marks, Clamp)
    if clamp is None or type_ not in (int, float):
        return {}
    bring = Range.of(clamp, marks, type_).bring
    return {int: bring} if type_ is int else {float: bring, int: bring}  # the default of a float field may be an int


def _container_plan(shape: Many | Fixed | Table | Choice, parts: list[Plan]) -> Plan:
    if not any(parts):
        return {}
    match shape:
        case Many():
            return dict.fromkeys((list, tuple, set, frozenset), partial(_each, parts[0]))
        case Fixed():
            return {tuple: partial(_each_of, parts)}
        case Table():
            return {dict: partial(_values, parts[0])}
        case Choice():
            narrow_last = sorted(parts, key=lambda plan: int in plan and float not in plan)
            return {kind: change for plan in narrow_last for kind, change in plan.items()}


def _applied(plan: Plan, value: Any) -> Any:
    change = plan.get(type(value))
    return value if change is None else change(value)


def _each(plan: Plan, values: Any) -> Any:
    return _same_or_new(values, [_applied(plan, value) for value in values])


def _each_of(plans: Iterable[Plan], values: Any) -> Any:
    return _same_or_new(values, [_applied(plan, value) for plan, value in zip(plans, values, strict=True)])


def _same_or_new(values: Any, changed: list[Any]) -> Any:
    if all(new is old for new, old in zip(changed, values, strict=True)):
        return values
    return type(values)(changed)


def _values(plan: Plan, table: dict[Any, Any]) -> dict[Any, Any]:
    changed = {key: new for key, old in table.items() if (new := _applied(plan, old)) is not old}
    return table | changed if changed else table


class _Fields:
    """What to do with the fields of one record; leaves the record alone and returns a copy when one changes."""

    def __init__(self, record: Record) -> None:
        self.plans: dict[str, Plan] = {}
        self._is_table = typing.is_typeddict(record.cls)
        self._is_tuple = issubclass(record.cls, tuple)
        self._get: Callable[[Any, str], Any] = dict.get if self._is_table else getattr
        self._set = msgspec.structs.force_setattr if issubclass(record.cls, msgspec.Struct) else object.__setattr__

    def __call__(self, value: Any) -> Any:
        get = self._get
        changed = {
            name: new
            for name, plan in self.plans.items()
            if (new := _applied(plan, old := get(value, name))) is not old
        }
        if not changed:
            return value
        if self._is_table:
            return value | changed
        if self._is_tuple:
            return value._replace(**changed)
        clone = copy.copy(value)  # without `__post_init__`; the value may be a default that others share
        for name, new in changed.items():
            self._set(clone, name, new)
        return clone


class Range(msgspec.Struct, frozen=True):
    """The numbers that a Clamp leaves of its field, beside the field's other constraints."""

    clamp: Clamp
    whole: bool
    first: int  # the whole numbers are those from `first` to `last`
    last: int

    @classmethod
    def of(cls, clamp: Clamp, marks: Marks, number: type) -> "Range":
        """Work out the range of an `int` or `float` field; raise ValueError when nothing is left of it."""
        limits = [mark for mark in marks if isinstance(mark, msgspec.Meta)]
        above = [each.gt for each in limits if each.gt is not None]
        below = [each.lt for each in limits if each.lt is not None]
        low = [clamp.min, *(each.ge for each in limits if each.ge is not None)]
        high = [clamp.max, *(each.le for each in limits if each.le is not None)]
        first = max([*map(math.ceil, low), *(math.floor(bound) + 1 for bound in above)])
        last = min([*map(math.floor, high), *(math.ceil(bound) - 1 for bound in below)])
        least, most = max(low + above), min(high + below)
        whole = clamp.cast == "int" or (number is int and not clamp.cast)
        told = f"`Clamp` from {clamp.min} to {clamp.max}"
        if least > most or (least == most and least in above + below) or (whole and first > last):
            raise ValueError(f"{told} leaves no {'whole ' if whole else ''}number that the field takes")
        for step in [each.multiple_of for each in limits if each.multiple_of is not None]:
            if math.fmod(clamp.min, step) or math.fmod(clamp.max, step) or (whole and not float(step).is_integer()):
                raise ValueError(f"{told} must begin and end at multiples of {step}, as the field does")
        return cls(clamp, whole, first, last)

    def bring(self, value: int | float) -> int | float:
        """Return the number of the range that a decoded one stands for."""
        clamp = self.clamp
        near = clamp.max if value != value else min(max(value, clamp.min), clamp.max)
        if self.whole:
            return min(max(_whole(near, clamp.round), self.first), self.last)
        return value if near is value and not clamp.cast else float(near)

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest number that the field holds."""
        return (self.first, self.last) if self.whole else (self.clamp.min, self.clamp.max)


def _whole(value: float, round: str) -> int:
    if isinstance(value, int):
        return value
    if round == "truncate":
        return math.trunc(value)
    below = math.floor(value)
    return below + (value - below >= 0.5)
