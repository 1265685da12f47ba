"""What the headers of a model's files say is what the model takes once it is loaded."""

from pathlib import Path
from typing import Any

import pytest

from gen_worker.models.headers import footprint
from gen_worker.testing import make_tiny

pytestmark = [pytest.mark.process, pytest.mark.needs("torch", "diffusers", "transformers")]


def resident_bytes(pipeline: Any) -> int:
    """Return what the parameters and buffers of all components take, each storage once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for component in pipeline.components.values()
        if hasattr(component, "parameters")
        for tensor in (*component.parameters(), *component.buffers())
    }
    return sum(storages.values())


@pytest.mark.parametrize(("architecture", "shards"), [("sd15", 1), ("sdxl", 2), ("flux", 1)])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_footprint_is_within_2_percent_of_what_is_resident(
    tmp_path: Path, architecture: Any, shards: int, dtype: str
) -> None:
    import diffusers  # type: ignore[import-untyped,unused-ignore]
    import torch

    folder = make_tiny(architecture, tmp_path / "model", dtype="fp16", shards=shards)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        folder, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True
    )
    assert footprint(folder, dtype) == pytest.approx(resident_bytes(pipeline), rel=0.02)
