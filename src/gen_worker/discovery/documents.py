"""What programs read about a project's functions: the description, the manifest, the survey.

Pure: takes specs, returns documents.
"""

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, TypeAlias

import msgspec

from gen_worker.api.bindings import Binding, slots_of
from gen_worker.api.resources import Resources
from gen_worker.discovery.function_spec import FunctionSpec
from gen_worker.discovery.marks import expected_outputs, moderation
from gen_worker.discovery.schemas import digest, inlined, members, schema_of
from gen_worker.earlier.manifest import surveyed_injections
from gen_worker.wire.survey import Survey, SurveyedFunction

Document: TypeAlias = dict[str, Any]

DESCRIPTION_PROTOCOL = 1
CAPABILITIES = ("describe", "list_functions", "prefetch", "cancel", "streaming", "tcp_listen", "serve_sidecar")

REPORTED_LIBRARIES = ("flashpack", "bitsandbytes", "torchao", "transformer_engine")
_HEAVY = ("torch", "diffusers", "transformers", "safetensors", "accelerate", "numpy", "PIL")


# --- the description: what a person or a client may call ------------------------------------------------------------


def describe(specs: Sequence[FunctionSpec], main_module: str) -> Document:
    """Return the document of `gen-worker run --list`."""
    from gen_worker import __version__

    kinds = sorted({spec.kind for spec in specs})
    return {
        "protocol_version": DESCRIPTION_PROTOCOL,
        "gen_worker_version": __version__,
        "capabilities": list(CAPABILITIES),
        "endpoint": {
            "main_module": main_module,
            "kind": kinds[0] if len(kinds) == 1 else kinds,
            "classes": sorted({spec.class_name for spec in specs if spec.class_name}),
        },
        "functions": [_described(spec) for spec in sorted(specs, key=lambda spec: spec.name)],
    }


def _described(spec: FunctionSpec) -> Document:
    return {
        "name": spec.name,
        "class": spec.class_name or None,
        "method": spec.python_name if spec.owner else None,
        "kind": spec.kind,
        "is_generator": _streams(spec),
        "input_schema": inlined(schema_of(spec.payload_type)),
        "output": _type_name(spec.output_type),
        "output_schema": inlined(schema_of(spec.output_type)),
        "models": {slot: _described_binding(binding) for slot, binding in spec.bindings.items()},
        **_batch(spec),
    }


def _batch(spec: FunctionSpec) -> Document:
    return {} if spec.batch is None else {"batch": msgspec.structs.asdict(spec.batch)}


def _described_binding(binding: Binding) -> Document:
    return {"type": type(binding).__name__, "provider": binding.provider, **_binding_fields(binding)}


