"""What a handler is given besides its payload."""

import time
from pathlib import Path
from typing import Any

import pytest

from gen_worker import ConversionContext, DatasetContext, RequestContext, TrainingContext
from gen_worker.api import AudioAsset, Compute, ImageAsset, VideoAsset
from gen_worker.api.context import INLINE_LIMIT_BYTES, SAVE_LIMIT_BYTES, CancelFlag, SavedFile
from gen_worker.api.errors import CanceledError, OutputTooLargeError, ValidationError
from gen_worker.api.producers import context_class

MEMBERS = {
    "request_id",
    "deadline",
    "time_remaining",
    "cancelled",
    "raise_if_cancelled",
    "device",
    "generator",
    "models",
    "progress",
    "log",
    "save_bytes",
    "save_file",
    "save_image",
    "save_audio",
    "save_video",
}


def context(**options: Any) -> RequestContext:
    return RequestContext(request_id="r1", **options)


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def test_the_context_has_fifteen_public_members_and_no_more() -> None:
    assert public(RequestContext) == MEMBERS
    assert len(MEMBERS) == 15


def test_the_context_keeps_nothing_that_is_not_declared() -> None:
    with pytest.raises(AttributeError):
        context().emit = print  # type: ignore[attr-defined]


def test_only_the_request_id_must_be_given() -> None:
    assert context().request_id == "r1"
    with pytest.raises(TypeError):
        RequestContext()  # type: ignore[call-arg]


# --- time and cancellation --------------------------------------------------------------------------------------------


def test_without_a_limit_there_is_no_deadline() -> None:
    assert context().deadline is None
    assert context().time_remaining() is None
    assert context(timeout_ms=0).deadline is None


def test_the_deadline_is_a_point_of_unix_time() -> None:
    ctx = context(timeout_s=60)
    assert ctx.deadline is not None
    assert abs(ctx.deadline - time.time() - 60) < 5
    assert 55 < (ctx.time_remaining() or 0) <= 60
    assert 0.4 < (context(timeout_ms=500).time_remaining() or 0) <= 0.5


def test_no_time_is_left_after_the_deadline() -> None:
    assert context(timeout_s=-5).time_remaining() == 0


def test_a_request_is_cancelled_once_its_flag_is_set() -> None:
    flag = CancelFlag()
    ctx = context(cancel=flag)
    ctx.raise_if_cancelled()
    seen = [ctx.cancelled]
    flag.set()
    assert [*seen, ctx.cancelled, flag.is_set()] == [False, True, True]
    with pytest.raises(CanceledError, match=r"^request cancelled$"):
        ctx.raise_if_cancelled()
    with pytest.raises(CanceledError, match=r"^enough$"):
        ctx.raise_if_cancelled("enough")


def test_a_request_without_a_flag_is_never_cancelled() -> None:
    assert not context().cancelled
    context().raise_if_cancelled()


def test_models_are_a_fresh_copy_at_each_read() -> None:
    given = {"pipe": "maker/model"}
    ctx = context(models=given)
    ctx.models["pipe"] = "changed"
    assert ctx.models == given == {"pipe": "maker/model"}
    assert context().models == {}


# --- news -------------------------------------------------------------------------------------------------------------


def test_progress_and_logs_go_to_the_emitter() -> None:
    events: list[dict[str, object]] = []
    ctx = context(emitter=events.append)
    ctx.progress(0.5)
    ctx.progress(1, "upscaling")
    ctx.log("slow disk", "warning")
    assert [event.pop("timestamp", 0) != 0 for event in events] == [True] * 3
    assert events == [
        {"request_id": "r1", "type": "request.progress", "payload": {"progress": 0.5}},
        {"request_id": "r1", "type": "request.progress", "payload": {"progress": 1.0, "stage": "upscaling"}},
        {"request_id": "r1", "type": "request.log", "payload": {"message": "slow disk", "level": "warning"}},
    ]


