"""Pipelines on every rung that runs without a GPU: what comes out, what they take, and what is left of them."""

from pathlib import Path
from typing import Any

import pytest

from gen_worker.models.placement import (
    climb,
    free_bytes,
    let_go,
    measure,
    place,
    possible,
    reset,
    rung_of,
    sizes,
)
from gen_worker.models.rungs import ALL, EXACT, Rung

pytestmark = [pytest.mark.process, pytest.mark.needs("torch", "diffusers", "transformers", "accelerate")]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gen_worker.testing import make_tiny

    return make_tiny("sd15", tmp_path_factory.mktemp("tiny"), dtype="fp32")


@pytest.fixture
def pipeline(repository: Path) -> Any:
    return loaded(repository)


def loaded(repository: Path) -> Any:
    import torch
    from diffusers import StableDiffusionPipeline

    made = StableDiffusionPipeline.from_pretrained(
        repository, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    made.set_progress_bar_config(disable=True)
    return made


def image(pipeline: Any) -> Any:
    import torch

    generator = torch.Generator().manual_seed(1)
    return pipeline("a cat", num_inference_steps=2, height=32, width=32, generator=generator, output_type="pt").images


@pytest.fixture(scope="module")
def expected(repository: Path) -> Any:
    return image(loaded(repository))


@pytest.mark.parametrize("rung", [Rung.OFF, Rung.VAE_ONLY, Rung.MODEL_OFFLOAD, Rung.GROUP_OFFLOAD])
def test_a_rung_changes_nothing_of_what_comes_out_and_a_second_time_nothing_at_all(
    pipeline: Any, expected: Any, rung: Rung
) -> None:
    assert place(pipeline, rung, "cpu") is rung
    first = image(pipeline)
    hooks = list(getattr(pipeline, "_all_hooks", []))
    assert place(pipeline, rung, "cpu") is rung
    assert len(getattr(pipeline, "_all_hooks", [])) == len(hooks)
    assert first.equal(expected)
    assert image(pipeline).equal(expected)


def test_a_pipeline_climbs_to_the_last_rung_and_computes_the_same_on_each(pipeline: Any, expected: Any) -> None:
    climbed = []
    while (rung := climb(pipeline, "cpu")) is not None:
        climbed.append(rung)
        assert rung_of(pipeline) is rung
        assert image(pipeline).equal(expected)
    assert climbed == [Rung.VAE_ONLY, Rung.MODEL_OFFLOAD, Rung.GROUP_OFFLOAD]


@pytest.mark.parametrize("rung", [Rung.MODEL_OFFLOAD, Rung.GROUP_OFFLOAD])
def test_a_pipeline_comes_back_from_offloading(pipeline: Any, expected: Any, rung: Rung) -> None:
    place(pipeline, rung, "cpu")
    place(pipeline, Rung.OFF, "cpu")
    assert rung_of(pipeline) is Rung.VAE_ONLY  # its decoder keeps to tiles
    assert image(pipeline).equal(expected)


def test_eight_bits_are_asked_for_and_stay_on_the_rungs_after(pipeline: Any, expected: Any) -> None:
    before = measure(pipeline)
    assert place(pipeline, Rung.LAYERWISE_FP8, "cpu") is Rung.LAYERWISE_FP8
    assert measure(pipeline) < before
    close = image(pipeline)
    assert not close.equal(expected)
    assert (close - expected).abs().max() < 0.2
    place(pipeline, Rung.LAYERWISE_FP8, "cpu")
    assert climb(pipeline, "cpu", ALL) is Rung.MODEL_OFFLOAD
    assert image(pipeline).equal(close)
    assert climb(pipeline, "cpu", ALL) is Rung.GROUP_OFFLOAD
    assert image(pipeline).equal(close)


def test_what_the_author_did_to_a_pipeline_is_seen(pipeline: Any) -> None:
    assert rung_of(pipeline) is Rung.OFF
    assert possible(pipeline) == ALL
    pipeline.enable_model_cpu_offload(device="cpu")
    assert rung_of(pipeline) is Rung.MODEL_OFFLOAD
    assert climb(pipeline, "cpu") is Rung.GROUP_OFFLOAD


def test_a_pipeline_that_its_author_offloads_by_parameters_is_let_be(pipeline: Any) -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    add_hook_to_module(pipeline.unet, AlignDevicesHook(execution_device="cpu"))
    assert rung_of(pipeline) is Rung.GROUP_OFFLOAD
    assert climb(pipeline, "cpu") is None


def test_a_call_that_was_interrupted_leaves_an_offloaded_pipeline_usable(pipeline: Any, expected: Any) -> None:
    class TooMuchError(Exception):
        pass

    def interrupt(*_: object) -> Any:
        raise TooMuchError

    place(pipeline, Rung.MODEL_OFFLOAD, "cpu")
    with pytest.raises(TooMuchError):
        pipeline("a cat", num_inference_steps=2, height=32, width=32, callback_on_step_end=interrupt)
    reset(pipeline)
    assert image(pipeline).equal(expected)


def test_a_model_that_is_no_pipeline_is_plainly_on_its_device(pipeline: Any) -> None:
    text = pipeline.text_encoder
    assert possible(text) == {Rung.OFF}
    assert place(text, Rung.OFF, "cpu") is Rung.OFF
    assert climb(text, "cpu") is None
    with pytest.raises(ValueError, match="a `CLIPTextModel` cannot be placed as `model_offload`"):
        place(text, Rung.MODEL_OFFLOAD, "cpu")
    assert possible(pipeline.vae) == {Rung.OFF, Rung.VAE_ONLY}


def test_what_cannot_be_moved_stays_where_it_is(pipeline: Any) -> None:
    tokenizer = pipeline.tokenizer
    assert place(tokenizer, Rung.OFF, "cuda") is Rung.OFF
    assert measure(tokenizer) == 0
    assert let_go(tokenizer) == 0


def test_weights_are_measured_once_however_often_they_are_met(pipeline: Any, repository: Path) -> None:
    import torch

    stored = sum(each.stat().st_size for each in repository.rglob("*.safetensors"))
    total = measure(pipeline)
    assert total == pytest.approx(stored, rel=0.03)
    assert measure([pipeline, {"again": pipeline.unet}, pipeline.components]) == total
    layer = torch.nn.Linear(8, 8)
    tied = torch.nn.Linear(8, 8)
    tied.weight = layer.weight
    assert measure(torch.nn.Sequential(layer, tied)) == 4 * (64 + 8 + 8)
    half = torch.nn.Parameter(torch.zeros(100)[:50])
    assert measure(torch.nn.ParameterList([half])) == 200, "half a storage is half of it"


def test_the_parts_of_a_pipeline_are_no_larger_than_the_whole(pipeline: Any) -> None:
    found = sizes(pipeline)
    assert found.total == measure(pipeline)
    assert found.component == max(measure(each) for each in (pipeline.unet, pipeline.vae, pipeline.text_encoder))
    assert 0 < found.layer < found.component < found.total
    assert sizes(pipeline.tokenizer) == (0, 0, 0)


def test_what_wraps_a_model_is_measured_by_what_it_holds(pipeline: Any) -> None:
    class Wrapped:
        def __init__(self) -> None:
            self.tokenizer, self.model = pipeline.tokenizer, pipeline.text_encoder

    assert measure(Wrapped()) == measure(pipeline.text_encoder)


@pytest.mark.parametrize("rung", sorted(EXACT))
def test_a_model_that_is_let_go_keeps_no_weights_whoever_refers_to_it(pipeline: Any, rung: Rung) -> None:
    place(pipeline, rung, "cpu")
    kept_by_its_author = pipeline.unet
    total = measure(pipeline)
    assert let_go(pipeline) == total
    assert measure([pipeline, kept_by_its_author]) == 0


def test_the_cpu_has_no_memory_of_its_own() -> None:
    assert free_bytes("cpu") is None


# --- what only a GPU shows --------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("rung", sorted(EXACT))
def test_on_a_gpu_every_rung_computes_the_same_and_gives_its_memory_back(repository: Path, rung: Rung) -> None:
    import torch

    reference = loaded(repository)
    place(reference, Rung.OFF, "cuda")
    wanted = image(reference)
    let_go(reference)
    base = torch.cuda.memory_allocated()
    pipeline = loaded(repository)
    total = measure(pipeline)
    place(pipeline, rung, "cuda")
    at_rest = torch.cuda.memory_allocated() - base
    plain = rung in (Rung.OFF, Rung.VAE_ONLY)
    assert at_rest >= total if plain else at_rest < total
    assert torch.allclose(image(pipeline), wanted, atol=1e-3)
    let_go(pipeline)
    assert torch.cuda.memory_allocated() - base <= 64 << 20


@pytest.mark.gpu
def test_on_a_gpu_free_memory_counts_what_the_allocator_keeps() -> None:
    import torch

    before = free_bytes("cuda")
    kept = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    del kept
    after = free_bytes("cuda")
    assert before is not None
    assert after is not None
    assert abs(after - before) < 64 << 20
