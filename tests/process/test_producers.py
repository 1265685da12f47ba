"""Endpoints that make models or data sets get the context of their kind, served as in `run`."""

from pathlib import Path

from tests.served import Serve

ENDPOINT = """
import msgspec
from gen_worker import ConversionContext, endpoint

class In(msgspec.Struct):
    text: str = ""

@endpoint(kind="conversion")
def convert(ctx: ConversionContext, payload: In) -> In:
    (ctx.mktemp() / "part").write_text("half done")
    return In(type(ctx).__name__)
"""


def test_a_served_conversion_has_folders_to_work_in(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "producing.py").write_text(ENDPOINT)
    server = serve(module="producing", cwd=tmp_path)
    answer = server.ask("convert")
    assert answer["events"][-1]["value"] == {"text": "ConversionContext"}, answer