@pytest.mark.parametrize(("value", "told"), [(50, 1.0), (-1, 0.0), (float("nan"), 0.0), (float("inf"), 1.0)])
def test_progress_that_is_no_fraction_is_warned_of_once_and_brought_into_range(value: float, told: float) -> None:
    events: list[dict[str, Any]] = []
    ctx = context(emitter=events.append)
    ctx.progress(value)
    ctx.progress(value)
    assert [event["payload"] for event in events] == [
        {"message": f"`ctx.progress` takes a fraction from 0 to 1, got {value}", "level": "warning"},
        {"progress": told},
        {"progress": told},
    ]


def test_warn_is_a_word_for_warning_and_other_levels_are_refused() -> None:
    events: list[dict[str, Any]] = []
    context(emitter=events.append).log("slow disk", "warn")
    assert events[0]["payload"]["level"] == "warning"
    for ctx in (context(), context(emitter=events.append)):
        with pytest.raises(ValueError, match="`level` is one of `debug`, `info`, `warning`, `error`, not 'fatal'"):
            ctx.log("oh", "fatal")  # type: ignore[arg-type]


def test_news_without_an_emitter_are_no_error() -> None:
    context().progress(50)
    context().log("hello")


# --- the device -------------------------------------------------------------------------------------------------------


@pytest.mark.needs("torch")
def test_the_device_is_the_one_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEN_WORKER_LOCAL_DEVICE", "cpu")
    assert str(context().device) == "cpu"
    monkeypatch.setenv("GEN_WORKER_LOCAL_DEVICE", "tpu")
    with pytest.raises(RuntimeError, match="must be `cpu`, `cuda` or `cuda:N`, not `tpu`"):
        _ = context().device


@pytest.mark.needs("torch")
def test_a_cuda_device_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    monkeypatch.delenv("GEN_WORKER_LOCAL_DEVICE", raising=False)
    assert str(context().device) == "cpu"
    monkeypatch.setenv("GEN_WORKER_LOCAL_DEVICE", "cuda:1")
    with pytest.raises(RuntimeError, match="is `cuda:1`, but torch finds no CUDA device"):
        _ = context().device


@pytest.mark.needs("torch")
def test_equal_seeds_give_equal_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("GEN_WORKER_LOCAL_DEVICE", "cpu")
    first, second = (torch.rand(4, generator=context().generator(7)).tolist() for _ in range(2))
    assert first == second
    assert str(context().generator().device) == "cpu"


# --- files ------------------------------------------------------------------------------------------------------------


class Shelf:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes | Path | None] = {}

    def save(self, ref: str, *, data: bytes | None, path: Path | None, create: bool = False) -> SavedFile:
        self.kept[ref] = path if data is None else data
        return SavedFile(f"/shelf/{ref}", 3, "ab")


def test_saved_bytes_become_an_asset() -> None:
    shelf = Shelf()
    asset = context(sink=shelf, owner="me").save_bytes(" /a/b.bin", bytearray(b"abc"))
    assert shelf.kept == {"a/b.bin": b"abc"}
    assert (asset.ref, asset.owner, asset.local_path) == ("a/b.bin", "me", "/shelf/a/b.bin")
    assert (asset.size_bytes, asset.sha256) == (3, "ab")


def test_a_local_folder_takes_what_is_saved(tmp_path: Path) -> None:
    asset = context(local_output_dir=tmp_path, execution_hints={"output_format": "inline"}).save_bytes("x.bin", b"abc")
    assert (tmp_path / "x.bin").read_bytes() == b"abc"
    assert asset.inline_bytes is None


def test_small_outputs_travel_inline_when_the_caller_asked() -> None:
    shelf = Shelf()
    ctx = context(sink=shelf, execution_hints={"output_format": "inline"})
    small = ctx.save_bytes("small", b"abc")
    large = ctx.save_bytes("large", bytes(INLINE_LIMIT_BYTES + 1))
    assert (small.inline_bytes, small.size_bytes, small.local_path) == (b"abc", 3, None)
    assert large.inline_bytes is None
    assert list(shelf.kept) == ["large"]


