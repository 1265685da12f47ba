"""Models that share a device: who goes for whom, how what is too large is placed, what becomes of full memory."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gen_worker.capability import InsufficientVRAMError
from gen_worker.models.errors import ModelError
from gen_worker.testing import make_tiny
from gen_worker.wire.messages import Degraded, SlotModel, Warned
from gen_worker_child.models.memory_ladder import DeviceFullError
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

    return SimpleNamespace(diffusers=diffusers, torch=torch)


@pytest.fixture(scope="module")
def tiny(library: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sd15 of 4.2 MB and an sdxl of 5.4 MB, whose largest part has 4.0 MB."""
    root = tmp_path_factory.mktemp("tiny")
    make_tiny("sd15", root / "sd15")
    make_tiny("sdxl", root / "sdxl")
    return root


class Device:
    """A device with so much room, and what its models reported."""

    def __init__(self, root: Path, library: SimpleNamespace, budget_bytes: int) -> None:
        self.root = root
        self.classes = {
            "sd15": library.diffusers.StableDiffusionPipeline,
            "sdxl": library.diffusers.StableDiffusionXLPipeline,
        }
        self.reports: list[Any] = []
        self.gone: list[str] = []
        self.models = Models(device="cpu", budget_bytes=budget_bytes, report=self.reports.append)
        self.models.on_evict = self.gone.append
        self.instances: set[str] = set()

    def load(self, instance: str, repository: str) -> Any:
        self.instances.add(instance)
        slot = SlotModel("pipeline", f"acme/{repository}", str(self.root / repository), repository)
        return self.models.load(instance, [slot], {"pipeline": self.classes[repository]})["pipeline"]

    def holds(self, instance: str) -> bool:
        return bool(self.models.residents(instance))

    @property
    def degraded(self) -> list[tuple[str, str]]:
        return [(each.instance, each.rung) for each in self.reports if isinstance(each, Degraded)]

    @property
    def warnings(self) -> list[str]:
        return [each.message for each in self.reports if isinstance(each, Warned)]

    def close(self) -> None:
        for instance in self.instances:
            self.models.unload(instance)


@pytest.fixture
def device(tiny: Path, library: SimpleNamespace) -> Iterator[Callable[[int], Device]]:
    made: list[Device] = []

    def of(budget_bytes: int) -> Device:
        made.append(Device(tiny, library, budget_bytes))
        return made[-1]

    yield of
    for each in made:
        each.close()


def image(pipeline: Any) -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    return pipeline("a cat", num_inference_steps=2, height=32, width=32, generator=generator, output_type="np").images


def test_two_models_that_fit_stay(device: Callable[[int], Device]) -> None:
    room = device(11_000_000)
    room.load("a", "sd15")
    room.load("b", "sdxl")
    assert room.gone == []
    assert room.holds("a")
    assert room.holds("b")


def test_the_least_recently_used_goes_for_what_comes(device: Callable[[int], Device]) -> None:
    room = device(11_000_000)
    room.load("a", "sd15")
    room.load("b", "sd15")
    with room.models.leased("a"):
        pass
    pipeline = room.load("c", "sdxl")
    assert room.gone == ["b"]
    assert [room.holds(each) for each in "abc"] == [True, False, True]
    assert image(pipeline).shape == (1, 32, 32, 3)
    assert room.degraded == []


def test_what_a_job_runs_on_stays(device: Callable[[int], Device]) -> None:
    room = device(11_000_000)
    room.load("a", "sd15")
    room.load("b", "sd15")
    with room.models.leased("a"):
        room.load("c", "sdxl")
        assert room.gone == ["b"]
    room.load("b", "sd15")
    assert room.gone == ["b", "c"]  # its job ended after the other was loaded


def test_when_everybody_works_what_comes_is_placed_in_parts(device: Callable[[int], Device]) -> None:
    room = device(8_600_000)
    room.load("a", "sd15")
    with room.models.leased("a"):
        pipeline = room.load("b", "sdxl")
    assert room.gone == []
    assert room.degraded == [("b", "model_offload")]
    assert room.models.rung("b") == "model_offload"
    (resident,) = room.models.residents("b")
    assert (resident.tier, resident.bytes < 4_300_000) == ("RAM", True)
    assert image(pipeline).shape == (1, 32, 32, 3)


@pytest.mark.parametrize(("budget_bytes", "rung"), [(4_500_000, "model_offload"), (1_500_000, "group_offload")])
def test_a_model_that_does_not_fit_paints_the_same_in_parts(
    budget_bytes: int, rung: str, device: Callable[[int], Device]
) -> None:
    plainly = image(device(0).load("a", "sdxl"))
    small = device(budget_bytes)
    assert abs(image(small.load("a", "sdxl")) - plainly).max() < 1e-5
    assert small.models.rung("a") == rung
    assert small.degraded == [("a", rung)]


def test_a_part_that_fits_nowhere_is_refused_before_it_is_read(device: Callable[[int], Device], tiny: Path) -> None:
    room = device(1_000_000)
    slot = SlotModel("unet", "acme/sdxl", str(tiny / "sdxl"), "sdxl", "", "unet")
    with pytest.raises(InsufficientVRAMError) as raised:
        room.models.load("a", [slot], {"unet": type(room.load("b", "sdxl").unet)})
    assert str(raised.value).startswith("`acme/sdxl`: ")
    assert raised.value.available_bytes <= 1_000_000
    assert raised.value.required_bytes > 3_900_000


