"""Bindings and resources are values."""

from typing import Any

import pytest

from gen_worker import HF, Civitai, Hub, ModelScope, Resources


@pytest.mark.parametrize(
    ("binding", "provider", "wire_ref"),
    [
        (HF("maker/model"), "hf", "maker/model"),
        (HF("maker/model", revision="v2", dtype="bf16", subfolder="unet"), "hf", "maker/model@v2"),
        (Hub("maker/model"), "tensorhub", "maker/model"),
        (Hub("maker/model", tag=""), "tensorhub", "maker/model"),
        (Hub("maker/model", tag="dev"), "tensorhub", "maker/model:dev"),
        (Hub("maker/model", flavor="fp8"), "tensorhub", "maker/model#fp8"),
        (Hub("maker/model", "dev", "fp8"), "tensorhub", "maker/model:dev#fp8"),
        (Civitai("4201", version="130072"), "civitai", "4201"),
        (ModelScope("maker/model", revision="v2"), "modelscope", "maker/model"),
    ],
)
def test_a_binding_knows_its_provider_and_its_name_in_messages(binding: Any, provider: str, wire_ref: str) -> None:
    assert (binding.provider, binding.wire_ref) == (provider, wire_ref)


def test_a_binding_strips_its_text_and_drops_empty_globs() -> None:
    binding = HF(" maker/model ", revision=" v2 ", files=[" *.json ", " "])  # type: ignore[arg-type]
    assert binding == HF("maker/model", revision="v2", files=("*.json",))
    assert Hub("m", tag="  ").tag == "prod"


def test_bindings_are_compared_by_value_and_kind() -> None:
    assert len({HF("a/b"), HF("a/b"), ModelScope("a/b"), HF("a/b", dtype="fp16")}) == 3


def test_a_binding_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        HF("a/b").ref = "c/d"  # type: ignore[misc]


@pytest.mark.parametrize(
    "make", [lambda: HF("model"), lambda: ModelScope("model"), lambda: HF("model/"), lambda: HF("/")]
)
def test_a_repository_needs_its_owner(make: Any) -> None:
    with pytest.raises(ValueError, match="owner/name"):
        make()


@pytest.mark.parametrize("make", [lambda: Hub(" "), lambda: Civitai("")])
def test_a_model_needs_an_id(make: Any) -> None:
    with pytest.raises(ValueError, match="needs the id of a model"):
        make()


def test_a_glob_alone_is_not_taken_for_a_tuple_of_letters() -> None:
    with pytest.raises(TypeError, match=r"write `files=\('\*.json',\)`"):
        HF("a/b", files="*.json")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["", "fp16", "bfloat16", "FP32", " float16 "])
def test_a_dtype_may_be_named_in_either_way(dtype: str) -> None:
    assert HF("a/b", dtype=dtype).wanted.dtype == dtype.strip()


@pytest.mark.parametrize("dtype", ["banana", "int8", "torch.float16"])
def test_a_dtype_that_weights_are_not_loaded_in_is_refused_where_it_is_written(dtype: str) -> None:
    with pytest.raises(ValueError, match=rf"`HF\(dtype=\)` takes one of `fp16`, .*`float32`, got `{dtype}`"):
        HF("a/b", dtype=dtype)


def test_a_number_is_no_model_id() -> None:
    with pytest.raises(TypeError, match="takes a string, got 4201"):
        Civitai(4201)  # type: ignore[arg-type]


def test_no_binding_takes_a_slot_name() -> None:
    for binding in (HF, Hub, Civitai, ModelScope):
        assert not {"slot", "name", "slot_name"} & set(binding.__struct_fields__)


def test_video_memory_or_a_compute_capability_means_a_gpu() -> None:
    assert Resources() == Resources(gpu=False, vram_gb=None, compute_capability=None, libraries=())
    assert Resources(vram_gb=24).gpu
    assert Resources(compute_capability=8).gpu
    assert isinstance(Resources(vram_gb=24).vram_gb, float)


@pytest.mark.parametrize("field", ["vram_gb", "compute_capability"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_need_is_more_than_nothing(field: str, value: float) -> None:
    with pytest.raises(ValueError, match="must be more than 0"):
        Resources(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["vram_gb", "compute_capability"])
def test_a_need_is_a_number(field: str) -> None:
    with pytest.raises(ValueError, match=f"`Resources\\({field}=\\)` takes a number, got 'much'"):
        Resources(**{field: "much"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes a number"):
        Resources(**{field: [8]})  # type: ignore[arg-type]


def test_library_names_are_stripped() -> None:
    assert Resources(libraries=[" flashpack ", ""]).libraries == ("flashpack",)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes a tuple"):
        Resources(libraries="flashpack")  # type: ignore[arg-type]
    for no_names in (None, (3,)):
        with pytest.raises(TypeError, match="takes a tuple of names, got"):
            Resources(libraries=no_names)  # type: ignore[arg-type]


def test_code_of_a_repository_is_trusted_only_by_name() -> None:
    assert not HF("a/b").wanted.trust_remote_code
    trusting = HF("a/b", trust_remote_code=True)
    assert trusting.wanted.trust_remote_code
    assert trusting.wanted.key != HF("a/b").wanted.key
    with pytest.raises(TypeError, match="takes True or False"):
        HF("a/b", trust_remote_code="yes")  # type: ignore[arg-type]
