"""Pipelines that earlier functions load themselves: real ones of diffusers, small, on the CPU."""

import asyncio
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gen_worker import (
    CudaOutOfMemoryError,
    ModelDownloader,
    ModelNotFoundError,
    PipelineConfig,
    PipelineLoader,
    PipelineLoaderError,
)
from gen_worker.testing.tiny import make_tiny

pytestmark = [pytest.mark.process, pytest.mark.needs("torch", "diffusers", "transformers")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small pipeline in fp32."""
    return make_tiny("sd15", tmp_path_factory.mktemp("models") / "tiny", dtype="fp32")


@pytest.fixture
def made(tiny: Path, tmp_path: Path) -> Path:
    """Return a folder of the test's own with the small pipeline, `tiny`."""
    (tmp_path / "made").mkdir()
    (tmp_path / "made/tiny").symlink_to(tiny)
    return tmp_path / "made"


def on_cpu(**more: Any) -> PipelineConfig:
    return PipelineConfig(**{"device": "cpu", "warmup_steps": 0, **more})


@pytest.fixture
def loader(made: Path) -> PipelineLoader:
    return PipelineLoader(models_dir=made)


def test_a_pipeline_is_loaded_once_and_told_of(loader: PipelineLoader) -> None:
    import torch

    loaded = loader.load("tiny", on_cpu())
    assert (loaded.model_id, loaded.pipeline_class) == ("tiny", "StableDiffusionPipeline")
    assert (loaded.dtype, loaded.load_format) == ("fp32", "safetensors")
    assert loaded.components == ["scheduler", "text_encoder", "tokenizer", "unet", "vae"]
    parts = (loaded.pipeline.unet, loaded.pipeline.vae, loaded.pipeline.text_encoder)
    weights = [each for part in parts for each in part.parameters()]
    assert {each.dtype for each in weights} == {torch.float32}
    assert loaded.size_gb == pytest.approx(sum(each.numel() * 4 for each in weights) / (1 << 30))
    assert loader.load("tiny") is loaded is loader.get("tiny")
    assert loader.get_loaded_models() == ["tiny"]
    assert loader.get_stats()["vram_models"] == ["tiny"]
    assert loader.get_stats()["vram_used_gb"] == 0  # it is on the CPU


def test_a_pipeline_that_is_unloaded_is_gone(loader: PipelineLoader) -> None:
    import weakref

    gone = weakref.ref(loader.load("tiny", on_cpu()).pipeline)
    assert loader.unload("tiny")
    assert not loader.unload("tiny")
    assert loader.get("tiny") is None
    assert loader.get_for_inference("tiny") is None
    assert loader.get_loaded_models() == []
    import gc

    gc.collect()
    assert gone() is None


def test_each_use_has_a_scheduler_of_its_own(loader: PipelineLoader) -> None:
    own = loader.load("tiny", on_cpu()).pipeline
    with ThreadPoolExecutor(8) as threads:
        uses = list(threads.map(lambda _: loader.get_for_inference("tiny"), range(32)))
    assert len({id(each.scheduler) for each in (own, *uses)}) == 33
    assert all(each.unet is own.unet and type(each.scheduler) is type(own.scheduler) for each in uses)
    assert all(dict(each.scheduler.config) == dict(own.scheduler.config) for each in uses)


def test_several_threads_have_their_prompts_padded_as_each_wants_it(loader: PipelineLoader, tmp_path: Path) -> None:
    tokenizer = loader.load("tiny", on_cpu()).pipeline.tokenizer

    def lengths(padding: str) -> set[int]:
        return {len(tokenizer("a cat", padding=padding, truncation=True).input_ids) for _ in range(1000)}

    with ThreadPoolExecutor(2) as threads:
        longest, full = threads.map(lengths, ("longest", "max_length"))
    assert full == {tokenizer.model_max_length}
    assert longest == {6}
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "CLIPTokenizer"


def test_several_threads_draw_with_one_pipeline_what_one_draws_alone(loader: PipelineLoader) -> None:
    import torch

    loader.load("tiny", on_cpu())

    def draw(steps: int) -> Any:
        use = loader.get_for_inference("tiny")
        use.set_progress_bar_config(disable=True)
        chance = torch.Generator().manual_seed(1)
        return use("a cat", num_inference_steps=steps, generator=chance, output_type="latent", height=64, width=64)[0]

    alone = [draw(steps) for steps in (2, 5)]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(draw, (2, 5)))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_what_is_loaded_can_be_had_while_another_is_on_its_way(made: Path) -> None:
    asked, go_on = threading.Event(), threading.Event()

    class Slow(ModelDownloader):
        async def download(self, model_ref: str, dest_dir: str | Path, filename: str | None = None) -> str:
            asked.set()
            go_on.wait(30)
            return str(made / "tiny")

    loader = PipelineLoader(models_dir=made, downloader=Slow())
    loader.load("tiny", on_cpu())
    with ThreadPoolExecutor(1) as threads:
        coming = threads.submit(loader.load, "cozy:acme/other", on_cpu())
        assert asked.wait(30)
        assert loader.get_for_inference("tiny") is not None
        go_on.set()
        assert coming.result(60).model_id == "cozy:acme/other"
    assert loader.get_loaded_models() == ["tiny", "cozy:acme/other"]


