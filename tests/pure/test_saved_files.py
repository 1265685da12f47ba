"""Refs that cannot lead elsewhere, and the folder that keeps what jobs save."""

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_worker import Asset, RequestContext
from gen_worker.outputs import FolderSink, safe_ref

PIECES = st.sampled_from(
    ["..", ".", "/", "//", "\\", "\0", " ", "a", "b.png", "http://", "é", "\ud800", "C:", "x" * 256]
)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(PIECES | st.text(max_size=5), max_size=8).map("".join))
def test_a_safe_ref_stays_where_it_is_put(ref: str) -> None:
    try:
        safe = safe_ref(ref)
    except ValueError:
        return
    parts = PurePosixPath(safe).parts
    assert parts
    assert not PurePosixPath(safe).is_absolute()
    assert not {"..", ".", ""} & set(parts)
    assert not {"\\", "\0"} & set(safe)
    assert all(len(part.encode()) <= 255 for part in parts)
    assert safe_ref(safe) == safe


@pytest.mark.parametrize(
    ("ref", "safe"),
    [
        ("image.png", "image.png"),
        (" /outputs/image.png ", "outputs/image.png"),
        ("///a//./b/", "a/b"),
        ("a b/c d.png", "a b/c d.png"),
        ("...", "..."),
    ],
)
def test_a_ref_is_made_relative(ref: str, safe: str) -> None:
    assert safe_ref(ref) == safe


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "  ",
        "/",
        "./",
        "..",
        "../x",
        "a/../b",
        "a/..",
        "a\\b",
        "a\0b",
        "http://x/y",
        "/HTTPS://x",
        "x" * 256,
        "\udcff",
    ],
)
def test_a_ref_that_could_lead_elsewhere_is_refused(ref: str) -> None:
    with pytest.raises(ValueError, match="ref"):
        safe_ref(ref)


def test_bytes_are_kept_with_their_size_and_digest(tmp_path: Path) -> None:
    saved = FolderSink(tmp_path).save("a/b.bin", data=b"hello", path=None)
    assert Path(saved.local_path) == tmp_path / "a" / "b.bin"
    assert Path(saved.local_path).read_bytes() == b"hello"
    assert (saved.size_bytes, saved.sha256) == (5, hashlib.sha256(b"hello").hexdigest())
    assert os.listdir(tmp_path / "a") == ["b.bin"]


def test_a_file_is_copied_and_a_newer_one_replaces_it(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", FolderSink(tmp_path / "kept")
    source.write_bytes(os.urandom(3 << 20))
    saved = folder.save("film.mp4", data=None, path=source)
    assert Path(saved.local_path).read_bytes() == source.read_bytes()
    assert saved.size_bytes == 3 << 20
    assert folder.save("film.mp4", data=b"", path=None).size_bytes == 0
    assert Path(saved.local_path).read_bytes() == b""


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FolderSink(tmp_path).save("film.mp4", data=None, path=tmp_path / "missing")
    assert os.listdir(tmp_path) == []


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "kept"
    outside.mkdir()
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    with pytest.raises(ValueError, match="leads out of"):
        FolderSink(folder).save("link/deeper/x.bin", data=b"x", path=None)
    assert os.listdir(outside) == []


def test_a_link_in_place_of_the_file_is_replaced_not_followed(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside.bin", tmp_path / "kept"
    outside.write_bytes(b"precious")
    folder.mkdir()
    (folder / "x.bin").symlink_to(outside)
    FolderSink(folder).save("x.bin", data=b"new", path=None)
    assert outside.read_bytes() == b"precious"
    assert (folder / "x.bin").read_bytes() == b"new"


@settings(deadline=None)  # the machine may be busy
@given(st.lists(PIECES | st.text(max_size=5), max_size=8).map("".join), st.text(max_size=12))
def test_whatever_a_handler_calls_its_file_it_lands_in_the_outputs_folder(ref: str, request_id: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        outputs = Path(root) / "a" / "outputs"
        ctx = RequestContext(request_id=request_id, sink=FolderSink(outputs))
        source = Path(root) / "film.mp4"
        source.write_bytes(b"film")
        kept: list[Asset] = [ctx.save_audio(b"sound"), ctx.save_video(source)]  # under names of their own
        with suppress(ValueError, OSError):  # OSError: `x` is a file now and cannot be a folder in `x/y`
            kept.append(ctx.save_bytes(ref, b"bytes"))
            kept.append(ctx.save_file(ref, source))
            kept.append(ctx.save_video(source, ref))
        found = {path for path in Path(root).rglob("*") if path.is_file()} - {source}
        assert found == {Path(asset) for asset in kept}
        assert all(path.resolve().is_relative_to(outputs) for path in found)


def test_a_folder_that_cannot_be_made_is_told_with_the_setting_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="`GEN_WORKER_LOCAL_OUTPUT_DIR`"):
        FolderSink(tmp_path / "file" / "outputs").save("a.txt", data=b"x", path=None)
