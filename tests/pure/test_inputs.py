"""Input assets that came as bytes have a file while their job runs, and leave nothing."""

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_worker.api.errors import RetryableError
from gen_worker.api.types import Asset, ImageAsset
from gen_worker.scratch import PREFIX
from gen_worker_child.inputs import InputFiles, assets_in, holds_assets

PNG = b"\x89PNG\r\n\x1a\n rest"


@dataclasses.dataclass
class Frame:
    image: ImageAsset


class Inputs(msgspec.Struct):
    image: ImageAsset | None = None
    several: list[Asset] = []
    by_name: dict[str, tuple[Asset, int]] = {}
    frame: Frame | None = None
    numbers: list[float] = []


class Chain(msgspec.Struct):
    rest: list["Chain"] = []
    link: Asset = msgspec.field(default_factory=lambda: Asset("a"))


class Text(msgspec.Struct):
    text: str = ""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def files() -> Iterator[InputFiles]:
    made = InputFiles()
    yield made
    made.close()


def inline(ref: str, data: bytes = b"abc", **more: Any) -> ImageAsset:
    return ImageAsset(ref, inline_bytes=data, **more)


def test_every_asset_in_a_payload_has_a_file_until_the_job_ends(files: InputFiles, temporary: Path) -> None:
    given = Inputs(
        image=inline("a/cat.png", b"1"),
        several=[inline("cat.png", b"2"), inline("cat.png", b"3")],
        by_name={"x": (inline("cat.png", b"4"), 1)},
        frame=Frame(inline("cat.png", b"5")),
    )
    assets = sorted(assets_in(given), key=lambda asset: getattr(asset, "inline_bytes", None) or b"")
    assert len(assets) == 5
    with files.of(given):
        assert [Path(asset).read_bytes() for asset in assets] == [b"1", b"2", b"3", b"4", b"5"]
        assert {os.path.basename(asset) for asset in assets} == {"cat.png"}
        assert all(Path(asset).is_relative_to(temporary) for asset in assets)
        paths = [Path(asset) for asset in assets]
    assert not any(path.exists() for path in paths)
    assert [asset.local_path for asset in assets] == [None] * 5


def test_the_files_go_when_the_job_fails(files: InputFiles, temporary: Path) -> None:
    given = Inputs(image=inline("cat.png"))
    with pytest.raises(ZeroDivisionError), files.of(given):
        raise ZeroDivisionError
    (folder,) = temporary.iterdir()
    assert list(folder.iterdir()) == []


def test_a_machine_without_room_for_the_files_is_told_and_may_be_tried_again(
    files: InputFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    told = r"the files of the payload cannot be written to `/nowhere`: no such file or directory"
    with pytest.raises(RetryableError, match=told), files.of(Inputs(image=inline("cat.png"))):
        pytest.fail("the job ran without its files")


def test_a_disk_on_which_no_folder_has_room_is_told_as_what_may_pass(
    files: InputFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)  # what a full disk leaves of them
    told = "the files of the payload cannot be written: no usable temporary directory"
    with pytest.raises(RetryableError, match=told), files.of(Inputs(image=inline("cat.png"))):
        pass


def test_whoever_tidies_up_among_temporary_files_costs_no_later_job(files: InputFiles, temporary: Path) -> None:
    for _ in range(2):
        with files.of(given := Inputs(image=inline("cat.png", b"1"))):
            assert given.image is not None
            assert given.image.read_bytes() == b"1"
        (folder,) = temporary.iterdir()
        folder.rmdir()


def test_an_asset_that_has_a_file_keeps_it(files: InputFiles, temporary: Path) -> None:
    given = Inputs(image=inline("cat.png", local_path="/x/cat.png"), several=[Asset("stored")])
    with files.of(given):
        assert given.image is not None
        assert given.image.local_path == "/x/cat.png"
        assert given.several[0].local_path is None
    assert given.image.local_path == "/x/cat.png"
    assert list(temporary.iterdir()) == []


def test_assets_are_found_however_deep_they_lie() -> None:
    given = Chain()
    for _ in range(5000):
        given = Chain([given])
    assert len(list(assets_in(given))) == 5001


def test_types_without_assets_are_not_looked_at() -> None:
    assert holds_assets(Inputs)
    assert not holds_assets(Text)
    assert list(assets_in(Text("a"))) == []


@pytest.mark.parametrize(
    ("asset", "name"),
    [
        (inline("cat", PNG), "cat.png"),
        (inline("cat", b"?", mime_type="image/webp"), "cat.webp"),
        (inline("cat.jpeg", PNG), "cat.jpeg"),
        (inline("cat", b"?"), "cat"),
        (inline("", PNG), "input.png"),
        (inline("../../etc/passwd"), "passwd"),
        (inline(".."), "input"),
        (inline("a\0b/c\0d"), "cd"),
        (inline("x" * 400 + ".png"), "x" * 124 + ".png"),
    ],
)
def test_a_file_has_the_name_of_its_asset_and_the_ending_of_its_kind(
    files: InputFiles, asset: ImageAsset, name: str
) -> None:
    with files.of(Inputs(image=asset)):
        assert os.path.basename(asset) == name


@settings(deadline=None)  # the machine may be busy
@given(st.text(max_size=20))
def test_whatever_an_asset_is_called_its_file_stays_in_the_folder_of_its_job(ref: str) -> None:
    files, given = InputFiles(), Inputs(image=inline(ref))
    with files.of(given):
        assert given.image is not None
        path = Path(given.image)
        assert path.read_bytes() == b"abc"
        assert path.resolve() == path
        assert path.parents[2].name.startswith(PREFIX)
    files.close()
    assert not path.parents[2].exists()


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_uses_is_not(temporary: Path) -> None:
    abandoned = temporary / f"{PREFIX}abandoned"
    (abandoned / "job").mkdir(parents=True)
    (temporary / "something-else").mkdir()
    first, second = InputFiles(), InputFiles()
    with first.of(Inputs(image=inline("one.png"))):
        assert not abandoned.exists()
        with second.of(Inputs(image=inline("two.png"))):
            assert len(list(temporary.glob(f"{PREFIX}*"))) == 2
        second.close()
    first.close()
    assert [path.name for path in temporary.iterdir()] == ["something-else"]
