"""What to write instead, where a function did not take its payload or could not work with it.

Pure, but for a look whether a file is there. Goes by what an error says: whoever said it may be a server elsewhere.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from gen_worker.cli.failure import USAGE, USER_CODE, Failure
from gen_worker.cli.schema import Place, Schema

_MISSING = re.compile(r"Object missing required field `([^`]+)`(?: - at `\$([^`]*)`)?")
_AT = re.compile(r" - at `\$([^`]+)`")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|(.)")
_NO_FILE = "has no file on this machine"
_URLS = ("http://", "https://")
_MOST_DEPTH = 8  # below the payload, as deep as files are looked for in it

IsFile = Callable[[str], bool]


@contextmanager
def advised(payload: Mapping[str, Any], schema: Schema | None) -> Iterator[None]:
    """Have a `Failure` that is about the payload say what to write instead."""
    try:
        yield
    except Failure as failure:
        if failure.code == USAGE or (failure.code == USER_CODE and not failure.hint):  # of a crash more is known
            failure.hint = advice(str(failure), payload, schema) or failure.hint
        raise


def advice(message: str, payload: Mapping[str, Any], schema: Schema | None, is_file: IsFile = os.path.isfile) -> str:
    """Return what to write instead of a part of a payload that an error is about; nothing where that is not known."""
    whole = Place(schema, schema or {})
    if missing := _MISSING.search(message):
        return _of_missing(missing[1], missing[2] or "", payload, whole)
    if at := _AT.search(message):
        return _of_value(at[1], payload, whole)
    return _of_files(message, payload, whole, is_file)


def file_advice(key: str, text: str) -> str:
    """Return how a field for a file is given what a text names: a file of this machine, or a URL."""
    return f"write `{key}.ref={_address(text)}`" if text.startswith(_URLS) else f"write `{key}@{text or 'PATH'}`"


def files_advice(key: str, text: str) -> str:
    """Return the same of a field for several."""
    if text.startswith(_URLS):
        return f'write `{key}:=[{{"ref": "{_address(text)}"}}]`'
    return f"write `{key}@{text or 'PATH'}`"


def _address(url: str) -> str:
    """Return a URL without its query, which may be a secret."""
    bare, mark, _ = url.partition("?")
    return f"{bare}?…" if mark else bare


def _of_missing(name: str, path: str, payload: Mapping[str, Any], whole: Place) -> str:
    above, _, place = _at(path, payload, whole)
    inner = place.below(name)
    if inner is None or above is None or path.endswith("]"):
        return ""
    return f"write {_form(f'{above}.{name}'.removeprefix('.'), inner.resolved())}"


def _form(key: str, place: Place, *, whole: bool = True) -> str:
    """Return how a field is written; of an object, the first member that it must have."""
    if place.is_asset() or place.item(0).is_asset():
        return f"`{key}@PATH`, a file"
    kinds = place.kinds() - {"null"}
    if kinds == {"array"}:
        return f"`{key}:=[…]`"
    if kinds != {"object"}:
        return f"`{key}=…`"
    member = next(iter(place.here.get("required", ())), None)
    inner = None if member is None else place.below(member)
    return _form(f"{key}.{member}", inner.resolved(), whole=False) if whole and inner else f"`{key}:={{…}}`"


def _of_value(path: str, payload: Mapping[str, Any], whole: Place) -> str:
    key, value, place = _at(path, payload, whole)
    if key is None:
        return ""
    if isinstance(value, str) and place.is_asset():
        return files_advice(key, value) if path.endswith("]") else file_advice(key, value)
    if isinstance(value, str) and place.is_bytes() and not path.endswith("]"):
        return f"`{key}@PATH` is the content of a file"
    choices = place.resolved().here.get("enum")
    return f"it is one of {listed(choices)}" if isinstance(choices, list) and choices else ""


def listed(choices: list[Any]) -> str:
    """Return choices as a person is told them."""
    return ", ".join(f"`{choice}`" for choice in choices)


def _of_files(message: str, payload: Mapping[str, Any], whole: Place, is_file: IsFile) -> str:
    for key, ref in _names(dict(payload), whole):
        is_told = f"`{ref}`" in message or f"'{ref}'" in message
        if not is_told and "NoneType" not in message:  # that comes of a `local_path` that is not there
            continue
        if is_file(ref):
            passes = "a `local_path` beside its `ref`" if key is None else f"`{key}@{ref}`"
            return f"`{ref}` is only a name there; {passes} passes the file"
        if _NO_FILE in message and key is not None:
            return f"`{key}@PATH` passes a file of this machine, `{key}.ref=https://…` one from elsewhere"
    return ""


def _names(value: Any, place: Place, key: str | None = "", depth: int = 0) -> Iterator[tuple[str | None, str]]:
    """Yield the files in a payload that have a name and nothing else, none that lie too deep.

    Each comes with its field as a word names it, None where no word does.
    """
    if depth > _MOST_DEPTH:
        return
    if isinstance(value, list):
        for number, item in enumerate(value):
            inside = place.item(number).resolved()
            yield from _names(item, inside, key if inside.is_asset() else None, depth + 1)
    elif isinstance(value, dict) and place.is_asset():
        ref = value.get("ref")
        if isinstance(ref, str) and not ref.startswith(_URLS) and not {"local_path", "inline_bytes"} & value.keys():
            yield key, ref
    elif isinstance(value, dict):
        for name, part in value.items():
            inner = place.below(name, value)
            if inner is not None:
                below = None if key is None else f"{key}.{name}".removeprefix(".")
                yield from _names(part, inner.resolved(), below, depth + 1)


def _at(path: str, payload: Mapping[str, Any], whole: Place) -> tuple[str | None, Any, Place]:
    """Return the field at a path as a word names it, None where no word does; what is there; and its place."""
    found: Any = dict(payload)
    key, place, in_list = "", whole, False
    for name, number, other in _STEP.findall(path):
        if other or (name and in_list):
            return None, None, Place(whole.root, {})
        in_list = bool(number)
        if name:
            inner = place.below(name, found)
            key, found = f"{key}.{name}".removeprefix("."), found.get(name) if isinstance(found, dict) else None
        else:
            inner = place.item(int(number))
            here = isinstance(found, list) and int(number) < len(found)
            found = found[int(number)] if here else None
        place = (inner or Place(whole.root, {})).resolved()
    return key, found, place
