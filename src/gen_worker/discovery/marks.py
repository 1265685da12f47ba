"""What marks in payloads and outputs tell the platform: the prompts and media to moderate, the files to expect."""

import enum
from collections.abc import Iterator
from typing import Any, Literal, get_origin

from gen_worker.api.shapes import Place, Plain, Record, Shape, last_mark, parts_of, places, shape_of
from gen_worker.api.types import Asset, AudioAsset, ExpectedOutput, ImageAsset, MediaAsset, PromptRole, VideoAsset

_KINDS: dict[type[Asset], str] = {ImageAsset: "image", VideoAsset: "video", AudioAsset: "audio"}
_FILE_TYPES = ("image", "video", "audio", "file", "other")
_FROM_INPUT = "input."


# --- moderation -------------------------------------------------------------------------------------------------------


def moderation(payload: Any) -> dict[str, Any]:
    """Return the prompts and media files of a payload, empty when it has neither.

    Raises ValueError for a prompt role on something that is no text.
    """
    found = list(places(payload))
    prompts = [{"field": place.path, "role": role.role} for place in found if (role := _prompt_role(place))]
    media = [{"field": place.path, "kind": kind} for place in found if (kind := _media_kind(place.shape))]
    return {"prompts": prompts, "media": media} if prompts or media else {}


def _prompt_role(place: Place) -> PromptRole | None:
    role = last_mark(place.marks, PromptRole)
    if role is None or (isinstance(place.shape, Plain) and place.shape.type in (None, type(None))):
        return None
    if isinstance(place.shape, Plain) and _is_text(place.shape.type):
        return role
    if isinstance(place.shape, Plain | Record):
        raise ValueError(f"`{place.path}` has the prompt role `{role.role}` and is no text")
    return None  # a container: its parts are looked at


def _is_text(type_: Any) -> bool:
    return type_ is str or get_origin(type_) is Literal or (isinstance(type_, type) and issubclass(type_, enum.Enum))


def _media_kind(shape: Shape) -> str | None:
    if not isinstance(shape, Record) or not issubclass(shape.cls, MediaAsset):
        return None
    return next((kind for cls, kind in _KINDS.items() if issubclass(shape.cls, cls)), "media")


# --- expected outputs -------------------------------------------------------------------------------------------------


def expected_outputs(output: Any, payload: Any) -> list[dict[str, Any]]:
    """Return what the marked fields of an output will hold.

    Raises ValueError when a mark refers to a field that the payload does not have.
    """
    return [
        _expected(place, mark, payload) for place in places(output) if (mark := last_mark(place.own, ExpectedOutput))
    ]


def _expected(place: Place, mark: ExpectedOutput, payload: Any) -> dict[str, Any]:
    values = {name: getattr(mark, name) for name in ("count", "width", "height", "aspect_ratio", "mime_type")}
    for name, value in values.items():
        if isinstance(value, str) and value.startswith(_FROM_INPUT) and not _leads_somewhere(value, payload):
            raise ValueError(f"`ExpectedOutput({name}={value!r})` of `{place.path}`: the payload has no such field")
    told = {name: value for name, value in values.items() if value is not None}
    return {"field": place.path, "type": _file_type(place.shape, mark), **told}


def _leads_somewhere(reference: str, payload: Any) -> bool:
    """Tell whether `input.a.b[].c` is a field of the payload; the last list may be named with or without `[]`."""
    return reference.removeprefix(_FROM_INPUT) in {place.path for place in places(payload) if place.path}


def _file_type(shape: Shape, mark: ExpectedOutput) -> str:
    if mark.media_type is not None:
        named = mark.media_type.partition("/")[0]
        return named if named in _FILE_TYPES else "other"
    assets = [each.cls for each in _records(shape) if issubclass(each.cls, Asset)]
    if not assets:
        return "other"
    return next((kind for cls, kind in _KINDS.items() if issubclass(assets[0], cls)), "file")


def _records(shape: Shape) -> Iterator[Record]:
    """Yield the records that a field holds directly or in containers."""
    if isinstance(shape, Record):
        yield shape
        return
    for _, part in parts_of(shape):
        yield from _records(shape_of(part)[0])