def test_a_model_that_cannot_be_loaded_leaves_nothing_behind(
    device: Callable[[int], Device], tiny: Path, library: SimpleNamespace
) -> None:
    room = device(11_000_000)
    slots = [
        SlotModel("good", "acme/sd15", str(tiny / "sd15"), "sd15"),
        SlotModel("bad", "acme/sdxl", str(tiny / "sdxl"), "sdxl"),
    ]
    asked = dict.fromkeys(("good", "bad"), library.diffusers.StableDiffusionPipeline)
    with pytest.raises(ModelError, match="the slot `bad` asks for"):
        room.models.load("a", slots, asked)
    assert not room.holds("a")
    room.load("b", "sd15")
    room.load("c", "sdxl")
    assert room.gone == []


def test_what_was_let_go_of_has_no_weights_any_more(device: Callable[[int], Device]) -> None:
    room = device(0)
    pipeline = room.load("a", "sd15")
    room.models.unload("a")
    assert {each.device.type for each in pipeline.unet.parameters()} == {"meta"}
    assert room.models.residents("a") == []
    assert room.models.rung("a") == ""
    with pytest.raises(KeyError), room.models.leased("a"):
        pass


def test_what_has_to_go_takes_no_job_any_more_and_what_a_job_has_begun_on_meanwhile_stays(
    device: Callable[[int], Device], library: SimpleNamespace
) -> None:
    room = device(0)
    for each in ("second", "first", "hungry"):
        room.load(each, "sd15")
    gone: list[str] = []

    def begin_jobs(leaving: str) -> None:  # as the loop may at any time
        gone.append(leaving)
        with pytest.raises(KeyError), room.models.leased(leaving):
            pass
        running.enter_context(room.models.leased("first"))

    room.models.on_evict = begin_jobs
    full = Full(library, times=2)
    full.size = "16.00 GiB"  # all that is not in use would go for it
    with ExitStack() as running:
        assert room.models.retrying("hungry", full) == "done"
    assert gone == ["second"]
    assert room.holds("first")


class Full:
    """A call whose device has no room for so many times."""

    def __init__(self, library: SimpleNamespace, times: int) -> None:
        self.error = library.torch.OutOfMemoryError
        self.times = times
        self.calls = 0
        self.size = "2.00 MiB"

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error(f"CUDA out of memory. Tried to allocate {self.size}.")
        return "done"


def test_a_full_device_is_made_room_on_step_by_step(device: Callable[[int], Device], library: SimpleNamespace) -> None:
    room = device(0)
    room.load("idle", "sd15")
    room.load("a", "sdxl")
    call = Full(library, times=3)
    with room.models.leased("a"):
        assert room.models.retrying("a", call) == "done"
    assert room.degraded == [("a", "vae_only")]
    assert room.gone == ["idle"]
    assert room.warnings == [
        "`a`: out of memory: memory that was kept for later was given back",
        "`a`: out of memory: let go of `idle`",
    ]
    assert room.models.rung("a") == "vae_only"
    room.models.unload("a")
    room.load("a", "sdxl")
    assert room.models.rung("a") == "vae_only"  # what was learned is where the next load begins


def test_a_device_that_stays_full_ends_the_job(device: Callable[[int], Device], library: SimpleNamespace) -> None:
    room = device(0)
    pipeline = room.load("a", "sdxl")
    call = Full(library, times=100)
    with room.models.leased("a"), pytest.raises(DeviceFullError, match="out of memory"):
        room.models.retrying("a", call)
    assert [rung for _, rung in room.degraded] == ["vae_only", "model_offload", "group_offload"]
    assert call.calls == 5
    assert image(pipeline).shape == (1, 32, 32, 3)


def test_other_errors_are_not_tried_again(device: Callable[[int], Device], library: SimpleNamespace) -> None:
    room = device(0)
    room.load("a", "sd15")
    calls = []

    def call() -> None:
        calls.append(1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        room.models.retrying("a", call)
    assert calls == [1]
    assert room.degraded == []


@pytest.mark.gpu
def test_a_gpu_has_its_memory_back_when_a_model_goes(tiny: Path, library: SimpleNamespace) -> None:
    torch = library.torch
    models = Models(device="cuda", margin_bytes=1 << 30)
    slot = SlotModel("pipeline", "acme/sdxl", str(tiny / "sdxl"), "sdxl")
    before = torch.cuda.memory_allocated()
    pipeline = models.load("a", [slot], {"pipeline": library.diffusers.StableDiffusionXLPipeline})["pipeline"]
    (resident,) = models.residents("a")
    assert resident.tier == "VRAM"
    taken = torch.cuda.memory_allocated() - before
    assert resident.bytes <= taken < resident.bytes + 2_000_000  # blocks of the allocator are whole multiples of 512
    assert image(pipeline).shape == (1, 32, 32, 3)
    models.unload("a")
    assert torch.cuda.memory_allocated() - before < 64 << 20
