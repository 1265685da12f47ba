"""What each exception of a handler means for its job."""

import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gen_worker.api import errors
from gen_worker.api.errors import ValidationError, Verdict, classify
from gen_worker.capability import (
    ComputeCapabilityUnmetError,
    HardwareUnmetError,
    InsufficientDiskError,
    InsufficientVRAMError,
    MissingCudaLibraryError,
)


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


class CUDAOutOfMemoryError(Exception): ...


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def decoding(text: bytes) -> Exception:
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.json.decode(text, type=int)
    return caught.value


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (errors.ValidationError(" too long "), Verdict("invalid", "too long", False)),
        (errors.RefCompatibilitySurprise("no unet", ref="a/b"), Verdict("invalid", "no unet", False)),
        (ValueError("no such style"), Verdict("invalid", "no such style", False)),
        (decoding(b'"a"'), Verdict("invalid", "Expected `int`, got `str`", False)),
        (decoding(b""), Verdict("invalid", "Input data was truncated", False)),
        (errors.RetryableError("try later"), Verdict("retryable", "try later", True)),
        (errors.CanceledError("stopped"), Verdict("canceled", "stopped", False)),
        (errors.CanceledError(), Verdict("canceled", "CanceledError", False)),
        (errors.FatalError("no"), Verdict("user_exception", "FatalError: no", False)),
        (errors.ResourceError("no"), Verdict("user_exception", "ResourceError: no", False)),
        (errors.AuthError("no"), Verdict("user_exception", "AuthError: no", False)),
        (errors.WorkerError("no"), Verdict("user_exception", "WorkerError: no", False)),
        (msgspec.EncodeError("no"), Verdict("user_exception", "EncodeError: no", False)),
        (
            UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
            Verdict(
                "user_exception",
                "UnicodeEncodeError: 'utf-8' codec can't encode character '\\ud800' in position 0: "
                "surrogates not allowed",
                False,
            ),
        ),
        (
            UnicodeEncodeError("ascii", "é", 0, 1, "not here"),
            Verdict("invalid", "'ascii' codec can't encode character '\\xe9' in position 0: not here", False),
        ),
        (KeyError("style"), Verdict("user_exception", "KeyError: 'style'", False)),
        (RuntimeError("first\nsecond"), Verdict("user_exception", "RuntimeError: first", False)),
        (ZeroDivisionError(), Verdict("user_exception", "ZeroDivisionError", False)),
        (SystemExit(3), Verdict("user_exception", "SystemExit: 3", False)),
        (Unspeakable(), Verdict("user_exception", "Unspeakable", False)),
        (OutOfMemoryError("Tried to allocate 20 GiB"), Verdict("out_of_memory", "out of memory", True)),
        (CUDAOutOfMemoryError(), Verdict("out_of_memory", "out of memory", True)),
        (RuntimeError("CUDA error: out of memory"), Verdict("out_of_memory", "out of memory", True)),
        (MemoryError(), Verdict("out_of_memory", "out of memory", True)),
        (errors.ArtifactTransferError("gone", retryable=True), Verdict("retryable", "gone", True)),
        (errors.ArtifactTransferError("gone"), Verdict("user_exception", "ArtifactTransferError: gone", False)),
        (HardwareUnmetError("old GPU"), Verdict("retryable", "old GPU", True)),
    ],
)  # fmt: skip
def test_every_exception_has_one_meaning(error: BaseException, verdict: Verdict) -> None:
    assert classify(error) == verdict


def test_a_model_that_does_not_fit_is_named() -> None:
    error = errors.RefCompatibilitySurprise(ref="a/b", axis="dtype")
    assert str(error) == "`a/b` does not fit this function: dtype"


def test_texts_are_cut_where_messages_end() -> None:
    assert len(classify(ValueError("x" * 5000)).message) == 1024
    assert len(classify(RuntimeError("x" * 5000)).message) == 512


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.WorkerError, "FATAL"),
        (errors.ValidationError, "INVALID"),
        (errors.InputTooLargeError, "INVALID"),
        (errors.OutputTooLargeError, "INVALID"),
        (errors.RefCompatibilitySurprise, "INVALID"),
        (errors.RetryableError, "RETRYABLE"),
        (errors.CanceledError, "CANCELED"),
        (errors.FatalError, "FATAL"),
        (errors.ResourceError, "FATAL"),
        (errors.AuthError, "FATAL"),
        (errors.ArtifactTransferError, "FATAL"),
    ],
)
def test_each_class_carries_its_status(error: type[errors.WorkerError], status: str) -> None:
    assert error.status == status


def test_a_size_error_says_both_sizes() -> None:
    error = errors.InputTooLargeError(size_bytes=20, max_bytes=10, source="`photo`")
    assert str(error) == "`photo` has 20 bytes, the limit is 10"
    assert (error.size_bytes, error.max_bytes, error.source) == (20, 10, "`photo`")
    assert isinstance(errors.OutputTooLargeError(size_bytes=2, max_bytes=1), errors.ValidationError)


def test_a_transfer_error_tells_what_is_known() -> None:
    error = errors.ArtifactTransferError("upload failed", provider="hub", phase="part", status_code=503, cause_type="")
    assert str(error) == "upload failed (provider=hub, phase=part, status=503)"


@pytest.mark.parametrize(
    ("error", "reason", "axes"),
    [
        (
            ComputeCapabilityUnmetError("old", detected_sm="75", required_sm="80"),
            "compute_capability_unmet",
            {"detected_sm": "75", "required_sm": "80"},
        ),
        (
            InsufficientVRAMError("small", available_bytes=1, required_bytes=2),
            "insufficient_vram",
            {"available_bytes": "1", "required_bytes": "2"},
        ),
        (
            MissingCudaLibraryError("none", library="flashpack", min_version="2"),
            "missing_cuda_library",
            {"library": "flashpack", "min_version": "2"},
        ),
        (
            InsufficientDiskError("full", available_bytes=1, required_bytes=2, path=Path("cache")),
            "insufficient_disk",
            {"available_bytes": "1", "required_bytes": "2", "path": "cache"},
        ),
    ],
)
def test_what_a_host_lacks_is_said_in_words_and_values(error: Any, reason: str, axes: dict[str, str]) -> None:
    assert isinstance(error, HardwareUnmetError)
    assert isinstance(error, RuntimeError)
    assert (error.reason, error.axes()) == (reason, axes)


class FromAPool(ValidationError):
    def __init__(self, *, step: int) -> None:
        super().__init__(f"step {step}")
        self.step = step


@pytest.mark.parametrize(
    "error",
    [
        errors.InputTooLargeError(size_bytes=10, max_bytes=5),
        errors.OutputTooLargeError(size_bytes=10, max_bytes=5, message="the film"),
        errors.RefCompatibilitySurprise(ref="a/b", axis="dtype"),
        errors.ArtifactTransferError("cut off", "hf", "download", True, 503, "TimeoutError"),
        FromAPool(step=3),
        InsufficientVRAMError("full", available_bytes=1, required_bytes=2, hint="less"),
        InsufficientDiskError("full", available_bytes=1, required_bytes=2, path="/x"),
    ],
)
def test_what_a_pool_of_processes_raises_arrives_as_it_was(error: Exception) -> None:
    arrived = pickle.loads(pickle.dumps(error))
    assert (type(arrived), str(arrived), vars(arrived)) == (type(error), str(error), vars(error))
    assert classify(arrived) == classify(error)