def test_what_is_said_of_a_pipeline_holds(loader: PipelineLoader) -> None:
    import torch

    said = on_cpu(dtype="bf16", pipeline_class="StableDiffusionPipeline", scheduler_class="EulerDiscreteScheduler")
    loaded = loader.load("tiny", said)
    assert loaded.pipeline.unet.dtype is torch.bfloat16
    assert type(loaded.pipeline.scheduler).__name__ == "EulerDiscreteScheduler"
    assert loaded.pipeline.scheduler.config.beta_start == 0.00085
    assert (loaded.pipeline.vae.use_tiling, loaded.pipeline.vae.use_slicing) == (True, True)
    loader.unload("tiny")
    plain = loader.load("tiny", on_cpu(enable_vae_tiling=False, enable_vae_slicing=False)).pipeline
    assert (plain.vae.use_tiling, plain.vae.use_slicing) == (False, False)


def test_a_pipeline_is_warmed_by_so_many_steps_and_chance_stays_as_it_was(loader: PipelineLoader) -> None:
    import torch
    from diffusers import UNet2DConditionModel

    steps: list[int] = []
    count = torch.nn.modules.module.register_module_forward_hook(
        lambda module, given, result: steps.append(1) if isinstance(module, UNet2DConditionModel) else None
    )
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    try:
        loader.load("tiny", on_cpu(warmup_steps=3))
    finally:
        count.remove()
    assert len(steps) == 3
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_are_those_of_the_variant_that_is_named_or_there(made: Path, loader: PipelineLoader) -> None:
    folder = make_tiny("sd15", made / "halves", dtype="fp16", variant="fp16", seed=1)
    assert loader.load("halves", on_cpu()).pipeline is not None
    loader.unload("halves")
    shutil.copytree(made / "tiny", folder, dirs_exist_ok=True)  # now there are both

    def first(**said: Any) -> float:
        loaded = loader.load("halves", on_cpu(**said))
        loader.unload("halves")
        return float(loaded.pipeline.unet.conv_in.weight.detach().flatten()[0])

    own = float(loader.load("tiny", on_cpu()).pipeline.unet.conv_in.weight.detach().flatten()[0])
    assert first() == own != first(variant="fp16")
    assert first(dtype="fp16") == first(variant="fp16", dtype="fp16")
    with pytest.raises(PipelineLoaderError, match="`halves` cannot be loaded"):
        loader.load("halves", on_cpu(variant="ema"))


def test_a_model_whose_optional_parts_were_not_fetched_is_loaded_without(made: Path, loader: PipelineLoader) -> None:
    folder = shutil.copytree(made / "tiny", made / "bare")
    index = json.loads((folder / "model_index.json").read_bytes())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    loaded = loader.load("bare", on_cpu())
    assert loaded.pipeline.safety_checker is None
    assert "safety_checker" not in loaded.components


