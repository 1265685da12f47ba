"""What a host lacks, as exceptions that `setup()` raises when its endpoint cannot run here."""

from pathlib import Path


def made_again(error: type[BaseException], *args: object) -> BaseException:
    """Return an exception as it comes out of a pickle: with its `args`, and without a call of its `__init__`."""
    return error.__new__(error, *args)


class HardwareUnmetError(RuntimeError):
    """The host cannot run the endpoint; another one may."""

    reason = "hardware_unmet"
    hint = ""

    def __reduce__(self) -> tuple[object, ...]:  # else a pool of processes breaks by one whose `__init__` takes more
        return made_again, (type(self), *self.args), vars(self)

    def axes(self) -> dict[str, str]:
        """Return what was found and what is needed, as text by name."""
        return {}


class ComputeCapabilityUnmetError(HardwareUnmetError):
    """The GPU is older than the endpoint needs."""

    reason = "compute_capability_unmet"

    def __init__(self, message: str, *, detected_sm: str, required_sm: str) -> None:
        super().__init__(message)
        self.detected_sm = detected_sm
        self.required_sm = required_sm

    def axes(self) -> dict[str, str]:
        """Return the detected and the required compute capability."""
        return {"detected_sm": str(self.detected_sm), "required_sm": str(self.required_sm)}


class InsufficientVRAMError(HardwareUnmetError):
    """The GPU has less memory than the endpoint needs."""

    reason = "insufficient_vram"

    def __init__(self, message: str, *, available_bytes: int, required_bytes: int, hint: str = "") -> None:
        super().__init__(message)
        self.available_bytes = available_bytes
        self.required_bytes = required_bytes
        self.hint = hint

    def axes(self) -> dict[str, str]:
        """Return the available and the required bytes."""
        return {"available_bytes": str(self.available_bytes), "required_bytes": str(self.required_bytes)}


class MissingCudaLibraryError(HardwareUnmetError):
    """A library that the endpoint needs is absent or too old."""

    reason = "missing_cuda_library"

    def __init__(self, message: str, *, library: str, min_version: str) -> None:
        super().__init__(message)
        self.library = library
        self.min_version = min_version

    def axes(self) -> dict[str, str]:
        """Return the library and the version it must have at least."""
        return {"library": str(self.library), "min_version": str(self.min_version)}


class InsufficientDiskError(HardwareUnmetError):
    """The disk has less room than the endpoint needs."""

    reason = "insufficient_disk"

    def __init__(self, message: str, *, available_bytes: int, required_bytes: int, path: str | Path) -> None:
        super().__init__(message)
        self.available_bytes = available_bytes
        self.required_bytes = required_bytes
        self.path = path

    def axes(self) -> dict[str, str]:
        """Return the available and the required bytes, and where."""
        return {
            "available_bytes": str(self.available_bytes),
            "required_bytes": str(self.required_bytes),
            "path": str(self.path),
        }
