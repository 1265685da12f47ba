"""What marks in payloads and outputs tell the platform."""

import sys
import types
from typing import Annotated, Any

import msgspec
import pytest

from gen_worker import Asset, AudioAsset, ExpectedOutput, ImageAsset, StringEnum, VideoAsset
from gen_worker.api import MediaAsset, NegativePrompt, PositivePrompt, PromptRole
from gen_worker.discovery.marks import expected_outputs, moderation


class Mood(StringEnum):
    CALM = "calm"


class Scene(msgspec.Struct, rename="camel"):
    main_prompt: PositivePrompt
    avoid: list[NegativePrompt] = []
    reference: ImageAsset | None = None
    inner: "Scene | None" = None


class Portrait(ImageAsset):
    """A picture of the author's own kind."""


class Order(msgspec.Struct):
    prompt: PositivePrompt
    scenes: list[Scene] = []
    by_name: dict[str, tuple[PositivePrompt, VideoAsset]] = {}
    moods: Annotated[list[Mood] | None, PromptRole("positive")] = None
    film: VideoAsset | None = None
    sound: AudioAsset | None = None
    any: MediaAsset | None = None
    portrait: Portrait | None = None
    file: Asset | None = None
    note: str = ""
    count: int = 1


class Text(msgspec.Struct):
    text: str


def test_prompts_and_media_are_found_wherever_they_stand() -> None:
    found = moderation(Order)
    assert {(prompt["field"], prompt["role"]) for prompt in found["prompts"]} == {
        ("prompt", "positive"),
        ("scenes[].mainPrompt", "positive"),
        ("scenes[].avoid[]", "negative"),
        ("by_name.*[0]", "positive"),
        ("moods[]", "positive"),
    }
    assert {(media["field"], media["kind"]) for media in found["media"]} == {
        ("scenes[].reference", "image"),
        ("by_name.*[1]", "video"),
        ("film", "video"),
        ("sound", "audio"),
        ("any", "media"),
        ("portrait", "image"),
    }


def test_types_that_contain_each_other_in_every_way_are_looked_at_quickly() -> None:
    names = [f"Node{number}" for number in range(12)]
    body = f"(msgspec.Struct, tag=True):\n    prompt: PositivePrompt\n    parts: 'list[{' | '.join(names)}]' = []\n"
    module = types.ModuleType("nodes")
    vars(module).update(msgspec=msgspec, PositivePrompt=PositivePrompt)
    sys.modules["nodes"] = module  # where msgspec looks up what the annotations name
    try:
        exec("\n".join(f"class {name}{body}" for name in names), vars(module))
        both = msgspec.defstruct("Both", [("first", vars(module)["Node0"]), ("second", vars(module)["Node3"])])
        fields = [prompt["field"] for prompt in moderation(both)["prompts"]]
    finally:
        del sys.modules["nodes"]
    assert len(fields) == 2 * len(names)
    assert {"first.prompt", "first.parts[].prompt", "second.prompt", "second.parts[].prompt"} < set(fields)


def test_a_payload_without_prompts_and_media_has_nothing_to_moderate() -> None:
    assert moderation(Text) == {}


@pytest.mark.parametrize("annotation", [int, Text, list[int], bytes | None])
def test_a_prompt_that_is_no_text_is_refused(annotation: Any) -> None:
    payload = msgspec.defstruct("Payload", [("field", Annotated[annotation, PromptRole("negative")])])
    with pytest.raises(ValueError, match=r"`field(\[\])?` has the prompt role `negative` and is no text"):
        moderation(payload)


def expected(annotation: Any) -> list[dict[str, Any]]:
    return expected_outputs(msgspec.defstruct("Output", [("field", annotation)]), Order)


@pytest.mark.parametrize(
    ("annotation", "type_"),
    [
        (ImageAsset, "image"),
        (list[VideoAsset], "video"),
        (dict[str, AudioAsset] | None, "audio"),
        (Portrait, "image"),
        (Asset, "file"),
        (MediaAsset, "file"),
        (str, "other"),
        (bytes, "other"),
    ],
)
def test_the_type_of_an_expected_file_follows_from_its_asset(annotation: Any, type_: str) -> None:
    assert expected(Annotated[annotation, ExpectedOutput()]) == [{"field": "field", "type": type_, "count": 1}]


@pytest.mark.parametrize(("media_type", "type_"), [("image", "image"), ("audio/wav", "audio"), ("model/gltf", "other")])
def test_a_media_type_overrules_the_asset(media_type: str, type_: str) -> None:
    assert expected(Annotated[Asset, ExpectedOutput(media_type=media_type)])[0]["type"] == type_


def test_only_what_was_said_is_told() -> None:
    mark = ExpectedOutput(count="input.count", width=512, height="input.count", aspect_ratio="16:9", mime_type="a/b")
    assert expected(Annotated[ImageAsset, mark]) == [
        {
            "field": "field",
            "type": "image",
            "count": "input.count",
            "width": 512,
            "height": "input.count",
            "aspect_ratio": "16:9",
            "mime_type": "a/b",
        }
    ]
    assert expected(ImageAsset) == []


def test_a_mark_stands_where_it_is_written() -> None:
    each = list[Annotated[ImageAsset, ExpectedOutput()]]
    nested = msgspec.defstruct("Nested", [("images", each)])
    assert [entry["field"] for entry in expected(list[nested])] == ["field[].images[]"]  # type: ignore[valid-type]


@pytest.mark.parametrize(
    "path", ["count", "scenes", "scenes[]", "scenes[].mainPrompt", "scenes[].avoid[]", "film.ref", "by_name"]
)
def test_a_value_may_come_from_any_field_of_the_payload(path: str) -> None:
    assert expected(Annotated[ImageAsset, ExpectedOutput(count=f"input.{path}")])[0]["count"] == f"input.{path}"


@pytest.mark.parametrize("path", ["", "nothing", "count[]", "scenes.mainPrompt", "scenes[].main_prompt", "prompt.text"])
def test_a_value_from_a_field_that_is_not_there_is_refused(path: str) -> None:
    with pytest.raises(
        ValueError, match=r"`ExpectedOutput\(width='input\.[^)]*'\)` of `field`: the payload has no such"
    ):
        expected(Annotated[ImageAsset, ExpectedOutput(width=f"input.{path}")])
