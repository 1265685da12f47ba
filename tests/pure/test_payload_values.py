"""Values that payloads, outputs and streams are made of."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gen_worker import BatchItemDelta, Done, Error, IncrementalTokenDelta, emit_diagnostic_log
from gen_worker.api import Asset, ExpectedOutput, ImageAsset, PromptRole, StringEnum, Tensors, diagnostics, types
from gen_worker.api.payload_constraints import Clamp
from gen_worker.api.types import retyped


def test_an_asset_is_a_path_once_it_is_on_this_machine() -> None:
    assert os.fspath(Asset("a", local_path="/x/a")) == "/x/a"
    with pytest.raises(ValueError, match="`a` has no file on this machine"):
        os.fspath(Asset("a"))


def test_an_asset_says_only_what_is_known() -> None:
    assert msgspec.json.encode(Asset("a", size_bytes=3)) == b'{"ref":"a","size_bytes":3}'


def test_an_asset_becomes_an_image_with_everything_it_knows() -> None:
    image = retyped(Asset("a", size_bytes=3), ImageAsset, mime_type="image/png")
    assert image == ImageAsset("a", size_bytes=3, mime_type="image/png")


def test_tensors_are_read_as_bytes(tmp_path: Path) -> None:
    file = tmp_path / "w.bin"
    file.write_bytes(b"1234")
    tensors = Tensors("w", local_path=str(file))
    assert tensors.exists()
    assert tensors.read_bytes() == tensors.read_bytes(max_bytes=4) == b"1234"
    with tensors.open() as opened:
        assert opened.read(2) == b"12"
    with pytest.raises(ValueError, match="`w` has 4 bytes, the limit is 3"):
        tensors.read_bytes(max_bytes=3)
    with pytest.raises(ValueError, match="binary mode"):
        tensors.open("r")
    assert not Tensors("w").exists()
    with pytest.raises(ValueError, match="no file"):
        Tensors("w").read_bytes()


def test_a_string_enumeration_is_made_of_strings() -> None:
    class Style(StringEnum):
        PHOTO = "photo"

    assert f"{Style.PHOTO}" == "photo"
    assert isinstance(Style.PHOTO, str)
    assert msgspec.json.decode(b'"photo"', type=Style) is Style.PHOTO


@pytest.mark.parametrize(
    "make",
    [
        lambda: PromptRole("neutral"),  # type: ignore[arg-type]
        lambda: ExpectedOutput(count=0),
        lambda: ExpectedOutput(count=True),
        lambda: ExpectedOutput(width=1.5),  # type: ignore[arg-type]
        lambda: ExpectedOutput(height=""),
        lambda: ExpectedOutput(mime_type=3),  # type: ignore[arg-type]
        lambda: Clamp(3, 2),
        lambda: Clamp(0, float("inf")),
        lambda: Clamp("0", 1),  # type: ignore[arg-type]
        lambda: Clamp(0, 1, cast="bool"),  # type: ignore[arg-type]
        lambda: Clamp(0, 1, round="down"),  # type: ignore[arg-type]
    ],
)
def test_a_mark_that_makes_no_sense_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"takes|must be|needs"):
        make()


def test_marks_keep_what_they_were_given() -> None:
    assert ExpectedOutput(count="input.count", width=512, aspect_ratio="16:9").count == "input.count"
    assert (Clamp(1, 50, cast="int").max, Clamp(1, 50).round) == (50, "half_up")


@pytest.mark.parametrize("kind", [IncrementalTokenDelta, BatchItemDelta, Done, Error])
def test_stream_items_are_frozen_and_take_keywords_only(kind: Any) -> None:
    assert kind() == kind()
    with pytest.raises(TypeError):
        kind("positional")


def test_producer_payload_shapes_have_their_defaults() -> None:
    assert types.SourceRepo("a/b").attributes == {}
    assert types.DestinationRepo("a/b").tags == []
    assert types.DatasetRef("a/b").split == "train"
    assert types.OutputSpec().attributes == {}
    assert types.Compute().gpu_count == 0


def test_a_diagnostic_reaches_whoever_listens_and_nobody_else() -> None:
    heard: list[dict[str, object]] = []
    assert emit_diagnostic_log("cache", "missed") is False
    diagnostics.listen(heard.append)
    try:
        assert emit_diagnostic_log("cache", "missed", {"ref": "a/b"}, severity="warning") is True
    finally:
        diagnostics.listen(None)
    assert heard[0]["category"] == "cache"
    assert heard[0]["payload"] == {"ref": "a/b"}
