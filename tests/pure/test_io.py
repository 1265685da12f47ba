"""Reading the files that a payload refers to."""

from pathlib import Path
from typing import Any

import pytest

from gen_worker import RequestContext, io
from gen_worker.api import Asset, AudioAsset, ImageAsset, VideoAsset
from gen_worker.api.errors import ValidationError
from gen_worker.api.requirements import require
from gen_worker.api.sounds import resample

ABSENT = Asset("a")


def test_an_asset_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("hello")
    asset = Asset("a", local_path=str(file))
    assert io.read_bytes(asset) == b"hello"
    with io.open(asset, "r") as opened:
        assert opened.read() == "hello"
    assert io.exists(asset)


def test_an_asset_that_is_not_here_cannot_be_read() -> None:
    assert not io.exists(ABSENT)
    for read in (io.read_bytes, io.open):
        with pytest.raises(ValidationError, match="`a` has no file on this machine"):
            read(ABSENT)


def test_an_asset_whose_file_is_gone_is_the_callers_mistake(tmp_path: Path) -> None:
    asset = Asset("a", local_path=str(tmp_path / "gone"))
    for read in (io.read_bytes, io.open):
        with pytest.raises(ValidationError, match=r"`a` has no file on this machine: no `.*gone`"):
            read(asset)


@pytest.mark.needs("PIL")
def test_a_file_that_is_no_picture_is_the_callers_mistake(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "notes.txt").write_text("not a picture")
    Image.new("RGB", (64, 64), (1, 2, 3)).save(tmp_path / "cat.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "cat.png").read_bytes()[:60])
    for name, told in (("notes.txt", "`notes.txt` is no image"), ("half.png", "`half.png` cannot be read as an image")):
        with pytest.raises(ValidationError, match=told):
            io.read_image(Asset(name, local_path=str(tmp_path / name)))


@pytest.mark.needs("PIL")
def test_a_picture_is_written_and_read_in_the_wanted_mode(tmp_path: Path) -> None:
    from PIL import Image

    ctx = RequestContext(request_id="r1", local_output_dir=tmp_path)
    image = Image.new("RGBA", (6, 4), (10, 20, 30, 255))
    asset = io.write_image(ctx, "cat.png", image, format="png", as_type=ImageAsset)
    assert type(asset) is ImageAsset
    assert io.read_image(asset).mode == "RGB"
    assert io.read_image(asset, mode="RGBA").getpixel((0, 0)) == (10, 20, 30, 255)
    assert type(io.write_image(ctx, "cat.webp", image, quality=50, method=0)) is Asset


def test_sounds_need_the_audio_extra() -> None:
    try:
        import soundfile  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"gen-worker\[audio\]"):
            io.read_audio(ABSENT)
    else:
        pytest.skip("soundfile is installed")


@pytest.mark.needs("numpy")
@pytest.mark.parametrize("shape", [(100,), (100, 2)])
def test_resampling_keeps_the_length_in_seconds(shape: tuple[int, ...]) -> None:
    import numpy

    samples: Any = numpy.ones(shape, dtype="float32")
    assert resample(samples, 100, 50).shape == (50, *shape[1:])
    assert resample(samples, 100, 200).shape == (200, *shape[1:])


@pytest.mark.needs("soundfile")
def test_a_sound_is_read_as_one_channel_at_the_wanted_rate(tmp_path: Path) -> None:
    import numpy
    import soundfile

    file = tmp_path / "a.wav"
    soundfile.write(file, numpy.full((8000, 2), 0.5), 8000)
    samples, rate = io.read_audio(Asset("a", local_path=str(file)), target_sample_rate=4000)
    assert (samples.shape, str(samples.dtype), rate) == ((4000,), "float32", 4000)
    assert io.read_audio(Asset("a", local_path=str(file)), mono=False)[0].shape == (8000, 2)


@pytest.mark.needs("PIL")
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
@pytest.mark.parametrize("format", ["jpg", "png", "webp"])
def test_a_picture_of_any_mode_is_written_in_any_format(mode: str, format: str, tmp_path: Path) -> None:
    from PIL import Image

    image = Image.new("I;16", (6, 4), 40_000) if mode == "I;16" else Image.new("L", (6, 4), 156).convert(mode)
    ctx = RequestContext(request_id="r1", local_output_dir=tmp_path)
    red = io.read_image(ctx.save_image(image, format=format)).getpixel((2, 2))[0]
    assert red in range(150, 162) or mode in ("1", "I"), red