def test_one_file_is_loaded_as_the_class_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the class: a single file of any real one has a gigabyte."""
    import diffusers
    from diffusers import DDIMScheduler, DiffusionPipeline
    from safetensors.torch import save_file
    from torch import ones

    class OneFile(DiffusionPipeline):  # type: ignore[misc]
        def __init__(self, scheduler: Any) -> None:
            super().__init__()
            self.register_modules(scheduler=scheduler)

        @classmethod
        def from_single_file(cls, path: str, **arguments: Any) -> "OneFile":
            made = cls(DDIMScheduler())
            made.given = (Path(path).name, str(arguments["dtype"]))
            return made

    monkeypatch.setattr(diffusers, "OneFile", OneFile, raising=False)
    save_file({"w": ones(1)}, tmp_path / "all.safetensors")
    loader = PipelineLoader(models_dir=tmp_path)
    said = {"pipeline_class": "OneFile", "dtype": "bf16"}
    for model_id, path in (("file", tmp_path / "all.safetensors"), ("folder", tmp_path)):
        loaded = loader.load(model_id, on_cpu(model_path=str(path), **said))
        assert loaded.load_format == "single_file"
        assert loaded.pipeline.given == ("all.safetensors", "torch.bfloat16")
    with pytest.raises(PipelineLoaderError, match=r"is one file, `all\.safetensors`: name the class"):
        loader.load("other", on_cpu(model_path=str(tmp_path / "all.safetensors")))


def test_one_file_of_a_part_is_loaded_by_what_lies_beside_it(made: Path, tmp_path: Path) -> None:
    shutil.copyfile(next((made / "tiny/vae").glob("*.safetensors")), tmp_path / "vae.safetensors")
    shutil.copyfile(made / "tiny/vae/config.json", tmp_path / "config.json")
    said = on_cpu(model_path=str(tmp_path), pipeline_class="AutoencoderKL", dtype="bf16")
    loaded = PipelineLoader(models_dir=tmp_path).load("vae", said)
    assert (loaded.load_format, loaded.pipeline_class) == ("single_file", "AutoencoderKL")
    assert loaded.size_gb > 0


def test_flashpack_weights_say_which_package_reads_them(made: Path, loader: PipelineLoader, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    (packed / "unet").mkdir(parents=True)
    (packed / "unet/model.flashpack").write_bytes(b"...")
    (packed / "model_index.json").write_text("{}")
    with pytest.raises(PipelineLoaderError, match="install `flashpack`"):
        loader.load("packed", on_cpu(model_path=str(packed)))
    shutil.copytree(made / "tiny", packed, dirs_exist_ok=True)
    assert loader.load("packed", on_cpu(model_path=str(packed))).load_format == "safetensors"


def test_what_does_not_fit_is_told_with_its_figures(made: Path) -> None:
    loader = PipelineLoader(models_dir=made, max_vram_gb=0.001)
    with pytest.raises(
        CudaOutOfMemoryError, match=r"`tiny` needs 0\.\d\d GB of the device, 0\.00 GB may be taken"
    ) as told:
        loader.load("tiny", PipelineConfig(dtype="fp32"))
    assert told.value.model_id == "tiny"
    assert told.value.required_gb > told.value.available_gb == 0.001
    assert loader.get_loaded_models() == []


def test_a_gpu_that_is_not_there_is_told_before_anything_is_loaded(made: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(PipelineLoaderError, match="there is no GPU") as told:
        PipelineLoader(models_dir=made).load("tiny")
    assert told.value.model_id == "tiny"
    loader = PipelineLoader(models_dir=made, max_vram_gb=50)
    with pytest.raises(PipelineLoaderError, match="cannot be had on `cuda`"):
        loader.load("tiny", PipelineConfig(dtype="fp32"))
    assert (loader.get_loaded_models(), loader.get_stats()["vram_models"]) == ([], [])


@pytest.mark.gpu
def test_the_least_recently_used_pipeline_leaves_the_gpu(made: Path) -> None:
    shutil.copytree(made / "tiny", made / "second")
    size_gb = PipelineLoader(models_dir=made).load("tiny", on_cpu(dtype="fp16")).size_gb
    loader = PipelineLoader(models_dir=made, max_vram_gb=1.5 * size_gb)
    said = PipelineConfig(warmup_steps=1)
    assert loader.load("tiny", said).pipeline.device.type == "cuda"
    assert loader.load("second", said).dtype == "fp16"
    stats = loader.get_stats()
    assert (loader.get_loaded_models(), stats["vram_models"], stats["disk_models"]) == (
        ["second"],
        ["second"],
        ["tiny"],
    )


def test_what_cannot_be_loaded_names_the_model(loader: PipelineLoader, made: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no model `none`; it was looked for at") as told:
        loader.load("none", on_cpu())
    assert told.value.searched == (str(made / "none"),)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError):
        loader.load("empty", on_cpu(model_path=str(tmp_path / "empty")))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"pipeline_class": "NoSuchPipeline"}, "no class `NoSuchPipeline`"),
        ({"scheduler_class": "NoSuchScheduler"}, "no class `NoSuchScheduler`"),
        ({"dtype": "fp12"}, "no dtype `fp12`"),
    ]
    for said, expected in wrong:
        with pytest.raises(PipelineLoaderError, match=expected) as error:
            loader.load("tiny", on_cpu(**said))
        assert error.value.model_id == "tiny"
        assert "`tiny`" in str(error.value)
    damaged = shutil.copytree(made / "tiny", tmp_path / "damaged")
    next(damaged.glob("unet/*.safetensors")).write_bytes(b"x" * 100)
    with pytest.raises(PipelineLoaderError, match="`damaged` cannot be loaded"):
        loader.load("damaged", on_cpu(model_path=str(damaged)))
    assert loader.get_loaded_models() == []


def test_loading_may_be_awaited(loader: PipelineLoader) -> None:
    async def awaited() -> object:
        return await loader.load("tiny", on_cpu())

    assert asyncio.run(awaited()) is loader.get("tiny")
