"""What weights are loaded as."""

import pytest

from gen_worker.models.errors import ModelError
from gen_worker_child.models.dtypes import dtype_named, precision


@pytest.mark.parametrize(
    ("text", "dtype"),
    [("fp16", "fp16"), ("float16", "fp16"), (" BF16 ", "bf16"), ("bfloat16", "bf16"), ("float32", "fp32")],
)
def test_a_dtype_has_two_spellings(text: str, dtype: str) -> None:
    assert dtype_named(text, "acme/it") == dtype


def test_an_unknown_dtype_is_told_with_those_there_are() -> None:
    with pytest.raises(ModelError, match="`acme/it`: unknown dtype `fp8`") as raised:
        dtype_named("fp8", "acme/it")
    assert "`bf16`" in raised.value.hint


def test_weights_are_loaded_as_they_are_stored() -> None:
    assert precision({"BF16": 1000, "I64": 80}, "", "acme/it") == ("bf16", 0.0, "")


def test_of_mixed_weights_most_decide_and_that_is_told() -> None:
    dtype, share, note = precision({"F16": 700, "F32": 300}, "", "acme/it")
    assert (dtype, share) == ("fp16", 0.3)
    assert note.startswith(
        "`acme/it`: 30% of the weights are stored as f32, the others as fp16: all are loaded as fp16"
    )


def test_norms_in_full_precision_are_no_news() -> None:
    assert precision({"F16": 10_000, "F32": 50}, "", "acme/it").note == ""


def test_a_wanted_dtype_says_what_must_be_cast() -> None:
    assert precision({"F32": 1000}, "fp16", "acme/it") == ("fp16", 1.0, "")
    assert precision({"F16": 1000}, "fp16", "acme/it") == ("fp16", 0.0, "")


def test_eight_bits_are_computed_with_in_sixteen() -> None:
    assert precision({"F8_E4M3": 1000}, "", "acme/it")[:2] == ("bf16", 1.0)


def test_weights_without_numbers_to_compute_with_are_full_precision() -> None:
    assert precision({"I64": 80}, "", "acme/it") == ("fp32", 0.0, "")
