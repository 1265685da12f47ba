"""Find the endpoints of a project and describe them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gen_worker.discovery.documents import describe, manifest, survey
    from gen_worker.discovery.errors import DiscoveryError
    from gen_worker.discovery.function_spec import FunctionSpec
    from gen_worker.discovery.lock import discover, to_toml
    from gen_worker.discovery.names import did_you_mean, match_name, slugify_name
    from gen_worker.discovery.project import ProjectConfig, import_paths, load_project_config
    from gen_worker.discovery.specs import collect
    from gen_worker.discovery.stacks import author_stack
    from gen_worker.discovery.validation import Finding, Validation, validate_endpoint, validate_endpoint_lock
    from gen_worker.discovery.walk import import_main

__all__ = [
    "DiscoveryError",
    "Finding",
    "FunctionSpec",
    "ProjectConfig",
    "Validation",
    "author_stack",
    "collect",
    "describe",
    "did_you_mean",
    "discover",
    "import_main",
    "import_paths",
    "load_project_config",
    "manifest",
    "match_name",
    "slugify_name",
    "survey",
    "to_toml",
    "validate_endpoint",
    "validate_endpoint_lock",
]

_HOMES = {
    "documents": ("describe", "manifest", "survey"),
    "errors": ("DiscoveryError",),
    "function_spec": ("FunctionSpec",),
    "lock": ("discover", "to_toml"),
    "names": ("did_you_mean", "match_name", "slugify_name"),
    "project": ("ProjectConfig", "import_paths", "load_project_config"),
    "specs": ("collect",),
    "stacks": ("author_stack",),
    "validation": ("Finding", "Validation", "validate_endpoint", "validate_endpoint_lock"),
    "walk": ("import_main",),
}


if not TYPE_CHECKING:  # else a type checker takes every misspelt name for one that is there

    def __getattr__(name: str) -> Any:
        """Import a name when it is first used: the supervisor and the CLI need the light ones only."""
        import importlib

        for home, names in _HOMES.items():
            if name in names:
                return getattr(importlib.import_module(f"{__name__}.{home}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
