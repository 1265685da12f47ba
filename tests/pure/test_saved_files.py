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
from gen_worker.api.errors import OutputTooLargeError
from gen_worker.outputs import FileTooLargeError, FolderSink, NotWantedError, SavedFile, safe_ref

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
    assert len(safe.encode()) <= 1024
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


@pytest.mark.promise(37)
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
        "a/" * 65,
        "/".join(["x" * 255] * 5),
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


def test_a_file_that_nobody_wants_any_more_is_not_kept(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(3 << 20))
    asked = iter([True, False])
    with pytest.raises(NotWantedError):
        FolderSink(tmp_path / "kept").save("film.mp4", data=None, path=source, wanted=lambda: next(asked))
    assert os.listdir(tmp_path / "kept") == []


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FolderSink(tmp_path).save("film.mp4", data=None, path=tmp_path / "missing")
    assert os.listdir(tmp_path) == []


@pytest.mark.promise(37)
def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "kept"
    outside.mkdir()
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    with pytest.raises(ValueError, match="leads out of"):
        FolderSink(folder).save("link/deeper/x.bin", data=b"x", path=None)
    assert os.listdir(outside) == []


@pytest.mark.promise(37)
def test_a_link_in_place_of_the_file_is_replaced_not_followed(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside.bin", tmp_path / "kept"
    outside.write_bytes(b"precious")
    folder.mkdir()
    (folder / "x.bin").symlink_to(outside)
    FolderSink(folder).save("x.bin", data=b"new", path=None)
    assert outside.read_bytes() == b"precious"
    assert (folder / "x.bin").read_bytes() == b"new"


@pytest.mark.promise(37)
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


def test_a_file_over_the_limit_is_refused_and_the_limit_is_named(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", FolderSink(tmp_path / "kept", max_bytes=4)
    source.write_bytes(b"five!")
    for content in ({"data": b"five!", "path": None}, {"data": None, "path": source}):
        with pytest.raises(FileTooLargeError, match=r"`a.bin` has 5 bytes, the limit is 4: `WORKER_MAX_UPLOAD_BYTES`"):
            folder.save("a.bin", **content)
    assert not (tmp_path / "kept").exists()
    assert folder.save("a.bin", data=b"four", path=None).size_bytes == 4


def test_a_handler_is_told_that_its_file_is_over_the_limit(tmp_path: Path) -> None:
    ctx = RequestContext(request_id="r", sink=FolderSink(tmp_path, max_bytes=4))
    with pytest.raises(OutputTooLargeError, match="WORKER_MAX_UPLOAD_BYTES") as raised:
        ctx.save_bytes("a.bin", b"five!")
    assert (raised.value.size_bytes, raised.value.max_bytes) == (5, 4)


class Store:
    """A sink that keeps files elsewhere, and says what they are there."""

    def save(self, ref: str, *, data: bytes | None, path: Path | None, create: bool = False) -> SavedFile:
        assert data is not None
        return SavedFile(
            "", len(data), "sha", ref=f"kept/{ref}", owner="acme", mime_type="image/png", blake3="b3", media_id="m"
        )


def test_an_asset_says_where_its_file_is_in_the_store() -> None:
    ctx = RequestContext(request_id="r", sink=Store(), owner="local")
    asset = ctx.save_bytes("a.bin", b"12345")
    assert asset == Asset(
        "kept/a.bin", owner="acme", mime_type="image/png", size_bytes=5, sha256="sha", blake3="b3", media_id="m"
    )


@pytest.mark.parametrize(("size", "inline"), [(0, True), (4, True), (5, False)])
def test_a_small_file_is_in_its_asset_and_nowhere_else(size: int, inline: bool) -> None:
    ctx = RequestContext(request_id="r", sink=Store(), inline_file_bytes=4)
    asset = ctx.save_bytes("a.bin", bytes(size))
    assert asset.inline_bytes == (bytes(size) if inline else None)
    assert (asset.ref, asset.size_bytes) == ("a.bin" if inline else "kept/a.bin", size)


def test_a_ref_that_others_begin_with_is_told_in_words_and_leaves_nothing(tmp_path: Path) -> None:
    sink = FolderSink(tmp_path)
    sink.save("a/b", data=b"1", path=None)
    with pytest.raises(OSError, match=r"`a` cannot be kept in .*: is a directory"):
        sink.save("a", data=b"2", path=None)
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_ref_is_a_str() -> None:
    with pytest.raises(TypeError, match="a ref is a str, not a `PosixPath`"):
        safe_ref(Path("a"))  # type: ignore[arg-type]
