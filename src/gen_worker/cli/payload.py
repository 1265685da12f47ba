"""Payloads: whole ones, as JSON from the command line, a file or stdin, and those that words make."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from gen_worker.cli.failure import Failure
from gen_worker.cli.fields import Schema, payload_from, take_apart


def payload_of(words: Sequence[str], schema: Schema | None, *, start: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the payload that the words after a command mean: a whole one, or `start` with their fields put in."""
    for word in words:
        if take_apart(word, schema).key or not _is_whole(word):
            continue
        if len(words) > 1:
            hint = f"as text it is `field={word}`; `run` puts fields into a `--payload`"
            raise Failure(f"`{word}` is a whole payload, and there are other words", hint)
        if start is not None:
            raise Failure(
                f"`--payload` or `--payload-file`, and `{word}`, which is a whole payload", "give one of them"
            )
        return payload_in(word.removeprefix("@")) if word.startswith(("-", "@")) else parse_payload(word, word)
    return payload_from(words, over=start or {}, schema=schema, read=read_file)


def _is_whole(word: str) -> bool:
    if word == "-" or word.startswith("@"):
        return True
    with suppress(msgspec.DecodeError):
        return isinstance(msgspec.json.decode(word), dict)
    return False


def read_file(path: str) -> bytes:
    """Return a file's content; raise `Failure` when it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Failure(f"cannot read `{path}`: {(error.strerror or str(error)).lower()}") from None


def payload_in(path: str) -> dict[str, Any]:
    """Return the payload that a file holds, or stdin for `-`."""
    return parse_payload(sys.stdin.buffer.read(), "stdin") if path == "-" else parse_payload(read_file(path), path)


def parse_payload(text: bytes | str, source: str) -> dict[str, Any]:
    """Return the JSON object; raise `Failure`, naming the source, for anything else."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.ValidationError:
        raise Failure(f"a payload is a JSON object, `{source}` holds something else") from None
    except msgspec.DecodeError as error:
        raise Failure(f"`{source}` is not JSON: {error}") from None