def test_a_saved_file_is_handed_over_by_its_path(tmp_path: Path) -> None:
    file, shelf = tmp_path / "x.bin", Shelf()
    file.write_bytes(b"abc")
    context(sink=shelf).save_file("x.bin", str(file))
    assert shelf.kept == {"x.bin": file}


def test_only_bytes_are_saved_as_bytes() -> None:
    with pytest.raises(TypeError, match="got str"):
        context(sink=Shelf()).save_bytes("x", "text")  # type: ignore[arg-type]


def test_a_file_that_is_not_there_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        context(sink=Shelf()).save_file("x", tmp_path / "missing")
    with pytest.raises(ValueError, match="an empty one"):
        context(sink=Shelf()).save_file("x", "")


def test_an_unsafe_ref_is_refused_before_anything_is_kept() -> None:
    shelf = Shelf()
    with pytest.raises(ValueError, match=r"must not contain `\.\.`"):
        context(sink=shelf).save_bytes("../x", b"")
    assert not shelf.kept


def test_a_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(SAVE_LIMIT_BYTES + 1)
    with pytest.raises(OutputTooLargeError):
        context(sink=Shelf()).save_file("x", huge)


def test_without_a_place_to_save_the_error_says_what_to_give() -> None:
    with pytest.raises(RuntimeError, match="`local_output_dir=` or a `sink=`"):
        context().save_bytes("x", b"")


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.bin", b"\x89PNG\r\n\x1a\n", "image/png"),
        ("a.svg", b"<svg/>", "image/svg+xml"),
        ("a.png", b"RIFF....WAVE", "audio/wav"),
        ("a", b"?", None),
        ("a.txt", b"", "text/plain"),
    ],
)
def test_what_a_file_is_is_told_by_its_first_bytes_else_by_its_name(
    tmp_path: Path, name: str, data: bytes, kind: str | None
) -> None:
    file = tmp_path / "file"
    file.write_bytes(data)
    ctx = context(local_output_dir=tmp_path / "outputs")
    inline = context(execution_hints={"output_format": "inline"})
    assert [ctx.save_bytes(name, data).mime_type, ctx.save_file(name, file).mime_type] == [kind, kind]
    assert inline.save_bytes(name, data).mime_type == kind


@pytest.mark.parametrize(
    ("request_id", "folder"),
    [("r1", "r1"), ("a/../b c", "a-..-b-c"), ("..", "request"), ("http://x", "http-x"), ("é\\\0", "é-")],
)
def test_files_without_a_ref_lie_in_a_folder_of_their_request(tmp_path: Path, request_id: str, folder: str) -> None:
    ctx = RequestContext(request_id=request_id, local_output_dir=tmp_path)
    assert ctx.save_audio(b"RIFF").ref == f"outputs/{folder}/audio.wav"


@pytest.mark.needs("PIL")
@pytest.mark.parametrize(("format", "name"), [("webp", "WEBP"), ("png", "PNG"), ("jpg", "JPEG"), ("JPEG", "JPEG")])
def test_an_image_is_saved_in_each_format(tmp_path: Path, format: str, name: str) -> None:
    from PIL import Image

    image = Image.new("RGBA", (8, 8), (200, 30, 30, 128))
    asset = context(local_output_dir=tmp_path).save_image(image, format=format)
    assert type(asset) is ImageAsset
    assert asset.ref == f"outputs/r1/image.{format.lower()}"
    assert asset.mime_type == f"image/{name.lower()}"
    with Image.open(asset) as read:
        assert (read.format, read.size) == (name, (8, 8))
        assert read.mode == ("RGB" if name == "JPEG" else "RGBA")


