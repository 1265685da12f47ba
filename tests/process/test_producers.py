"""Endpoints that make models or data sets get the context of their kind, served as in `run`."""

from pathlib import Path

from tests.served import Serve

ENDPOINT = """
from typing import Any

import msgspec
from gen_worker import ConversionContext, endpoint
from gen_worker.api.types import SourceRepo

class In(msgspec.Struct):
    text: str = ""
    source: SourceRepo | None = None

class Told(msgspec.Struct):
    told: dict[str, Any]

@endpoint(kind="conversion")
def convert(ctx: ConversionContext, payload: In) -> In:
    (ctx.mktemp() / "part").write_text("half done")
    return In(type(ctx).__name__)

@endpoint(kind="conversion")
async def publish(ctx: ConversionContext, payload: In) -> Told:
    with ctx.open_checkpoint_stream("a/model.safetensors") as stream:
        stream.write(b"weights")
    told = ctx.publish_repo_revision(destination_repo="acme/tiny", artifact_refs=[stream.finalize()])
    return Told({**told, "mode": stream.stream_mode, "format": stream.finalize().format})

@endpoint(kind="conversion")
def materialize(ctx: ConversionContext, payload: In) -> In:
    return In(str(ctx.materialize_blob("0" * 64, ctx.mktemp() / "file")))
"""


def test_a_served_producer_works_in_folders_and_publishes_nothing_unless_it_may(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "producing.py").write_text(ENDPOINT)
    server = serve(module="producing", cwd=tmp_path)
    answer = server.ask("convert")
    assert answer["events"][-1]["value"] == {"text": "ConversionContext", "source": None}, answer
    told = server.ask("publish")["events"][-1]["value"]["told"]
    assert (told["stubbed"], told["mode"], told["format"]) == (True, "local_fallback", "safetensors")

    error = server.ask("materialize")
    assert "is not on this machine, and there is no platform to ask" in str(error)
    refused = server.ask("convert", source={"ref": ""})
    assert "`source.ref` is empty" in str(refused), refused
    nowhere = server.ask("convert", source={"ref": "acme/nowhere"})
    assert "whose address is not set" in str(nowhere), nowhere
