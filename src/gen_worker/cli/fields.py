"""Turn the words after a command into a payload: `steps=20`, `sizes:=[1,2]`, `text@notes.txt`, `style.name=oil`, `cat`.

Pure: takes words, a JSON schema and a way to read a file; never looks at the endpoint's code, never prints.
"""

import base64
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec

from gen_worker.cli.failure import Failure, nearest

Schema: TypeAlias = dict[str, Any]

_TOKEN = re.compile(r"([A-Za-z_][\w.]*)(:=|@|=)(.*)", re.DOTALL)
_INTEGER = re.compile(r"[+-]?[0-9]{1,1000}")
_TRUE = frozenset(("true", "1", "yes", "y", "on"))
_FALSE = frozenset(("false", "0", "no", "n", "off"))


class Token(NamedTuple):
    """One word taken apart; `key` is empty for a bare word."""

    key: str
    marker: str
    value: str


def payload_from(
    words: Sequence[str], *, over: dict[str, Any], schema: Schema | None, read: Callable[[str], bytes]
) -> dict[str, Any]:
    """Return the payload `over` with the fields that `words` name put in; raise `Failure` for a word that does not fit.

    `schema` is the function's input schema, or None when it is not known: then values are guessed and any key goes.
    """
    payload = over
    bare: str | None = None
    given: dict[str, str] = {}
    for word in words:
        token = take_apart(word, schema)
        if not token.key:
            if bare is not None:
                raise Failure(
                    f"two values without a field name: `{bare}` and `{word}`",
                    "write `field=value`, or quote a value with spaces",
                )
            _refuse_broken_json(word)
            bare = word
            token = Token(_primary(word, schema), "=", word)
        _refuse_repeated(token.key, word, given)
        given[token.key] = word
        payload = _put(payload, token, _Place(schema, schema or {}), read)
    return payload


