"""Running out of memory with a real pipeline: what authors call, and what the worker does by itself."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gen_worker.api.diagnostics import listen
from gen_worker.models.memory import apply_low_vram_config, flush_memory, with_oom_retry
from gen_worker.models.placement import rung_of
from gen_worker.models.rungs import EXACT, Rung
from gen_worker_child.models.memory_ladder import DeviceFullError, run, standard_steps

pytestmark = [pytest.mark.process, pytest.mark.needs("torch", "diffusers", "transformers", "accelerate")]


class OutOfMemoryError(RuntimeError):
    """As torch's: known by its name."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gen_worker.testing import make_tiny

    return make_tiny("sd15", tmp_path_factory.mktemp("tiny"), dtype="fp32")


@pytest.fixture
def pipeline(repository: Path) -> Any:
    import torch
    from diffusers import StableDiffusionPipeline

    made = StableDiffusionPipeline.from_pretrained(
        repository, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def told() -> Iterator[list[dict[str, object]]]:
    heard: list[dict[str, object]] = []
    listen(heard.append)
    yield heard
    listen(None)


class Painter:
    """A handler that has room only when its pipeline is placed as `enough`."""

    def __init__(self, pipeline: Any, enough: Rung | None) -> None:
        self.pipeline = pipeline
        self.enough = enough
        self.rungs: list[Rung] = []

    def __call__(self, prompt: str, *, steps: int = 1) -> Any:
        self.rungs.append(rung_of(self.pipeline))
        callback = None if self.rungs[-1] is self.enough else self.fill
        images = self.pipeline(
            prompt, num_inference_steps=steps, height=32, width=32, output_type="pt", callback_on_step_end=callback
        ).images
        return tuple(images.shape)

    def fill(self, *_: object) -> Any:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


# --- what authors call ------------------------------------------------------------------------------------------------


def test_a_call_is_retried_with_its_pipeline_one_rung_further_each_time(
    pipeline: Any, told: list[dict[str, object]]
) -> None:
    paint = Painter(pipeline, Rung.MODEL_OFFLOAD)
    assert with_oom_retry(paint, "a cat", pipelines=[pipeline], steps=2) == (1, 3, 32, 32)
    assert paint.rungs == [Rung.OFF, Rung.VAE_ONLY, Rung.MODEL_OFFLOAD]
    assert [each["message"] for each in told] == [
        "`StableDiffusionPipeline` placed as `vae_only`",
        "`StableDiffusionPipeline` placed as `model_offload`",
    ]


def test_after_its_retries_a_call_raises_what_it_raised(pipeline: Any) -> None:
    paint = Painter(pipeline, None)
    with pytest.raises(OutOfMemoryError):
        with_oom_retry(paint, "a cat", pipelines=pipeline, max_retries=5)
    assert paint.rungs == [Rung.OFF, Rung.VAE_ONLY, Rung.MODEL_OFFLOAD, *[Rung.GROUP_OFFLOAD] * 3]


def test_another_error_is_raised_at_once(pipeline: Any) -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        with_oom_retry(fail, pipelines=[pipeline])
    assert calls == [1]
    assert rung_of(pipeline) is Rung.OFF


def test_without_pipelines_only_memory_is_given_back() -> None:
    calls: list[int] = []

    def fill_twice() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise OutOfMemoryError
        return "done"

    assert with_oom_retry(fill_twice) == "done"
    assert len(calls) == 3


def test_a_pipeline_is_placed_as_its_author_says(pipeline: Any, told: list[dict[str, object]]) -> None:
    assert apply_low_vram_config(pipeline, mode="vae_only") == "vae_only"
    assert apply_low_vram_config(pipeline, mode="group_offload") == "group_offload"
    assert apply_low_vram_config(pipeline, mode="group_offload") == "group_offload"
    assert len(told) == 2
    with pytest.raises(ValueError, match="no mode `sequential`: there are `off`, `vae_only`"):
        apply_low_vram_config(pipeline, mode="sequential")


def test_without_a_gpu_a_pipeline_stays_where_it_is(pipeline: Any) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU to place it on")
    assert apply_low_vram_config(pipeline) == "off"
    assert pipeline.device.type == "cpu"


def test_memory_is_flushed_where_there_is_no_torch_too() -> None:
    flush_memory()
    code = (
        "import sys; from gen_worker.models.memory import flush_memory; flush_memory(); print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=150)
    assert ran.stdout == "False\n"


# --- what the worker does ---------------------------------------------------------------------------------------------


@pytest.mark.promise(5)
def test_a_job_climbs_every_rung_before_it_ends(pipeline: Any) -> None:
    paint = Painter(pipeline, None)
    told: list[tuple[str, str]] = []
    others = [["other"], []]
    steps = standard_steps([pipeline], "cpu", make_room=lambda asked: others.pop(0) if asked == 2 << 30 else [])
    with pytest.raises(DeviceFullError, match=r"^out of memory after free_cache, evict, vae_only, model_offload, "):
        run(lambda: paint("a cat"), steps, lambda name, message: told.append((name, message)))
    assert [name for name, _ in told] == ["free_cache", "evict", "vae_only", "model_offload", "group_offload"]
    assert told[1] == ("evict", "out of memory: let go of `other`")
    assert told[3] == ("model_offload", "out of memory: `StableDiffusionPipeline` placed as `model_offload`")
    assert paint.rungs == [Rung.OFF] * 3 + [Rung.VAE_ONLY, Rung.MODEL_OFFLOAD, Rung.GROUP_OFFLOAD]


def test_a_pipeline_that_is_offloaded_already_is_not_brought_back(pipeline: Any) -> None:
    apply_low_vram_config(pipeline, mode="model_offload")
    paint = Painter(pipeline, Rung.GROUP_OFFLOAD)
    told: list[str] = []
    steps = standard_steps([pipeline], "cpu", make_room=lambda _: [], allowed=EXACT)
    assert run(lambda: paint("a cat"), steps, lambda name, _: told.append(name)) == (1, 3, 32, 32)
    assert told == ["free_cache", "group_offload"]


def test_the_functions_are_where_authors_look_for_them() -> None:
    found = importlib.import_module("gen_worker.models.memory")
    assert all(callable(getattr(found, name)) for name in ("with_oom_retry", "apply_low_vram_config", "flush_memory"))


# --- what only a GPU shows --------------------------------------------------------------------------------------------


@pytest.mark.promise(5)
@pytest.mark.gpu
def test_on_a_gpu_a_job_that_fills_it_ends_and_leaves_the_memory_as_it_was() -> None:
    import torch

    torch.cuda.init()
    base = torch.cuda.mem_get_info()[0]

    def fill() -> list[Any]:
        return [torch.empty(4 << 30, dtype=torch.uint8, device="cuda") for _ in range(10_000)]

    with pytest.raises(DeviceFullError, match="out of memory after free_cache: a peak of"):
        run(fill, standard_steps([], "cuda", make_room=lambda _: []), lambda *_: None, "cuda")
    flush_memory()
    assert base - torch.cuda.mem_get_info()[0] <= 64 << 20
