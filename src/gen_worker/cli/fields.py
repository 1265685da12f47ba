"""Turn the words after a command into a payload: `steps=20`, `sizes:=[1,2]`, `text@notes.txt`, `style.name=oil`, `cat`.

Pure: takes words, a JSON schema and a way to files; never looks at the endpoint's code, never prints.
"""

import base64
import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from gen_worker.cli.advice import file_advice, files_advice, listed
from gen_worker.cli.failure import Failure, nearest
from gen_worker.cli.json_texts import NOT_JSON, decode
from gen_worker.cli.schema import Place, Schema

STDIN = "-"  # as the path of a file

_TOKEN = re.compile(r"([A-Za-z_][\w.]*)(:=|@|=)(.*)", re.DOTALL)
_INTEGER = re.compile(r"[+-]?[0-9]{1,1000}")
_TRUE = frozenset(("true", "1", "yes", "y", "on"))
_FALSE = frozenset(("false", "0", "no", "n", "off"))


class Token(NamedTuple):
    """One word taken apart; `key` is empty for a bare word."""

    key: str
    marker: str
    value: str


class Files(Protocol):
    """The way to the files that words name."""

    def read(self, path: str) -> bytes:
        """Return a file's content; raise `Failure` when it cannot be read."""

    def asset(self, path: str) -> dict[str, Any]:
        """Return what stands for a file in a payload; raise `Failure` when there is none."""


def payload_from(words: Sequence[str], *, over: dict[str, Any], schema: Schema | None, files: Files) -> dict[str, Any]:
    """Return the payload `over` with the fields that `words` name put in; raise `Failure` for a word that does not fit.

    `schema` is the function's input schema, or None when it is not known: then values are guessed and any key goes.
    """
    _refuse_spaces(words, schema)
    payload = over
    bare: str | None = None
    given: dict[str, str] = {}
    _refuse_stdin_twice([word for word in words if take_apart(word, schema)[1:] == ("@", STDIN)])
    for word in words:
        token = take_apart(word, schema)
        if not token.key:
            if bare is not None:
                hint = "write `field=value`, or quote a value with spaces"
                raise Failure(f"two values without a field name: `{bare}` and `{word}`", hint)
            _refuse_broken_json(word)
            bare = word
            token = Token(_primary(word, schema), "=", word)
        before = _files_at(payload, token) if token.key in given else []
        if not before:
            _refuse_repeated(token.key, word, given)
        given[token.key] = word
        payload = _put(payload, token, Place(schema, schema or {}), files, before=before)
    return payload


def _refuse_spaces(words: Sequence[str], schema: Schema | None) -> None:
    """Raise `Failure` where a field and its value are words of their own, as in `steps = 20`."""
    known = Place(schema, schema or {}).fields()
    for number, (name, word) in enumerate(pairwise(words)):
        if name in known and word.startswith("="):
            value = word[1:] or "".join(words[number + 2 : number + 3]) or "value"
            raise Failure(f"`{name}` and `{word}` are two words", f"write `{name}={value}`, without spaces")


def _refuse_stdin_twice(words: Sequence[str]) -> None:
    if len(words) > 1:
        raise Failure(f"stdin can be read once, by `{words[0]}` or by `{words[1]}`", "put one into a file")


def _files_at(payload: dict[str, Any], token: Token) -> list[Any]:
    """Return the files that stand in a list already to which a word adds one more."""
    found: Any = payload
    for name in token.key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    is_list = token.marker == "@" and isinstance(found, list)
    return found if is_list and all(isinstance(each, dict) and "ref" in each for each in found) else []


