"""Reading the files that a payload refers to."""

from pathlib import Path
from typing import Any

import pytest

from gen_worker import RequestContext, io
from gen_worker.api import Asset, ImageAsset
from gen_worker.api.errors import ValidationError

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
    assert io.resample(samples, 100, 50).shape == (50, *shape[1:])
    assert io.resample(samples, 100, 200).shape == (200, *shape[1:])


@pytest.mark.needs("soundfile")
def test_a_sound_is_read_as_one_channel_at_the_wanted_rate(tmp_path: Path) -> None:
    import numpy
    import soundfile

    file = tmp_path / "a.wav"
    soundfile.write(file, numpy.full((8000, 2), 0.5), 8000)
    samples, rate = io.read_audio(Asset("a", local_path=str(file)), target_sample_rate=4000)
    assert (samples.shape, str(samples.dtype), rate) == ((4000,), "float32", 4000)
    assert io.read_audio(Asset("a", local_path=str(file)), mono=False)[0].shape == (8000, 2)
