"""Functions of the earlier API that look at the files of their payloads, and one that spoils its own."""

import os
import time
from pathlib import Path

import msgspec

from gen_worker import ActionContext, Asset, worker_function

FOLDER = Path(os.environ.get("SHOP_FOLDER", "."))


class Source(msgspec.Struct):
    asset: Asset
    gate: str = ""


class Look(msgspec.Struct):
    text: str
    path: str
    size_bytes: int | None
    mime_type: str | None
    sha256: str | None
    tenant_id: str | None


@worker_function()
def look(ctx: ActionContext, payload: Source) -> Look:
    asset = payload.asset
    assert asset.local_path is not None
    text = Path(asset.local_path).read_text()
    if payload.gate:
        (FOLDER / f"{payload.gate}-waits").touch()
        while not (FOLDER / payload.gate).exists():
            time.sleep(0.002)
    return Look(text, asset.local_path, asset.size_bytes, asset.mime_type, asset.sha256, asset.tenant_id)


@worker_function()
def spoil(ctx: ActionContext, payload: Source) -> Look:
    assert payload.asset.local_path is not None
    Path(payload.asset.local_path).write_text("spoilt")
    return look(ctx, payload)