@pytest.mark.needs("PIL")
def test_sixteen_bits_become_eight_by_scale(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("I;16", (6, 4), 128 << 8).save(tmp_path / "deep.png")
    assert io.read_image(Asset("a", local_path=str(tmp_path / "deep.png"))).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.needs("PIL")
def test_transparency_survives_where_the_format_has_it(tmp_path: Path) -> None:
    from PIL import Image

    image = Image.new("P", (6, 4), 1)
    image.info["transparency"] = 1
    ctx = RequestContext(request_id="r1", local_output_dir=tmp_path)
    assert io.read_image(ctx.save_image(image, lossless=True), "RGBA").getpixel((0, 0))[3] == 0
    assert io.read_image(ctx.save_image(image, format="jpeg"), "RGBA").getpixel((0, 0))[3] == 255


@pytest.mark.needs("PIL", "numpy")
def test_what_is_no_pil_image_is_told_how_to_become_one(tmp_path: Path) -> None:
    import numpy

    ctx = RequestContext(request_id="r1", local_output_dir=tmp_path)
    with pytest.raises(TypeError, match=r"not from `ndarray`: `PIL.Image.fromarray`"):
        ctx.save_image(numpy.zeros((4, 4, 3)))


@pytest.mark.needs("PIL")
def test_a_mode_that_there_is_not_is_the_authors_mistake(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (6, 4)).save(tmp_path / "cat.png")
    with pytest.raises(ValueError, match="mode") as raised:
        io.read_image(Asset("a", local_path=str(tmp_path / "cat.png")), "no mode")
    assert not isinstance(raised.value, ValidationError)


@pytest.mark.needs("soundfile")
@pytest.mark.parametrize("shape", [(800,), (800, 2), (2, 800), (1, 800)])
@pytest.mark.parametrize("kind", ["float16", "float32", "int16"])
def test_samples_are_written_however_they_lie(shape: tuple[int, ...], kind: str, tmp_path: Path) -> None:
    import numpy

    ctx = RequestContext(request_id="r1", local_output_dir=tmp_path)
    samples: Any = numpy.zeros(shape, dtype=kind)
    for asset in (ctx.save_audio(samples, format="flac"), io.write_audio(ctx, "a.ogg", samples, format="ogg")):
        assert len(io.read_audio(asset)[0]) == 800
    assert type(io.write_audio(ctx, "a.wav", samples, as_type=AudioAsset)) is AudioAsset


@pytest.mark.needs("soundfile")
def test_samples_that_are_none_are_told_what_is_wrong(tmp_path: Path) -> None:
    import numpy

    ctx = RequestContext(request_id="r1", local_output_dir=tmp_path)
    for samples, told in (
        (numpy.zeros((1, 2, 800)), r"got \(1, 2, 800\)"),
        (numpy.zeros(800, dtype="int64"), "got int64"),
        (numpy.zeros(0), r"got \(0,\)"),
    ):
        with pytest.raises(ValueError, match=told):
            ctx.save_audio(samples)
    with pytest.raises(ValueError, match="not as `m4b`"):
        ctx.save_audio(numpy.zeros(8), format="m4b")


@pytest.mark.needs("av", "PIL")
@pytest.mark.parametrize("format", ["mp4", "mov", "mkv", "webm", "gif"])
def test_a_film_is_written_and_read_again(format: str, tmp_path: Path) -> None:
    import numpy
    from PIL import Image

    ctx = RequestContext(request_id="r1", local_output_dir=tmp_path)
    grey: list[Any] = [numpy.full((48, 64, 3), level, dtype=numpy.uint8) for level in (40, 120, 200)]
    floats = [frame.astype("float32") / 255 for frame in grey]
    pictures = (Image.fromarray(frame) for frame in grey)
    for frames in (numpy.stack(grey), floats, pictures):
        saved = ctx.save_video(frames, format=format, fps=10)
        assert type(saved) is VideoAsset
        seen, fps = io.read_video(saved)
        assert seen.shape == (3, 48, 64, 3)
        assert fps == pytest.approx(10, abs=0.1)
        assert numpy.abs(seen[:, 20, 20, 0].astype(int) - (40, 120, 200)).max() < 24
    assert type(io.write_video(ctx, "a.gif", grey, fps=10, format="gif")) is Asset


@pytest.mark.needs("av")
def test_a_film_is_read_frame_by_frame_and_may_be_left(tmp_path: Path) -> None:
    import numpy

    ctx = RequestContext(request_id="r1", local_output_dir=tmp_path)
    made: Any = (numpy.full((33, 65), number * 8, dtype=numpy.uint8) for number in range(20))
    saved = io.write_video(ctx, "a.mp4", made, fps=29.97, as_type=VideoAsset)
    with io.iter_video(saved) as film:
        assert (film.width, film.height, round(film.fps, 2)) == (66, 34, 29.97)
        assert next(film).shape == (34, 66, 3)
    assert list(film) == []
    assert len(list(io.iter_video(saved))) == 20


@pytest.mark.needs("av")
def test_frames_that_make_no_film_are_the_authors_mistake(tmp_path: Path) -> None:
    import numpy

    ctx = RequestContext(request_id="r1", local_output_dir=tmp_path)
    small: Any = numpy.zeros((16, 16, 3), dtype=numpy.uint8)
    large: Any = numpy.zeros((32, 32, 3), dtype=numpy.uint8)
    for frames, told in (
        ([], "at least one frame"),
        ([small, large], "frames 0 and 1 of a film differ in size: 16 x 16 and 32 x 32"),
        ([numpy.zeros((3, 16, 16))], r"got \(3, 16, 16\)"),
        ([numpy.zeros((16, 16, 3), dtype=int)], "got int64"),
    ):
        with pytest.raises(ValueError, match=told):
            io.write_video(ctx, "a.mp4", frames, fps=8)
    with pytest.raises(TypeError, match="needs `fps=`"):
        ctx.save_video([small])
    with pytest.raises(ValueError, match="a film is saved as mp4, mov, mkv, webm, gif, not `wmv`"):
        ctx.save_video([small], format="wmv", fps=8)


@pytest.mark.parametrize("strange", [None, 7, Asset("a", local_path="\0"), Asset("a", local_path="x" * 70_000)])
def test_asking_whether_an_asset_exists_never_raises(strange: Any) -> None:
    assert io.exists(strange) is False


def test_what_is_missing_names_its_extra() -> None:
    with pytest.raises(
        ImportError, match=r"nothing_like_it is not installed: `pip install -e '\.\[images\]'` in the clone"
    ):
        require("images", "nothing_like_it")
