"""What `gen-worker run` says of the memory that a job took."""

import pytest

from gen_worker.cli.peak_memory import GB, Peak, sentence, suggested_gb


@pytest.mark.parametrize(
    ("peak", "told", "gb"),
    [
        (Peak(45 << 20), "peak memory: 45 MiB of the host", None),
        (
            Peak(2 * GB, 5 * GB, 4 * GB),
            "peak memory: 2048 MiB of the host, 5120 MiB of the GPU: `Resources(vram_gb=6)` leaves a margin",
            6,
        ),
        (
            Peak(8 * GB, 0, 7 * GB),
            "peak memory: 8192 MiB of the host; its models take 7168 MiB, so `Resources(vram_gb=9)` at least: "
            "a run on a GPU tells what it needs",
            9,
        ),
    ],
)
def test_the_peak_is_told_with_what_to_ask_for(peak: Peak, told: str, gb: int | None) -> None:
    assert sentence(peak) == told
    assert suggested_gb(peak) == gb


def test_what_is_suggested_is_more_than_what_was_taken() -> None:
    for taken in (1, GB // 2, GB, 23 * GB, 80 * GB):
        for peak in (Peak(0, taken), Peak(0, 0, taken)):
            gb = suggested_gb(peak)
            assert gb is not None
            assert gb * GB > taken