def _binding_fields(binding: Binding) -> Document:
    """Return the ref and what else was said; a Hub's tag always."""
    optional = msgspec.structs.asdict(binding)
    always = {name: optional.pop(name) for name in ("ref", "tag") if name in optional}
    optional["allow_override"] = optional.pop("overrides")
    given = {name: value for name, value in optional.items() if value}
    return always | {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


# --- the manifest: what the platform routes and validates by --------------------------------------------------------


def manifest(specs: Sequence[FunctionSpec]) -> Document:
    """Return the document of `python -m gen_worker.discovery`; it holds no nulls at any depth, as TOML has none.

    Realtime functions have no entry; the modules that have such are in `realtime_modules`.
    """
    ordered = sorted(specs, key=lambda spec: (spec.declared_module, spec.function.__qualname__, spec.name))
    realtime = sorted({spec.declared_module for spec in specs if spec.shape == "websocket"})
    functions = [_manifest_entry(spec) for spec in ordered if spec.shape != "websocket"]
    return {"functions": functions} | ({"realtime_modules": realtime} if realtime else {})


def _manifest_entry(spec: FunctionSpec) -> Document:
    input_schema = _without_nulls(schema_of(spec.payload_type))
    output_schema = _without_nulls(schema_of(spec.output_type))
    entry: Document = {
        "name": spec.name,
        "python_name": spec.python_name,
        "module": spec.module,
        "declared_module": spec.declared_module,
        "class_name": spec.class_name,
        "kind": spec.kind,
        "runtime": spec.runtime,
        "resources": _resources(spec.resources),
        "bindings": {slot: _bound(slot, binding) for slot, binding in spec.bindings.items()},
        "payload_type": _located(spec.payload_type),
        "output_type": _located(spec.output_type),
        "payload_schema_sha256": digest(input_schema),
        "output_schema_sha256": digest(output_schema),
        "input_schema": input_schema,
        "output_schema": output_schema,
        "moderation": moderation(spec.payload_type),
        "expected_outputs": expected_outputs(spec.output_type, spec.payload_type),
        "output_mode": "incremental" if _streams(spec) else "single",
        "incremental_output": _streams(spec),
        "is_async": spec.shape in ("async", "async_generator"),
        **_batch(spec),
    }
    if _streams(spec):
        entry |= {
            "delta_type": entry["output_type"],
            "delta_schema_sha256": entry["output_schema_sha256"],
            "delta_output_schema": output_schema,
        }
    return {key: value for key, value in entry.items() if value is not None}


def _without_nulls(value: Any) -> Any:
    """Return a schema without what JSON or TOML cannot say: nulls, and numbers that are infinite or none."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if not _is_null(each)}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value if not _is_null(each)]
    return value


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _resources(resources: Resources) -> Document:
    fields = msgspec.structs.asdict(resources)
    if resources.gpu_count == 1:
        del fields["gpu_count"]
    return {name: list(value) if name == "libraries" else value for name, value in fields.items() if value}


def _bound(slot: str, binding: Binding) -> Document:
    return {"kind": "fixed", "provider": binding.provider, "slot_name": slot, **_binding_fields(binding)}


def _located(type_: Any) -> Document:
    """Return where a type is defined; of a union, where its first member is, and the names of all."""
    return {"module": members(type_)[0].__module__, "qualname": _type_name(type_)}


def _type_name(type_: Any) -> str:
    return " | ".join(member.__qualname__ for member in members(type_))


def _streams(spec: FunctionSpec) -> bool:
    return spec.shape in ("generator", "async_generator")


# --- the survey: what the supervisor dispatches by ------------------------------------------------------------------


def survey(specs: Sequence[FunctionSpec], *, module: str, paths: Sequence[str], loaded: Mapping[str, object]) -> Survey:
    """Return what a supervisor needs to know; `loaded` is `sys.modules` after the author's module was imported."""
    return Survey(
        module=module,
        paths=list(paths),
        functions=[_surveyed(spec) for spec in specs],
        description=msgspec.Raw(msgspec.json.encode(describe(specs, module))),
        preload=heavy_modules(name for name, value in loaded.items() if value is not None),
        libraries=[name for name in REPORTED_LIBRARIES if is_importable(name)],
    )


def _surveyed(spec: FunctionSpec) -> SurveyedFunction:
    return SurveyedFunction(
        name=spec.name,
        python_name=spec.python_name,
        class_name=spec.class_name,
        instance=spec.instance,
        shape=spec.shape,
        lane=spec.lane,
        gpu=spec.resources.gpu,
        vram_gb=spec.resources.vram_gb,
        slots=slots_of(spec.bindings),
        compute_capability=spec.resources.compute_capability,
        missing=_missing(spec),
        gpu_count=spec.resources.gpu_count,
        batch=0 if spec.batch is None else spec.batch.max_size,
        produces=spec.kind != "inference",
        injections=[] if spec.earlier is None else surveyed_injections(spec.earlier.injections),
        model_keys={} if spec.earlier is None else dict(spec.earlier.models),
        max_concurrency=0 if spec.earlier is None else spec.earlier.max_concurrency or 0,
        earlier=spec.earlier is not None,
    )


def _missing(spec: FunctionSpec) -> list[str]:
    missing = [name for name in spec.resources.libraries if not is_importable(name)]
    if spec.runtime is not None:  # told before its model is fetched, not after
        from gen_worker.runtimes.server import program

        missing += [spec.runtime] if program(spec.runtime, os.environ) is None else []
    return missing


def is_importable(library: str) -> bool:
    """Tell whether there is a module of this name, a dash counting as an underscore, without importing it.

    Of a dotted name the packages around it are imported.
    """
    name = library.replace("-", "_")
    if sys.modules.get(name) is not None:
        return True
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # no package around it, or a name that is none
        return False


def heavy_modules(names: Iterable[str]) -> list[str]:
    """Return, of the loaded modules, those that are worth importing once for all children, in their order.

    The heavy packages themselves, and the modules that define pipelines and models: `import diffusers` is lazy and
    loads neither.
    """
    return [name for name in names if name in _HEAVY or _holds_classes(name)]


def _holds_classes(name: str) -> bool:
    top, last = name.partition(".")[0], name.rpartition(".")[2]
    return top in ("diffusers", "transformers") and last.startswith(("pipeline_", "modeling_"))
