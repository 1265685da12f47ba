"""What `gen-worker models` tells of models, and what a person may call them."""

import pytest

from gen_worker.cli.models import describe, document, names, pin_hint, progress
from gen_worker.wire.control import Modeled
from gen_worker.wire.status import DeviceStatus, DownloadStatus, HostModelStatus, ModelStatus, Status

MIB = 1 << 20
XL = HostModelStatus("acme/xl", "VRAM", 6 * MIB, "/cache/xl", pinned=["cuda:1"], functions=["paint"], used_s=75.0)


def status(**more: object) -> Status:
    devices = [
        DeviceStatus(0, None, "cuda:0", 10, "idle"),
        DeviceStatus(1, None, "cuda:1", 11, "busy", models=[ModelStatus("acme/xl", 5 * MIB, "VRAM", "Painter")]),
    ]
    return Status(0.0, "host", "1", 1, 0.0, gpus=devices, models=[XL], **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("ref", ["acme/xl", "hf:acme/xl", "xl"])
def test_a_model_is_named_with_or_without_its_provider_and_by_its_last_part(ref: str) -> None:
    assert names(XL, ref)


@pytest.mark.parametrize("ref", ["acme", "l", "acme/xl2", "lab/xl"])
def test_what_only_looks_like_it_is_another_model(ref: str) -> None:
    assert not names(XL, ref)


def test_the_table_says_where_a_model_is_and_what_keeps_it() -> None:
    assert describe(status()).splitlines() == [
        "MODEL    STATE  SIZE   DEVICE  PINNED  USED       FUNCTIONS",
        "acme/xl  VRAM   6 MiB  cuda:1  cuda:1  1m15s ago  paint",
    ]


def test_a_model_that_cannot_be_had_says_why_below_the_table() -> None:
    broken = Status(0.0, "h", "1", 1, 0.0, models=[HostModelStatus("acme/a", "COLD", error="no such repository")])
    assert describe(broken).splitlines()[-1] == "`acme/a`: no such repository"


def test_without_models_there_is_no_table() -> None:
    assert describe(Status(0.0, "h", "1", 1, 0.0)) == "no function here needs a model"


def test_the_document_names_the_devices_that_hold_a_model() -> None:
    (model,) = document(status())["models"]
    assert (model["ref"], model["pinned"]) == ("acme/xl", ["cuda:1"])
    (held,) = model["devices"]
    assert held == {"device": "cuda:1", "tier": "VRAM", "bytes": 5 * MIB, "rung": None, "instance": "Painter"}


def test_progress_is_that_of_the_models_download_and_then_of_its_set_up() -> None:
    other = DownloadStatus("acme/other", 1, 2, None, "downloading")
    coming = DownloadStatus("acme/xl", 3 * MIB, 6 * MIB, None, "downloading")
    assert progress(status(downloads=[other, coming]), "xl", "") == "downloading `acme/xl` 50% of 6 MiB"
    assert progress(status(downloads=[other]), "xl", "") == ""
    loading = status()
    loading.gpus[0].loading, loading.gpus[0].loading_bytes, loading.gpus[0].loading_total = "Painter", 9, 10
    assert progress(loading, "xl", "cuda:0") == "setting up `Painter` on cuda:0 90%"
    assert progress(loading, "xl", "cuda:1") == ""


@pytest.mark.parametrize(
    ("answer", "device", "hint"),
    [
        (Modeled("unload", "b", "failed"), "", "`gen-worker models unpin lab/b` first"),
        (Modeled("unload", "b", "failed"), "cpu:1", "`gen-worker models unpin lab/b cpu:1` first"),
        (Modeled("unload", "a", "failed"), "", "`gen-worker models unpin lab/a cpu:0` first"),
        (Modeled("unload", "c", "failed"), "", ""),
        (Modeled("load", "a", "failed", message="insufficient_vram"), "cpu:1", "`gen-worker models unpin lab/b cpu:1`"),
        (Modeled("load", "c", "failed", message="no such revision"), "", ""),
    ],
)
def test_the_pin_that_is_in_the_way_is_named_and_no_other(answer: Modeled, device: str, hint: str) -> None:
    pins = {"lab/a": ["cpu:0"], "lab/b": ["cpu:0", "cpu:1"], "lab/c": []}
    models = [HostModelStatus(ref, "DISK", pinned=pinned) for ref, pinned in pins.items()]
    found = pin_hint(answer, device, Status(0.0, "h", "1", 1, 0.0, models=models))
    assert found.startswith(hint)
    assert bool(found) == bool(hint)