@pytest.mark.needs("PIL")
def test_an_image_ref_gets_an_extension_when_it_has_none(tmp_path: Path) -> None:
    from PIL import Image

    image, ctx = Image.new("P", (4, 4)), context(local_output_dir=tmp_path)
    assert ctx.save_image(image, "cat", format="jpg").ref == "cat.jpg"
    assert ctx.save_image(image, "cat.jpeg", format="jpg").ref == "cat.jpeg"
    with pytest.raises(ValueError, match="not `gif`"):
        ctx.save_image(image, format="gif")


def test_sound_and_film_given_as_bytes_are_kept_as_they_are(tmp_path: Path) -> None:
    ctx = context(local_output_dir=tmp_path)
    sound, film = ctx.save_audio(b"RIFF", format="wav"), ctx.save_video(b"ftyp")
    assert (type(sound), sound.ref, sound.mime_type) == (AudioAsset, "outputs/r1/audio.wav", "audio/wav")
    assert (type(film), film.ref, film.mime_type) == (VideoAsset, "outputs/r1/video.mp4", "video/mp4")
    assert Path(sound).read_bytes() == b"RIFF"
    assert type(ctx.save_video(Path(film), "copy")) is VideoAsset
    assert ctx.save_audio(b"ID3", format="mp3").mime_type == "audio/mpeg"
    assert ctx.save_video(b"?", format="ogv").mime_type == "video/ogv"


def test_samples_need_the_audio_extra() -> None:
    try:
        import soundfile  # noqa: F401
    except ImportError:
        with pytest.raises(ValidationError, match=r"gen-worker\[audio\]"):
            context(sink=Shelf()).save_audio([0.0, 0.1])
    else:
        pytest.skip("soundfile is installed")


@pytest.mark.needs("soundfile")
def test_samples_are_saved_whichever_axis_is_the_channels(tmp_path: Path) -> None:
    import numpy
    import soundfile

    stereo: Any = numpy.zeros((2, 100), dtype="float32")
    for samples in (stereo, stereo.T):
        asset = context(local_output_dir=tmp_path).save_audio(samples, sample_rate=8000)
        read, rate = soundfile.read(asset)
        assert (read.shape, rate) == ((100, 2), 8000)


# --- producers --------------------------------------------------------------------------------------------------------


def test_each_kind_of_endpoint_has_its_context() -> None:
    assert context_class("inference") is RequestContext
    assert context_class("conversion") is ConversionContext
    assert context_class("dataset") is DatasetContext
    assert context_class("training") is TrainingContext


@pytest.mark.parametrize("cls", [ConversionContext, DatasetContext, TrainingContext])
def test_a_producer_knows_its_source_its_destination_and_its_machine(cls: Any) -> None:
    ctx: Any = cls(
        request_id="r1", source_info={"ref": "a/b"}, source_path="/models/x", hf_token="t", compute=Compute(gpu_count=2)
    )
    assert issubclass(cls, RequestContext)
    assert (ctx.source, ctx.source_path, ctx.destination, ctx.hf_token) == ({"ref": "a/b"}, "/models/x", {}, "t")
    assert ctx.compute.gpu_count == 2


def test_a_scratch_folder_is_new_at_each_call_and_goes_with_the_context() -> None:
    ctx = ConversionContext(request_id="r1")
    first, second = ctx.mktemp(), ctx.mktemp()
    assert first != second
    assert first.is_dir()
    assert second.is_dir()
    del ctx
    assert not first.exists()
    assert not second.exists()


def test_a_checkpoint_folder_is_the_same_for_every_attempt(tmp_path: Path) -> None:
    def folder(job: str, key: str) -> Path:
        return ConversionContext(request_id="r", job_id=job, checkpoint_root=tmp_path).checkpoint_dir(key=key)

    assert folder("job", "a") == folder("job", "a")
    assert len({folder("job", "a"), folder("job", "b"), folder("other", "a")}) == 3
    assert folder("job", "a").is_dir()
    with pytest.raises(ValueError, match="ref"):
        folder("job", "../a")
