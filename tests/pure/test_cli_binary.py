"""The binary values of results, and the files that they go to."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gen_worker.api.types import Asset, ImageAsset
from gen_worker.cli.binary import Folder, binaries
from gen_worker.cli.failure import Failure

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"
JPEG = b"\xff\xd8\xff" + b"pixels"


class Picture(msgspec.Struct):
    image: bytes
    name: str = "iVBORw0KGgo="  # looks like base64 and is none


class Album(msgspec.Struct):
    cover: bytes = b""
    pictures: list[Picture] = []
    by_name: dict[str, bytes] = {}
    best: Picture | None = None
    saved: list[ImageAsset] = []
    pair: tuple[str, bytes] = ("", b"")


class Cat(msgspec.Struct, tag="cat"):
    image: bytes


class Dog(msgspec.Struct, tag="dog"):
    image: str


def schema(kind: Any) -> dict[str, Any]:
    (top,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    return {**top, "$defs": components}


def folder(path: Path | str, kind: Any = Album, *, force: bool = False, streams: bool = False) -> Folder:
    return Folder(str(path), force=force, schema=None if kind is None else schema(kind), streams=streams)


def take(into: Folder, value: Any) -> Any:
    return json.loads(into.take(msgspec.json.encode(value)))


def names(value: Any, kind: Any) -> list[str]:
    return [each.name for each in binaries(json.loads(msgspec.json.encode(value)), schema(kind) if kind else None)]


def test_bytes_are_found_wherever_the_schema_says() -> None:
    album = Album(
        cover=PNG,
        pictures=[Picture(PNG), Picture(JPEG)],
        by_name={"a/../b": PNG},
        best=Picture(b"?"),
        saved=[ImageAsset("x/y.webp", inline_bytes=b"?", mime_type="image/webp")],
        pair=("", PNG),
    )
    assert names(album, Album) == [
        "cover.png",
        "pictures.0.image.png",
        "pictures.1.image.jpg",
        "by_name.a_b.png",
        "best.image.bin",
        "saved.0.webp",
        "pair.1.png",
    ]


def test_a_file_that_another_request_has_replaced_is_refused(tmp_path: Path) -> None:
    kept = tmp_path / "out.txt"
    saved = ImageAsset("out.txt", local_path=str(kept), sha256=hashlib.sha256(b"mine").hexdigest())
    into = tmp_path / "mine.txt"
    kept.write_bytes(b"mine")
    take(folder(into), Album(saved=[saved]))
    assert into.read_bytes() == b"mine"
    kept.write_bytes(b"another's")
    with pytest.raises(Failure, match="is not what this request saved"):
        take(folder(into, force=True), Album(saved=[saved]))
    with pytest.raises(Failure, match="is not what this request saved"):
        take(folder(tmp_path / "second.txt"), Album(saved=[saved]))
    assert into.read_bytes() == b"mine"
    assert not (tmp_path / "second.txt").exists()


def test_the_member_of_a_union_is_told_by_its_tag() -> None:
    assert names(Cat(PNG), Cat | Dog) == ["image.png"]
    assert names(Dog("iVBORw0KGgo="), Cat | Dog) == []


def test_empty_bytes_and_assets_without_content_are_nothing() -> None:
    assert names(Album(saved=[ImageAsset("only/a.ref")]), Album) == []


def test_a_file_is_known_without_a_schema_and_bytes_are_not() -> None:
    assert names({"image": Asset("a.png", inline_bytes=PNG), "text": "iVBORw0KGgo="}, None) == ["image.png"]
    assert names(Asset("a.png", inline_bytes=PNG), None) == ["output.png"]
    assert names({"thing": {"ref": "x", "inline_bytes": "no base64!"}}, None) == []


def test_one_value_goes_to_the_file_itself(tmp_path: Path) -> None:
    target = tmp_path / "cat"
    assert take(folder(target), Album(cover=PNG))["cover"] == str(target)
    assert target.read_bytes() == PNG


@pytest.mark.parametrize("made", [True, False])
def test_one_value_goes_into_a_folder_that_is_there_or_ends_in_a_slash(tmp_path: Path, made: bool) -> None:
    into = tmp_path / "out"
    if made:
        into.mkdir()
    assert take(folder(into if made else f"{into}/"), Album(cover=PNG))["cover"] == str(into / "cover.png")


def test_several_values_go_into_a_folder_named_after_their_fields(tmp_path: Path) -> None:
    into = tmp_path / "deep" / "out"
    value = take(folder(into), Album(cover=PNG, pictures=[Picture(JPEG)]))
    assert value["pictures"][0] == {"image": str(into / "pictures.0.image.jpg"), "name": "iVBORw0KGgo="}
    assert sorted(each.name for each in into.iterdir()) == ["cover.png", "pictures.0.image.jpg"]


def test_two_fields_of_one_name_get_two_files(tmp_path: Path) -> None:
    take(folder(tmp_path), Album(by_name={"a.b": PNG, "a b": JPEG + b"x", "a/b": PNG}))
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "by_name.a_b.jpg",
        "by_name.a_b.png",
        "by_name.a_b_2.png",
    ]


def test_the_items_of_a_stream_are_numbered(tmp_path: Path) -> None:
    into = folder(tmp_path / "items", Picture, streams=True)
    for _ in range(2):
        take(into, Picture(PNG))
    assert take(into, {"yielded": 2}) == {"yielded": 2}
    assert sorted(each.name for each in (tmp_path / "items").iterdir()) == ["0000.image.png", "0001.image.png"]
    assert into.written == 2


def test_a_saved_file_is_copied_and_its_place_told(tmp_path: Path) -> None:
    saved = tmp_path / "kept.png"
    saved.write_bytes(PNG)
    asset = ImageAsset("kept.png", local_path=str(saved), inline_bytes=None)
    value = take(folder(tmp_path / "mine.png"), Album(saved=[asset]))
    assert value["saved"][0] == {"ref": "kept.png", "local_path": str(tmp_path / "mine.png")}
    assert (tmp_path / "mine.png").read_bytes() == saved.read_bytes() == PNG


def test_a_saved_file_written_over_itself_stays(tmp_path: Path) -> None:
    saved = tmp_path / "kept.png"
    saved.write_bytes(PNG)
    take(folder(saved, force=True), Album(saved=[ImageAsset("kept.png", local_path=str(saved))]))
    assert saved.read_bytes() == PNG


def test_what_is_there_is_overwritten_only_by_force(tmp_path: Path) -> None:
    target = tmp_path / "cat.png"
    target.write_text("mine")
    with pytest.raises(Failure, match="is there already"):
        folder(target).refuse_early()
    with pytest.raises(Failure, match="is there already"):
        take(folder(target), Album(cover=PNG))
    assert target.read_text() == "mine"
    take(folder(target, force=True), Album(cover=PNG))
    assert target.read_bytes() == PNG


@pytest.mark.parametrize(
    ("path", "streams", "message"),
    [("nowhere/cat.png", False, "no folder `"), ("file", True, "is a file, and the items of a stream need a folder")],
)
def test_what_cannot_be_written_is_refused_before_the_call(
    tmp_path: Path, path: str, streams: bool, message: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Failure, match=message):
        folder(tmp_path / path, streams=streams).refuse_early()


def test_several_values_for_one_file_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "cat.png"
    target.touch()
    with pytest.raises(Failure, match="is a file, and the output has 2 binary values"):
        take(folder(target, force=True), Album(cover=PNG, pair=("", PNG)))


def test_a_saved_file_that_is_not_on_this_machine_is_said(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="cannot read `/nothing/") as caught:
        take(folder(tmp_path / "a.png"), Album(saved=[ImageAsset("a.png", local_path="/nothing/a.png")]))
    assert "the server's machine" in caught.value.hint
    assert not (tmp_path / "a.png").exists()


def test_a_file_that_a_server_on_tcp_names_is_never_one_of_this_machine(tmp_path: Path) -> None:
    mine = tmp_path / "mine.png"
    mine.write_bytes(b"secret")
    into = Folder(str(tmp_path / "a.png"), force=True, schema=schema(Album), streams=False, remote=True)
    with pytest.raises(Failure, match="is on the server's machine"):
        take(into, Album(saved=[ImageAsset("a.png", local_path=str(mine))]))
    take(into, Album(saved=[ImageAsset("a.png", local_path=str(mine), inline_bytes=PNG)]))
    assert (tmp_path / "a.png").read_bytes() == PNG


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(JSON, st.binary(min_size=1))
def test_nothing_but_the_binary_value_changes(
    tmp_path_factory: pytest.TempPathFactory, other: Any, data: bytes
) -> None:
    into = tmp_path_factory.mktemp("o") / "file"
    result = {"other": other, "image": {"ref": "a", "inline_bytes": base64.b64encode(data).decode(), "width": 1}}
    assume("ref" not in str(other))
    value = json.loads(folder(into, None).take(json.dumps(result).encode()))
    assert value == {"other": other, "image": {"ref": "a", "width": 1, "local_path": str(into)}}
    assert into.read_bytes() == data
