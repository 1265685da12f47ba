"""No value that travels shows a token, a signed URL or a key where it is only looked at."""

import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import msgspec
import pytest

import gen_worker.fetch.config
import gen_worker.fetch.uploading.places
import gen_worker.fetch.uploading.signing
import gen_worker.models.wanted
import gen_worker.wire.control
import gen_worker.wire.fetching
import gen_worker.wire.messages
import gen_worker.wire.scheduler
from gen_worker.models.wanted import SnapshotFile
from gen_worker.wire.fetching import Destination, FetchInput, Upload
from gen_worker.wire.messages import InputAsset, NeedsInputs
from gen_worker.wire.scheduler import ModelOp, ModelOpKind, RunJob, Snapshot

MODULES = (
    gen_worker.fetch.config,
    gen_worker.fetch.uploading.places,
    gen_worker.fetch.uploading.signing,
    gen_worker.models.wanted,
    gen_worker.wire.control,
    gen_worker.wire.fetching,
    gen_worker.wire.messages,
    gen_worker.wire.scheduler,
)
NEEDLE = "s3cret"
SECRET = re.compile(r"(.*_)?(token|urls?|config|grant|access_key|proxies)")
KNOWN = {"base_url", "file_base_url", "endpoint_url", "cozy_hub_url"}  # where something is, which everybody may know


def structs(module: ModuleType) -> Iterator[type[msgspec.Struct]]:
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == module.__name__:
            yield value


def hidden(struct: type[msgspec.Struct]) -> list[str]:
    """Return the fields of a struct that hold what nobody may see."""
    fields = msgspec.structs.fields(struct)
    return [each.name for each in fields if SECRET.fullmatch(each.name) and each.name not in KNOWN | {"token"}] + [
        each.name for each in fields if each.name == "token" and each.type is not int
    ]


STRUCTS = [struct for module in MODULES for struct in structs(module)]


def holding(struct: type[msgspec.Struct]) -> msgspec.Struct:
    """Return a value with a needle in each field that holds a secret; others hold anything."""
    fields: dict[str, Any] = {each.name: None for each in msgspec.structs.fields(struct) if each.required}
    return struct(**fields | {name: {"http": NEEDLE} if name == "proxies" else NEEDLE for name in hidden(struct)})


@pytest.mark.parametrize("struct", [struct for struct in STRUCTS if hidden(struct)], ids=lambda each: each.__name__)
def test_a_value_does_not_show_its_secrets(struct: type[msgspec.Struct]) -> None:
    shown = repr(holding(struct))
    assert NEEDLE not in shown
    assert shown.startswith(f"{struct.__name__}(")


FILE = SnapshotFile("model.safetensors", 9, "b3", f"https://store/x?signature={NEEDLE}")
ASSET = InputAsset(f"https://store/x?signature={NEEDLE}")


@pytest.mark.parametrize(
    "value",
    [
        RunJob(
            request_id="r",
            attempt=1,
            function_name="f",
            input_payload=NEEDLE.encode(),
            capability_token=NEEDLE,
            snapshots={"a/b": Snapshot(digest="d", files=(FILE,))},
        ),
        ModelOp(op=ModelOpKind.DOWNLOAD, ref="a/b", snapshot=Snapshot(digest="d", files=(FILE,))),
        FetchInput(1, ASSET, "/tmp/x", 9),
        NeedsInputs(1, [ASSET]),
        Upload(1, Destination("https://store", NEEDLE, "r", 1), "a.png", 9),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nor_does_what_holds_such_a_value(value: object) -> None:
    assert NEEDLE not in repr(value)
    assert "<secret>" in repr(value)


def test_what_holds_no_secret_is_shown_whole() -> None:
    assert repr(InputAsset("")) == (
        "InputAsset(url='', max_bytes=0, mime_types=(), max_width=0, max_height=0, max_pixels=0)"
    )
