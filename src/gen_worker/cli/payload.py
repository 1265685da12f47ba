"""Whole payloads, as JSON from the command line, a file or stdin."""

import sys
from pathlib import Path
from typing import Any

import msgspec

from gen_worker.cli.failure import Failure


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
