"""Payloads: whole ones, as JSON from the command line, a file or stdin, and those that words make."""

import base64
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gen_worker.cli.failure import Failure, nearest
from gen_worker.cli.fields import payload_from, take_apart
from gen_worker.cli.json_texts import NOT_JSON, decode
from gen_worker.cli.schema import Schema


class LocalFiles(NamedTuple):
    """The files of this machine. Whoever gets a payload reads them from here, or has them `inline` in it."""

    inline: bool = False

    def read(self, path: str) -> bytes:
        """Return a file's content; raise `Failure` when it cannot be read."""
        try:
            return Path(path).read_bytes()
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None

    def asset(self, path: str) -> dict[str, Any]:
        """Return what stands for a file in a payload; raise `Failure` when it cannot be read."""
        from gen_worker.filetypes import HEAD_BYTES, mime_type

        try:
            with open(path, "rb") as file:
                head = file.read(HEAD_BYTES)
                size = os.fstat(file.fileno()).st_size
                whole = head + file.read() if self.inline else b""
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None
        place = {"inline_bytes": base64.b64encode(whole).decode()} if self.inline else {"local_path": _absolute(path)}
        kind = mime_type(head, path)
        return {"ref": f"local/{Path(path).name}", **place, "size_bytes": size} | ({"mime_type": kind} if kind else {})


def _unreadable(path: str, error: OSError | ValueError) -> Failure:
    if not path:
        return Failure("no file is named", "the path of a file goes after `@`")
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return Failure(f"cannot read `{path}`: {reason.lower()}", _beside(path, error))


def _beside(path: str, error: OSError | ValueError) -> str:
    """Return what was meant by a path where nothing is: a URL, or a file beside it with nearly that name."""
    if path.startswith(("http://", "https://")):
        return "a file from elsewhere is named by its address: `field.ref=https://…`"
    if not isinstance(error, FileNotFoundError):
        return ""
    folder, name = os.path.split(path)
    with suppress(OSError):
        if near := nearest(name, os.listdir(folder or "."), likeness=0.75):
            return f"did you mean `{os.path.join(folder, near)}`?"
    return ""


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        raise Failure("the folder that this command runs in is gone", "change to one that is there") from None


def payload_of(
    words: Sequence[str], schema: Schema | None, *, start: dict[str, Any] | None = None, files: LocalFiles | None = None
) -> dict[str, Any]:
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
    return payload_from(words, over=start or {}, schema=schema, files=files or LocalFiles())


def _is_whole(word: str) -> bool:
    if word == "-" or word.startswith("@"):
        return True
    with suppress(*NOT_JSON):
        return isinstance(decode(word), dict)
    return False


def payload_in(path: str) -> dict[str, Any]:
    """Return the payload that a file holds, or stdin for `-`."""
    if not path:
        raise Failure("no file is named", "`@payload.json` is a payload from a file, `-` one from stdin")
    source, content = ("stdin", sys.stdin.buffer.read()) if path == "-" else (path, LocalFiles().read(path))
    return parse_payload(content, source)


def parse_payload(text: bytes | str, source: str) -> dict[str, Any]:
    """Return the JSON object; raise `Failure`, naming the source, for anything else."""
    if not text.strip():
        raise Failure(f"{source if source == 'stdin' else f'`{source}`'} is empty", "a payload is a JSON object: `{}`")
    try:
        payload: dict[str, Any] = decode(text, dict[str, Any])
    except msgspec.ValidationError:
        raise Failure(f"a payload is a JSON object, `{source}` holds something else") from None
    except NOT_JSON as error:
        raise Failure(f"`{source}` is not JSON: {error}") from None
    return payload
