"""Eight GPUs whose children hold memory of them: what the status document says of whose it is."""

from pathlib import Path

import pytest

from gen_worker.wire.status import DeviceStatus
from tests.nvml.session import CONTEXT_BYTES, IDLE_BYTES, session
from tests.served import until

pytestmark = pytest.mark.process


def test_the_memory_that_a_child_holds_is_told_apart_from_what_else_is_in_use(tmp_path: Path) -> None:
    with session(tmp_path) as made:
        made.asks("text-to-image", "cover", "atlas", steps=600, seconds_a_step=0.1, working_gb=6.0)

        def held() -> DeviceStatus | None:
            at_work = [each for each in made.server.status().gpus if each.job == "cover" and each.vram_ours]
            return at_work[0] if at_work and at_work[0].vram_other == CONTEXT_BYTES + IDLE_BYTES else None

        device = until(held, what="a GPU whose memory is in use")
        assert device is not None
        assert device.vram_ours == int((33.7e9 + 6e9) * 1.06)
        assert [(model.ref, model.tier) for model in device.models] == [("black-forest-labs/FLUX.1-dev", "VRAM")]
        assert (device.product, device.util) == ("NVIDIA H100 80GB HBM3", 0.97)
        others = [each for each in made.server.status().gpus if each.name != device.name]
        assert {(each.vram_ours, each.vram_other) for each in others} == {(None, None)}
        assert made.server.status().downloaded_bytes > 0
