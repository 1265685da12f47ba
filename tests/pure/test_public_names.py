"""The names that authors and programs import, and where they find them."""

import importlib
import importlib.util

import pytest

import gen_worker
import gen_worker.api
import gen_worker.discovery

CONTEXTS = {"RequestContext", "ConversionContext", "DatasetContext", "TrainingContext"}
NAMES = CONTEXTS | {
    *("endpoint", "Resources", "HF", "Hub", "Civitai", "ModelScope"),
    *("ValidationError", "RetryableError", "CanceledError", "FatalError"),
    *("IncrementalTokenDelta", "BatchItemDelta", "Done", "Error", "iter_transformers_text_deltas"),
    *("Asset", "ImageAsset", "AudioAsset", "VideoAsset", "ExpectedOutput", "StringEnum"),
    *("emit_diagnostic_log", "io"),
}
MORE_IN_API = {
    *("AuthError", "InputTooLargeError", "OutputTooLargeError", "RefCompatibilitySurprise", "ResourceError"),
    *("WorkerError", "Binding", "TokenStreamSignal", "Compute", "MediaAsset", "PromptRole"),
    *("PositivePrompt", "NegativePrompt", "Tensors"),
}
HOMES = {
    "gen_worker.api.types": ("SourceRepo", "DestinationRepo", "DatasetRef", "OutputSpec", "Asset", "Compute"),
    "gen_worker.api.errors": ("ArtifactTransferError", "WorkerError", "ValidationError"),
    "gen_worker.api.payload_constraints": ("Clamp",),
    "gen_worker.capability": (
        *("HardwareUnmetError", "ComputeCapabilityUnmetError", "InsufficientVRAMError"),
        *("MissingCudaLibraryError", "InsufficientDiskError"),
    ),
    "gen_worker.discovery": (
        *("validate_endpoint_lock", "validate_endpoint", "load_project_config", "slugify_name", "discover"),
    ),
    "gen_worker.io": ("read_bytes", "open", "exists", "read_image", "read_audio", "write_image"),
}


def test_the_package_exports_27_names_and_no_more() -> None:
    assert len(gen_worker.__all__) == len(NAMES) == 27
    assert set(gen_worker.__all__) == NAMES
    assert all(getattr(gen_worker, name) is not None for name in NAMES)
    assert set(dir(gen_worker)) >= NAMES
    assert gen_worker.__version__
    with pytest.raises(AttributeError, match="no attribute 'is_canceled'"):
        _ = gen_worker.is_canceled  # type: ignore[attr-defined]


def test_the_api_has_the_names_that_are_no_contexts_and_some_more() -> None:
    assert set(gen_worker.api.__all__) == (NAMES - CONTEXTS) | MORE_IN_API
    assert all(getattr(gen_worker.api, name) is not None for name in gen_worker.api.__all__)
    assert all(getattr(gen_worker.api, name) is getattr(gen_worker, name) for name in NAMES - CONTEXTS)


@pytest.mark.parametrize(("module", "names"), HOMES.items())
def test_other_names_are_where_authors_look_for_them(module: str, names: tuple[str, ...]) -> None:
    found = importlib.import_module(module)
    assert all(hasattr(found, name) for name in names)


def test_discovery_has_every_name_that_it_exports() -> None:
    for name in gen_worker.discovery.__all__:
        assert getattr(gen_worker.discovery, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gen_worker.discovery.nothing  # type: ignore[attr-defined]
