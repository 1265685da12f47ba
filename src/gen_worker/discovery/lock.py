"""The endpoint lock: the manifest of a project as TOML, the same bytes for the same project."""

from pathlib import Path
from typing import Any

from gen_worker.discovery.command import located
from gen_worker.discovery.documents import manifest
from gen_worker.discovery.specs import collect
from gen_worker.discovery.walk import import_modules


def discover(path: str | Path | None = None, *, module: str | None = None) -> dict[str, Any]:
    """Return the manifest of a project, of the one in the current folder without a path; imports it here.

    Raises DiscoveryError with everything that is wrong with its functions, FileNotFoundError or ValueError for a
    project file that does not name them.
    """
    return manifest(collect(*import_modules(*located(path, module))))


def to_toml(document: dict[str, Any]) -> str:
    """Return a manifest as TOML, with one newline at its end."""
    import tomli_w

    return tomli_w.dumps(document)