def take_apart(word: str, schema: Schema | None) -> Token:
    """Split a word at its marker; a word whose key cannot be meant as one is a bare word."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise Failure(f"not UTF-8: {word!r}", "put the bytes into a file and pass `field@file`") from None
    known = Place(schema, schema or {}).fields()
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
            decode(word)
        except NOT_JSON as error:
            raise Failure(f"`{word}` is not JSON: {error}", "text is `field=…`, JSON for a field `field:=…`") from None


def _refuse_repeated(key: str, word: str, given: dict[str, str]) -> None:
    for before, its_word in given.items():
        if before == key:
            raise Failure(f"`{key}` is given twice: `{its_word}` and `{word}`", "a field takes one value")
        if before.startswith(f"{key}."):
            raise Failure(f"`{word}` would replace `{its_word}`", f"give `{key}` first, then its members")


def _put(
    payload: dict[str, Any], token: Token, place: Place, files: Files, above: str = "", before: Sequence[Any] = ()
) -> dict[str, Any]:
    """Put a token's value in; `above` is the path of the object that the payload is, with a dot at its end.

    To `before` it is added, the items that are there.
    """
    known = place.fields()
    name, rest = (token.key, None) if token.key in known else _split(token.key)
    inner = place.below(name)
    if inner is None:
        raise _unknown(name, known, above=above)
    if rest is None:
        token = token._replace(key=above + token.key)
        value = _value(token, inner.resolved(), files)
        return {**payload, name: [*before, *value] if before else value}
    nested = payload.get(name, {})
    if not isinstance(nested, dict) or inner.kinds().isdisjoint(("object", "")):
        raise Failure(f"`{above}{name}` is not an object, so it has no `{rest}`")
    below = _put(nested, token._replace(key=rest), inner.resolved(), files, f"{above}{name}.", before)
    return {**payload, name: below}


def _split(key: str) -> tuple[str, str | None]:
    name, dot, rest = key.partition(".")
    if not name or (dot and not rest):
        raise Failure(f"a field name with an empty part: `{key}`")
    return name, rest or None


def _value(token: Token, place: Place, files: Files) -> Any:
    if token.marker == "=":
        return _coerce(token.key, token.value, place)
    if token.marker == ":=":
        return _json(token.key, token.value, place)
    if place.is_asset():
        return _file(token, place, files)
    if place.item(0).is_asset() and not token.value.endswith(".json"):
        return [_file(token, place.item(0).resolved(), files)]
    content = files.read(token.value)
    if place.is_bytes():
        return base64.b64encode(content).decode()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise _not_text(token, place) from None
    if not place.kinds().isdisjoint(("string", "")):
        return text
    if place.kinds() <= {"array", "object", "null"}:
        return _json(token.key, text, place)
    return _coerce(token.key, text.strip(), place)


def _file(token: Token, place: Place, files: Files) -> dict[str, Any]:
    given, fields = files.asset(token.value), place.fields()
    if "inline_bytes" in given and "inline_bytes" not in fields:
        hint = f"name them by a URL: `{token.key}.ref=https://…`"
        raise Failure(f"`{token.key}` takes weights, which are files of the machine that the server is on", hint)
    return {name: value for name, value in given.items() if name in fields}


def _not_text(token: Token, place: Place) -> Failure:
    return Failure(f"`{token.value}` is not text, and `{token.key}` is not a bytes field")


def _json(key: str, text: str, place: Place) -> Any:
    try:
        return decode(text)
    except NOT_JSON as error:
        kinds = place.kinds() - {"null"}
        plain = f"`{key}=value` takes a plain value"
        example = f'{key}:=["a", "b"]' if "array" in kinds else f'{key}:={{"name": "value"}}'
        hint = f"texts are quoted in JSON: `{example}`" if kinds <= {"array", "object"} else plain
        raise Failure(f"`{key}` is not JSON: {error}", hint) from None


# --- values by their type ---------------------------------------------------------------------------------------------


def _coerce(key: str, text: str, place: Place) -> Any:
    members = place.members()
    kinds = [member.kind for member in members]
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


def _text(_key: str, text: str, _place: Place) -> str:
    return text


def _whole(key: str, text: str, _place: Place) -> int:
    if _INTEGER.fullmatch(text.strip()) is None:
        raise Failure(f"`{key}` takes a whole number, not `{text}`")
    return int(text)


def _number(key: str, text: str, _place: Place) -> float:
    try:
        number = float(text)
    except ValueError:
        raise Failure(f"`{key}` takes a number, not `{text}`") from None
    if not math.isfinite(number):
        raise Failure(f"`{key}` takes a finite number, not `{text}`")
    return number


def _truth(key: str, text: str, _place: Place) -> bool:
    word = text.lower()
    if word not in _TRUE | _FALSE:
        raise Failure(f"`{key}` takes true or false, not `{text}`")
    return word in _TRUE


def _nothing(key: str, text: str, _place: Place) -> None:
    if text.lower() not in ("", "null", "none"):
        raise Failure(f"`{key}` takes null only, not `{text}`")


def _choice(key: str, text: str, place: Place) -> Any:
    choices = place.here.get("enum", [place.here.get("const")])
    if not isinstance(choices, list) or text in choices:
        return text
    if (meant := guess(text)) in choices:
        return meant
    near = nearest(text, [str(choice) for choice in choices])
    hint = f"did you mean `{near}`?" if near else ""
    raise Failure(f"`{key}` is one of {listed(choices)}, not `{text}`", hint)


def _container(key: str, text: str, place: Place) -> Any:
    if place.is_asset():
        raise Failure(f"`{key}` takes a file, not `{text}`", file_advice(key, text))
    if place.item(0).is_asset():
        raise Failure(f"`{key}` takes files, not `{text}`", files_advice(key, text))
    raise Failure(f"`{key}` takes a JSON {place.kind}, not `{text}`", f"write {_example(key, text, place)}")


def _example(key: str, text: str, place: Place) -> str:
    """Return how a list or an object is written; of a list of numbers, this one."""
    if place.kind == "object":
        first = next(iter(place.fields()), "name")
        return f"`{key}:={{…}}` or `{key}.{first}=value`"
    numbers = isinstance(guess(text.partition(",")[0]), int | float)
    return f"`{key}:=[{text}]`" if numbers and _is_json(f"[{text}]") else f"`{key}:=[…]`"


def _is_json(text: str) -> bool:
    try:
        decode(text)
    except NOT_JSON:
        return False
    return True


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


_BY_TYPE: dict[str, Callable[[str, str, Place], Any]] = {
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


def _primary(word: str, schema: Schema | None) -> str:
    """Return the field that a bare word fills: the first required text, else the first required, else the first."""
    if schema is None:
        hint = f"a server that starts says `ready` once they are; else write `field={word}`"
        raise Failure(f"which field is `{word}` for? The function's fields are not known here", hint)
    whole = Place(schema, schema).whole()
    fields = {
        name: Place(schema, part).resolved()
        for name, part in whole.fields().items()
        if len(part.get("enum", ("a", "b"))) > 1  # a struct's tag is no field
    }
    required = [name for name in fields if name in whole.here.get("required", ())]
    texts = [name for name in required if fields[name].here.get("type") == "string" and not fields[name].is_bytes()]
    if not fields:
        raise Failure(f"the function takes no fields, so no value: `{word}`")
    return (texts or required or list(fields))[0]


def _unknown(key: str, known: dict[str, Schema], hint: str = "", *, above: str = "") -> Failure:
    listed = ", ".join(f"`{above}{name}`" for name in known) or "none"
    near = nearest(key, known)
    hint = hint or (f"did you mean `{above}{near}`?" if near else "")
    return Failure(f"no field `{above}{key}`; the fields are {listed}", hint)
