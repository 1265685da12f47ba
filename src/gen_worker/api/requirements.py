"""What a part of the SDK needs beyond its own dependencies, and which extra brings it."""

from importlib.util import find_spec

from gen_worker.extras import installed_by


def require(extra: str, *modules: str) -> None:
    """Raise ImportError, naming the extra that brings it, where one of these modules is not installed."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        packages = ", ".join(_PACKAGES.get(module, module) for module in missing)
        raise ImportError(f"{packages} is not installed: {installed_by(extra)}")


_PACKAGES = {"PIL": "Pillow", "av": "PyAV"}
