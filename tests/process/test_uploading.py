"""Weights on their way to a device: every byte arrives, whatever it is cut into."""

import time
from pathlib import Path
from typing import Any

import pytest

from gen_worker.models.uploading import upload

pytestmark = [pytest.mark.process, pytest.mark.needs("torch", "safetensors")]


def tensors() -> list[Any]:
    """Tensors of many kinds and sizes."""
    import torch

    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64, torch.bool)
    generator = torch.Generator().manual_seed(0)
    made = [
        torch.randint(0, 2, (size,), generator=generator).to(kind) for size in (1, 7, 100, 1000, 4099) for kind in kinds
    ]
    return [*made, torch.tensor(1.5), torch.empty(0), torch.arange(12.0).reshape(3, 4)]


def as_bytes(tensor: Any) -> bytes:
    import torch

    return bytes(tensor.detach().reshape(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("slot_bytes", [1, 64, 1000, 1 << 20])
def test_every_byte_arrives_in_pieces_of_any_size(slot_bytes: int, lanes: int) -> None:
    sent = tensors() if slot_bytes > 1 else tensors()[:12]
    before = [(each.data_ptr(), as_bytes(each)) for each in sent]
    total = upload(sent, "cpu", slot_bytes=slot_bytes, lanes=lanes)
    assert total == sum(len(bytes_) for _, bytes_ in before)
    for each, (address, bytes_) in zip(sent, before, strict=True):
        assert as_bytes(each) == bytes_
        assert not bytes_ or each.data_ptr() != address


def test_parameters_stay_the_objects_that_they_are_and_tied_ones_stay_tied() -> None:
    import torch

    first, second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    second.weight = torch.nn.Parameter(first.weight.data)
    model = torch.nn.Sequential(first, second, torch.nn.BatchNorm1d(8))
    names = dict(model.named_parameters(remove_duplicate=False))
    expected = model.eval()(torch.ones(2, 8))
    total = upload([*model.parameters(), *model.buffers()], "cpu")
    assert total == 4 * (64 + 8 + 8) + 4 * 8 * 4 + 8
    assert dict(model.named_parameters(remove_duplicate=False)).keys() == names.keys()
    assert all(now is names[name] for name, now in model.named_parameters(remove_duplicate=False))
    assert first.weight.data_ptr() == second.weight.data_ptr()
    assert model(torch.ones(2, 8)).equal(expected)


def test_what_is_not_one_run_of_bytes_is_left_where_it_is() -> None:
    import torch

    turned = torch.arange(12.0).reshape(3, 4).t()
    nowhere = torch.empty(3, device="meta")
    address = turned.data_ptr()
    assert upload([turned, nowhere], "cpu") == 0
    assert turned.data_ptr() == address


def test_mapped_weights_leave_their_file(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = {f"w{at}": torch.full((1000 + at,), float(at)) for at in range(20)}
    save_file(weights, tmp_path / "weights.safetensors")
    mapped = load_file(tmp_path / "weights.safetensors")
    upload(mapped.values(), "cpu", slot_bytes=4096)
    (tmp_path / "weights.safetensors").write_bytes(b"")
    assert all(mapped[name].equal(each) for name, each in weights.items())


def test_what_fails_on_its_way_leaves_everything_where_it_was() -> None:
    import torch

    sent = [torch.arange(100.0), torch.arange(10.0)]
    addresses = [each.data_ptr() for each in sent]
    with pytest.raises(RuntimeError):
        upload(sent, "no such device")
    assert [each.data_ptr() for each in sent] == addresses


# --- what only a GPU shows --------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_on_a_gpu_everything_arrives_and_is_ready_for_work() -> None:
    import torch

    sent = tensors()
    expected = [as_bytes(each) for each in sent]
    upload(sent, "cuda", slot_bytes=4096, lanes=4)
    assert all(each.device.type == "cuda" for each in sent if each.numel())
    assert [as_bytes(each.cpu()) for each in sent] == expected
    large = torch.rand(64 << 20)
    total = float(large.sum(dtype=torch.float64))
    upload([large], "cuda")
    assert float(large.sum(dtype=torch.float64)) == pytest.approx(total)


@pytest.mark.gpu
def test_on_a_gpu_it_is_faster_than_a_plain_copy() -> None:
    import torch

    def seconds(upload_: bool) -> float:
        sent = [torch.ones(16 << 20) for _ in range(32)]  # 2 GB
        torch.cuda.synchronize()
        started = time.perf_counter()
        if upload_:
            upload(sent, "cuda")
        else:
            sent = [each.to("cuda") for each in sent]
        torch.cuda.synchronize()
        return time.perf_counter() - started

    seconds(True), seconds(False)  # the first of each makes what the others reuse
    assert min(seconds(True) for _ in range(3)) < min(seconds(False) for _ in range(3))
