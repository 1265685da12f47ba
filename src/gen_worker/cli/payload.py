"""Payloads: whole ones, as JSON from the command line, a file or stdin, and those that words make."""

import base64
import os
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gen_worker.cli.failure import Failure, nearest
from gen_worker.cli.fields import STDIN, payload_from, take_apart
from gen_worker.cli.json_texts import NOT_JSON, decode
from gen_worker.cli.schema import Schema

_OF_THIS_PROCESS = ("/dev/stdin", "/dev/fd/", "/proc/self/")


class LocalFiles(NamedTuple):
    """The files of this machine, and stdin as `-`. Whoever gets a payload reads them, or has them `inline` in it.

    What only this process can read, as stdin and other pipes, is in the payload always.
    """

    inline: bool = False
    stdin: bool = True  # whether it is the caller's to give

    def read(self, path: str) -> bytes:
        """Return a file's content; raise `Failure` when it cannot be read."""
        try:
            return self._from_stdin() if path == STDIN else Path(path).read_bytes()
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None

    def asset(self, path: str) -> dict[str, Any]:
        """Return what stands for a file in a payload; raise `Failure` when it cannot be read."""
        from gen_worker.filetypes import HEAD_BYTES, mime_type

        if self.inline or path == STDIN or _is_for_us_alone(path):
            content = self.read(path)
            head, size = content[:HEAD_BYTES], len(content)
            place = {"inline_bytes": base64.b64encode(content).decode()}
        else:
            head, size = _begin(path, HEAD_BYTES)
            place = {"local_path": _absolute(path)}
        name = "stdin" if path == STDIN else Path(path).name
        kind = mime_type(head, name)
        return {"ref": f"local/{name}", **place, "size_bytes": size} | ({"mime_type": kind} if kind else {})

    def _from_stdin(self) -> bytes:
        if not self.stdin:
            raise Failure("`-` is stdin, which the lines come from", "`@payload.json` is a payload from a file")
        return _stdin()


def _stdin() -> bytes:
    if sys.stdin is None:
        raise Failure("stdin is closed, and `-` stands for it")
    return sys.stdin.buffer.read()


def _is_for_us_alone(path: str) -> bool:
    """Tell whether another process would find something else there, as in a pipe, or in `/dev/fd/63` of a shell."""
    with suppress(OSError, ValueError):  # reading it says so
        mode = os.stat(path).st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or (stat.S_ISREG(mode) and path.startswith(_OF_THIS_PROCESS))
    return False


def _begin(path: str, most: int) -> tuple[bytes, int]:
    """Return the first bytes of a file and its size."""
    try:
        with open(path, "rb") as file:
            return file.read(most), os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


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
    files = files or LocalFiles()
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
        if word.startswith(("-", "@")):
            return payload_in(word.removeprefix("@"), files)
        return parse_payload(word, word)
    return payload_from(words, over=start or {}, schema=schema, files=files)


def _is_whole(word: str) -> bool:
    if word == STDIN or word.startswith("@"):
        return True
    with suppress(*NOT_JSON):
        return isinstance(decode(word), dict)
    return False


def payload_in(path: str, files: LocalFiles | None = None) -> dict[str, Any]:
    """Return the payload that a file holds, or stdin for `-`."""
    if not path:
        raise Failure("no file is named", "`@payload.json` is a payload from a file, `-` one from stdin")
    return parse_payload((files or LocalFiles()).read(path), "stdin" if path == STDIN else path)


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
