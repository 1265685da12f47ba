"""Whole payloads: what a file, stdin or a word may hold."""

import codecs
from pathlib import Path

import pytest

from gen_worker.cli.failure import Failure
from gen_worker.cli.payload import parse_payload, payload_in, payload_of

DEEP = "[" * 100_000 + "]" * 100_000


def test_a_byte_order_mark_before_a_payload_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / "payload.json"
    file.write_bytes(codecs.BOM_UTF8 + '{"text": "größe"}'.encode())
    assert payload_in(str(file)) == {"text": "größe"}


@pytest.mark.parametrize(
    "content", [f'{{"a": {DEEP}}}', b'{"a": "\xff"}', '{"a": 1}'.encode("utf-16"), b"\x00", '{"a": "\\ud800"}', "NaN"]
)
def test_what_is_no_json_is_refused_in_a_sentence(content: bytes | str) -> None:
    with pytest.raises(Failure, match=r"^`x\.json` is not JSON: "):
        parse_payload(content, "x.json")


@pytest.mark.parametrize("content", ["[1]", '"text"', "5", "null", '{"a": 1} {"b": 2}'])
def test_a_payload_is_one_object(content: str) -> None:
    with pytest.raises(Failure):
        parse_payload(content, "x.json")


def test_a_value_that_nobody_could_decode_is_refused_as_a_field_and_as_a_word() -> None:
    for word in (f"sizes:={DEEP}", DEEP):
        with pytest.raises(Failure, match="is not JSON: maximum recursion depth"):
            payload_of([word], None)
