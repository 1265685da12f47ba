"""The document of a project that may have functions of either API: what `python -m gen_worker.discover` prints."""

import sys
from collections.abc import Sequence
from typing import Any

from gen_worker.discovery.documents import manifest
from gen_worker.discovery.errors import DiscoveryError
from gen_worker.discovery.specs import collect
from gen_worker.discovery.walk import import_main
from gen_worker.earlier.manifest import deployment_keys, entries, of_project
from gen_worker.earlier.project import CozyProject, project_of, unlisted


def document_of(modules: Sequence[str], paths: Sequence[str]) -> dict[str, Any]:
    """Import modules and return the document of their project; warnings go to stderr.
    A module that does not import is left out with a warning. Raises DiscoveryError for a function that breaks a rule,
    and where no module imports.
    """
    imported, failed = [], []
    for name in modules:
        try:
            imported.append(import_main(name, paths))
        except DiscoveryError as problem:
            failed.append(problem)
    if failed and not imported:
        raise DiscoveryError.of(", ".join(modules), failed)
    passed: list[DiscoveryError] = []
    specs = collect(*imported, passed_over=passed)
    project = project_of(imported[0]) if imported else CozyProject()
    said = [problem.message for problem in (*failed, *passed)] + list(project.warnings)
    keys = [key for spec in specs if spec.earlier is not None for key in deployment_keys(spec.earlier.injections)]
    if missing := unlisted(keys, project.models):
        named = ", ".join(f"`{key}`" for key in missing)
        said.append(f"{named}: no key of `[tool.cozy.models]`, taken for the id of a model")
    for warning in said:
        print(f"warning: {warning}", file=sys.stderr)
    newer = manifest([spec for spec in specs if spec.earlier is None or spec.shape == "websocket"])
    return {**newer, "functions": [*newer["functions"], *entries(specs)], **of_project(project)}