def take_apart(word: str, schema: Schema | None) -> Token:
    """Split a word at its marker; a word whose key cannot be meant as one is a bare word."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise Failure(f"not UTF-8: {word!r}", "put the bytes into a file and pass `field@file`") from None
    known = _properties(schema, schema or {})
    for key in sorted(known, key=len, reverse=True):  # a schema may name keys that do not look like one, as `num-steps`
        for marker in (":=", "@", "="):
            if word.startswith(key + marker):
                return Token(key, marker, word[len(key) + len(marker) :])
    match = _TOKEN.fullmatch(word)
    if match is None:
        return Token("", "", word)
    key, marker, value = match.groups()
    first = key.split(".")[0]
    if marker == "@" and schema is not None and first not in known:  # `me@home.org` is a value, `imgae@cat.png` a slip
        if near := nearest(first, known, likeness=0.75):
            raise _unknown(key, known, f"did you mean `{near}@{value}`? As text it is `field={word}`")
        return Token("", "", word)
    return Token(key, marker, value)


def _refuse_broken_json(word: str) -> None:
    if word.startswith(("{", "[")):
        try:
            msgspec.json.decode(word)
        except msgspec.DecodeError as error:
            raise Failure(f"`{word}` is not JSON: {error}", "text is `field=…`, JSON for a field `field:=…`") from None


def _refuse_repeated(key: str, word: str, given: dict[str, str]) -> None:
    for before, its_word in given.items():
        if before == key:
            raise Failure(f"`{key}` is given twice: `{its_word}` and `{word}`", "a field takes one value")
        if before.startswith(f"{key}."):
            raise Failure(f"`{word}` would replace `{its_word}`", f"give `{key}` first, then its members")


class _Place(NamedTuple):
    """Where in the payload a value goes, as far as the schema says: the whole schema, and the part for this place."""

    root: Schema | None
    here: Schema

    def resolved(self) -> "_Place":
        reference = self.here.get("$ref")
        if not isinstance(reference, str) or self.root is None:
            return self
        part: Any = self.root
        for step in reference.removeprefix("#/").split("/"):
            part = part.get(step) if isinstance(part, dict) else None
        return _Place(self.root, part if isinstance(part, dict) else {})

    def below(self, name: str) -> "_Place | None":
        """Return the place of the member `name`, or None when the schema forbids it."""
        properties = _properties(self.root, self.here)
        if name in properties:
            return _Place(self.root, properties[name])
        whole = _object_schema(self.root, self.here)
        others = whole.get("additionalProperties")
        if isinstance(others, dict):
            return _Place(self.root, others)
        return None if "properties" in whole else _Place(self.root, {})


def _put(payload: dict[str, Any], token: Token, place: _Place, read: Callable[[str], bytes]) -> dict[str, Any]:
    known = _properties(place.root, place.here)
    name, rest = (token.key, None) if token.key in known else _split(token.key)
    inner = place.below(name)
    if inner is None:
        raise _unknown(name, known)
    if rest is None:
        return {**payload, name: _value(token, inner.resolved(), read)}
    nested = payload.get(name, {})
    if not isinstance(nested, dict) or {_type(member) for member in _members(inner)}.isdisjoint(("object", "")):
        raise Failure(f"`{name}` is not an object, so it has no `{rest}`")
    return {**payload, name: _put(nested, token._replace(key=rest), inner.resolved(), read)}


def _split(key: str) -> tuple[str, str | None]:
    name, dot, rest = key.partition(".")
    if not name or (dot and not rest):
        raise Failure(f"a field name with an empty part: `{key}`")
    return name, rest or None


def _value(token: Token, place: _Place, read: Callable[[str], bytes]) -> Any:
    if token.marker == "=":
        return _coerce(token.key, token.value, place)
    if token.marker == ":=":
        return _json(token.key, token.value, place)
    content = read(token.value)
    if _is_bytes(place):
        return base64.b64encode(content).decode()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise Failure(f"`{token.value}` is not text, and `{token.key}` is not a bytes field") from None
    kinds = {_type(member) for member in _members(place)}
    if not kinds.isdisjoint(("string", "")):
        return text
    if kinds <= {"array", "object", "null"}:
        return _json(token.key, text, place)
    return _coerce(token.key, text.strip(), place)


def _json(key: str, text: str, place: _Place) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        kinds = {_type(member) for member in _members(place)} - {"null"}
        plain = f"`{key}=value` takes a plain value"
        example = f'{key}:=["a", "b"]' if "array" in kinds else f'{key}:={{"name": "value"}}'
        hint = f"texts are quoted in JSON: `{example}`" if kinds <= {"array", "object"} else plain
        raise Failure(f"`{key}` is not JSON: {error}", hint) from None


# --- values by their type ---------------------------------------------------------------------------------------------


def _coerce(key: str, text: str, place: _Place) -> Any:
    members = _members(place)
    kinds = [_type(member) for member in members]
    if text == "" and "null" in kinds:
        return None
    refusal: Failure | None = None
    for member, kind in zip(members, kinds, strict=True):
        try:
            return _BY_TYPE[kind](key, text, member)
        except Failure as failure:
            refusal = refusal or failure
    assert refusal is not None
    raise refusal


def _members(place: _Place) -> list[_Place]:
    """Return the alternatives at a place: those of its unions, in their order, or the place itself."""
    found: list[_Place] = []
    waiting, seen = [place.resolved()], 0
    while waiting and seen < 1000:  # a reference in a schema from elsewhere may go round in a circle
        here, seen = waiting.pop(0), seen + 1
        union = here.here.get("anyOf") or here.here.get("oneOf")
        if isinstance(union, list):
            waiting[:0] = [_Place(here.root, member).resolved() for member in union if isinstance(member, dict)]
        else:
            found.append(here)
    return found or [_Place(place.root, {})]


def _type(place: _Place) -> str:
    if "enum" in place.here or "const" in place.here:
        return "enum"
    kind = place.here.get("type")
    return kind if isinstance(kind, str) and kind in _BY_TYPE else ""


def _is_bytes(place: _Place) -> bool:
    return any(member.here.get("contentEncoding") == "base64" for member in _members(place))


def _text(_key: str, text: str, _place: _Place) -> str:
    return text


def _whole(key: str, text: str, _place: _Place) -> int:
    if _INTEGER.fullmatch(text.strip()) is None:
        raise Failure(f"`{key}` takes a whole number, not `{text}`")
    return int(text)


def _number(key: str, text: str, _place: _Place) -> float:
    try:
        number = float(text)
    except ValueError:
        raise Failure(f"`{key}` takes a number, not `{text}`") from None
    if not math.isfinite(number):
        raise Failure(f"`{key}` takes a finite number, not `{text}`")
    return number


def _truth(key: str, text: str, _place: _Place) -> bool:
    word = text.lower()
    if word not in _TRUE | _FALSE:
        raise Failure(f"`{key}` takes true or false, not `{text}`")
    return word in _TRUE


def _nothing(key: str, text: str, _place: _Place) -> None:
    if text.lower() not in ("", "null", "none"):
        raise Failure(f"`{key}` takes null only, not `{text}`")


def _choice(_key: str, text: str, place: _Place) -> Any:
    choices = place.here.get("enum", [place.here.get("const")])
    return text if not isinstance(choices, list) or text in choices else guess(text)


def _container(key: str, text: str, place: _Place) -> Any:
    example = f"`{key}:=[…]`" if _type(place) == "array" else f"`{key}:={{…}}` or `{key}.name=value`"
    raise Failure(f"`{key}` takes a JSON {_type(place)}, not `{text}`", f"write {example}")


def guess(text: str) -> bool | int | float | str | None:
    """Return the value that a text of unknown type most likely means: true, false, null, a number, else the text."""
    word = text.lower()
    if word in ("true", "false"):
        return word == "true"
    if word in ("null", "none"):
        return None
    if _INTEGER.fullmatch(text):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) and "_" not in text else text


_BY_TYPE: dict[str, Callable[[str, str, _Place], Any]] = {
    "string": _text,
    "integer": _whole,
    "number": _number,
    "boolean": _truth,
    "null": _nothing,
    "enum": _choice,
    "array": _container,
    "object": _container,
    "": lambda _key, text, _place: guess(text),
}


# --- what the schema knows --------------------------------------------------------------------------------------------


def _object_schema(root: Schema | None, here: Schema) -> Schema:
    for member in _members(_Place(root, here)):
        if member.here.get("type") == "object":
            return member.here
    return {}


def _properties(root: Schema | None, here: Schema) -> dict[str, Schema]:
    properties = _object_schema(root, here).get("properties")
    if not isinstance(properties, dict):
        return {}
    return {name: part for name, part in properties.items() if isinstance(part, dict)}


def _primary(word: str, schema: Schema | None) -> str:
    """Return the field that a bare word fills: the first required text, else the first required, else the first."""
    if schema is None:
        raise Failure(f"which field is `{word}` for? The function's fields are not known here", f"write `field={word}`")
    whole = _object_schema(schema, schema)
    fields = {
        name: _Place(schema, part).resolved()
        for name, part in _properties(schema, schema).items()
        if len(part.get("enum", ("a", "b"))) > 1  # a struct's tag is no field
    }
    required = [name for name in fields if name in whole.get("required", ())]
    texts = [name for name in required if fields[name].here.get("type") == "string" and not _is_bytes(fields[name])]
    if not fields:
        raise Failure(f"the function takes no fields, so no value: `{word}`")
    return (texts or required or list(fields))[0]


def _unknown(key: str, known: dict[str, Schema], hint: str = "") -> Failure:
    listed = ", ".join(f"`{name}`" for name in known) or "none"
    near = nearest(key, known)
    return Failure(f"no field `{key}`; the fields are {listed}", hint or (f"did you mean `{near}`?" if near else ""))
