"""The document that `python -m gen_worker.discover` prints of a project with earlier functions.

Pure: takes specs, returns documents.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from gen_worker.discovery.function_spec import FunctionSpec
from gen_worker.discovery.schemas import digest, schema_of
from gen_worker.earlier.injection import Injection, ModelRefSource, type_qualname
from gen_worker.earlier.project import CozyProject
from gen_worker.wire.survey import SurveyedInjection


def surveyed_injections(injections: Iterable[Injection]) -> list[SurveyedInjection]:
    """Return what dispatch is told of the models of a function."""
    return [
        SurveyedInjection(each.param, type_qualname(each.type), each.model_ref.source.value, each.model_ref.key)
        for each in injections
    ]


def deployment_keys(injections: Iterable[Injection]) -> list[str]:
    """Return the keys that a function looks its models up by."""
    keys = [each.model_ref.key for each in injections if each.model_ref.source is ModelRefSource.DEPLOYMENT]
    return sorted(set(keys))


def entries(specs: Sequence[FunctionSpec]) -> list[dict[str, Any]]:
    """Return an entry for each earlier function; realtime ones have none."""
    named = [spec for spec in specs if spec.earlier is not None and spec.shape != "websocket"]
    return [_entry(spec) for spec in sorted(named, key=lambda spec: (spec.declared_module, spec.python_name))]


def _entry(spec: FunctionSpec) -> dict[str, Any]:
    assert spec.earlier is not None
    input_schema, output_schema = schema_of(spec.payload_type), schema_of(spec.output_type)
    streams = spec.shape in ("generator", "async_generator")
    limit = spec.earlier.max_concurrency
    entry: dict[str, Any] = {
        "name": spec.python_name,
        "module": spec.declared_module,
        "resources": {} if limit is None else {"max_concurrency": limit},
        "payload_type": type_qualname(spec.payload_type),
        "payload_schema_sha256": digest(input_schema),
        "input_schema": input_schema,
        "output_mode": "incremental" if streams else "single",
        "output_type": type_qualname(spec.output_type),
        "output_schema_sha256": digest(output_schema),
        "output_schema": output_schema,
        "incremental_output": streams,
        "injection_json": [_injected(each) for each in spec.earlier.injections],
        "required_models": deployment_keys(spec.earlier.injections),
    }
    if streams:
        entry |= {
            "delta_type": entry["output_type"],
            "delta_schema_sha256": entry["output_schema_sha256"],
            "delta_output_schema": output_schema,
        }
    return entry


def _injected(injection: Injection) -> dict[str, Any]:
    mark = injection.model_ref
    return {
        "param": injection.param,
        "type": type_qualname(injection.type),
        "model_ref": {"source": mark.source.value, "key": mark.key},
    }


def of_project(project: CozyProject) -> dict[str, Any]:
    """Return what the document says of the project itself, without what the project does not say."""
    told: dict[str, Any] = {
        "deployment": project.deployment,
        "build": dict(project.build),
        "models": dict(project.models),
        "resources": dict(project.resources),
    }
    return {name: value for name, value in told.items() if value}
