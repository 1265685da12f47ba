"""`gen-worker run`: one function, once, in this process."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import msgspec

from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_method, complete_path, complete_run_fields, complete_torch_device
from gen_worker.cli.events import Events, events_on_stderr, prints_beside
from gen_worker.cli.failure import CANCELED, NO_MODEL, OK, USAGE, USER_CODE, Failure, say, say_error
from gen_worker.cli.inputs import with_inputs
from gen_worker.cli.interrupts import announce, interrupts
from gen_worker.cli.loading import gpu_devices, has_gpu_device, open_models, slot_models
from gen_worker.cli.patience import told_when_long
from gen_worker.cli.payload import parse_payload, payload_in, payload_of
from gen_worker.cli.project import Project, find_project, project_options, show_stack, survey_of, where_raised
from gen_worker.cli.results import Results
from gen_worker.cli.selection import Wanted, select
from gen_worker.cli.settings import log_format_option, read_settings
from gen_worker.cli.watching import Watch, watch_on_stderr
from gen_worker.discovery.names import slugify_name
from gen_worker.models.errors import ModelError
from gen_worker.settings import Settings
from gen_worker.wire.survey import only_spoken_with

if TYPE_CHECKING:
    from gen_worker.api.context import CancelFlag, RequestContext
    from gen_worker.discovery.function_spec import FunctionSpec
    from gen_worker.fetch.config import FetchConfig
    from gen_worker.wire.messages import SlotModel
    from gen_worker_child.executor import Executor

_HELP = """Run one function once, in this process, and print its output.

FIELD=VALUE fills one field of the payload: `steps=20`, `text@notes.txt` (the content of a file), `sizes:=[1,2]`
(JSON), `style.name=oil`; `image@cat.png` passes the file itself to a field for one, and `image@-` stdin. A word without
a field name fills the first text field. The only word can be the whole payload: JSON, `@payload.json`, or `-` for
stdin.

Models of the function that are not on this machine are fetched first; `gen-worker prefetch` has them here before.

Ctrl-C asks the job to end; a second one ends the process at once. The endpoint's code runs in this process: code that
crashes or leaves it ends the command without a word. `--attach` runs it in a server that is up already.

\b
gen-worker run "a cat in the snow" steps=20
gen-worker run --method upscale image@cat.png
gen-worker run --attach --method upscale image@cat.png
gen-worker run --list"""


@click.command("run", cls=Command, help=_HELP, codes=(OK, USER_CODE, USAGE, NO_MODEL, CANCELED))
@click.argument("fields", nargs=-1, metavar="[FIELD=VALUE]...", shell_complete=complete_run_fields)
@click.option("--class", "class_name", metavar="NAME", help="Only functions of this class.")
@click.option("--method", metavar="NAME", shell_complete=complete_method, help="Only the function with this name.")
@click.option("--payload", metavar="JSON", help="The payload that the fields are put into.")
@click.option(
    "--payload-file", metavar="PATH", shell_complete=complete_path, help="The same from a file; `-` is stdin."
)
@project_options
@click.option("--offline", is_flag=True, help="Use only what local caches hold.")
@click.option(
    "--device",
    metavar="DEVICE",
    shell_complete=complete_torch_device,
    help="What `ctx.device` is: `cpu`, `cuda` or `cuda:N`.",
)
@click.option(
    "--source-path",
    metavar="DIR",
    shell_complete=complete_path,
    help="Of a producer: the folder that stands for its `source`.",
)
@click.option("--allow-publish", is_flag=True, help="Of a producer: publish for real, to the hub that is set.")
@click.option("--attach", is_flag=True, help="Run it in the `gen-worker serve` of this folder, which is warm.")
@click.option("--pretty", is_flag=True, help="Indent the JSON.")
@click.option("--verbose", is_flag=True, help="Tell the memory that it took at the end, as a terminal is told anyway.")
@log_format_option
@click.option("--list", "wants_list", is_flag=True, help="Print what the endpoint's functions are and take.")
def command(
    fields: tuple[str, ...],
    class_name: str | None,
    method: str | None,
    payload: str | None,
    payload_file: str | None,
    config: str | None,
    module: str | None,
    offline: bool,
    device: str | None,
    source_path: str | None,
    allow_publish: bool,
    attach: bool,
    pretty: bool,
    verbose: bool,
    log_format: str | None,
    wants_list: bool,
) -> int:
    """Run one function once, in this process."""
    if payload is not None and payload_file is not None:
        raise Failure("`--payload` and `--payload-file` together", "give one of them")
    start = _start(payload, payload_file)
    settings = read_settings(local_device=device, log_format=log_format)
    if attach and not wants_list:
        if device or offline or source_path or allow_publish:
            hint = "those are for a run in this process"
            raise Failure("`--attach` with `--device`, `--offline`, `--source-path` or `--allow-publish`", hint)
        from gen_worker.cli.attached import run_attached

        wanted = Wanted(_module_here(config, module), class_name, method)
        return run_attached(fields, start, wanted, settings, Results(pretty=pretty))
    fetching = _fetching(settings, offline)
    _leave_to_author(settings, offline)
    project = find_project(config, module)
    if wants_list:
        return _print_list(project, pretty)
    from gen_worker.discovery.stdout import reserved_stdout

    events = events_on_stderr(settings)
    watch = watch_on_stderr(events.form)
    with reserved_stdout() as stdout, prints_beside(events):
        specs, main = _import(project)
        with _function_as_word(fields, () if class_name or method else [spec.name for spec in specs]):
            spec = select(specs, Wanted(main.__name__, class_name, method))
            if spec.shape == "websocket":
                raise Failure(only_spoken_with(spec.name), "an orchestrator of the earlier wire opens them")
            source = _source(spec, source_path)
            body = _encoded(spec, fields, start, source)
        job = _Job(spec, specs, body, source, settings, fetching, allow_publish)
        return _run(job, _Shown(Results(stdout, pretty=pretty), events, watch, verbose or sys.stderr.isatty()))


def _module_here(config: str | None, module: str | None) -> str:
    try:
        return find_project(config, module).module
    except Failure:
        if config or module:
            raise
        return ""  # the server is asked, whatever is here


def _fetching(settings: Settings, offline: bool) -> "FetchConfig":
    """Return what models are fetched by, while the environment still says it."""
    from gen_worker.fetch.config import FetchConfig

    return FetchConfig.of(settings, offline=offline)


def _leave_to_author(settings: Settings, offline: bool) -> None:
    """Leave in the environment only what the author's code may see, as in a child."""
    from gen_worker.environment import passes

    for name in list(os.environ):
        if not passes(name):
            os.environ.pop(name, None)
    if settings.local_device is not None:
        os.environ["GEN_WORKER_LOCAL_DEVICE"] = settings.local_device
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"


# --- --list -----------------------------------------------------------------------------------------------------------


def _print_list(project: Project, pretty: bool) -> int:
    """Print the description document, made in a process of its own: importing runs the author's code."""
    loaded = sys.modules.get(project.module)
    if loaded is not None and getattr(loaded, "__file__", None) is None:  # made in memory: no other process has it
        from gen_worker.discovery import collect, describe

        document = msgspec.json.encode(describe(collect(loaded), project.module))
    else:
        document = bytes(survey_of(project).description)
    if pretty:
        document = msgspec.json.format(document, indent=2)
    click.echo(document)
    return OK


# --- one job ----------------------------------------------------------------------------------------------------------


def _import(project: Project) -> "tuple[list[FunctionSpec], ModuleType]":
    from gen_worker.discovery import DiscoveryError, collect
    from gen_worker.discovery.walk import import_modules

    skipped: list[DiscoveryError] = []
    try:
        with told_when_long(f"importing `{project.module}`"):
            modules = import_modules(project.module, project.paths)
        specs = collect(*modules, skipped=skipped, passed_over=skipped)
        for problem in skipped:
            say_error(f"skipped: {problem.message}", problem.hint)
        return specs, modules[0]
    except DiscoveryError as error:
        show_stack(error.stack)
        raise Failure(error.message, error.hint) from None


def _start(payload: str | None, payload_file: str | None) -> dict[str, Any] | None:
    if payload_file is not None:
        return payload_in(payload_file)
    return None if payload is None else parse_payload(payload, "--payload")


@contextmanager
def _function_as_word(words: Sequence[str], names: Sequence[str]) -> Iterator[None]:
    """Have a `Failure` of a line that begins with a function's name say how a function is named."""
    try:
        yield
    except Failure as failure:
        if not words or (slug := slugify_name(words[0])) not in names:
            raise
        raise Failure(str(failure), f"`run` takes the function as an option: `--method {slug}`") from None


def _source(spec: "FunctionSpec", source_path: str | None) -> Path | None:
    if source_path is None:
        return None
    if spec.kind == "inference":
        hint = "`@endpoint(kind=...)` makes a producer: `conversion`, `dataset` or `training`"
        raise Failure(f"`--source-path` is for producers, `{spec.name}` is of the kind `inference`", hint)
    folder = Path(source_path).resolve()
    if not folder.is_dir() or not folder.name:  # the name is what the source is called
        raise Failure(f"no folder `{source_path}`", "`--source-path` takes a folder with the files of the source")
    return folder


def _encoded(spec: "FunctionSpec", fields: Sequence[str], start: dict[str, Any] | None, source: Path | None) -> bytes:
    from gen_worker.discovery.schemas import schema_of

    payload = payload_of(fields, schema_of(spec.payload_type), start=start)
    if source is not None and "source" in spec.payload_type.__struct_fields__:
        payload.setdefault("source", {"ref": f"local/{source.name}"})
    return msgspec.json.encode(payload)


class _Job(NamedTuple):
    """What is run, and by which settings."""

    spec: "FunctionSpec"
    specs: "Sequence[FunctionSpec]"
    body: bytes
    source: Path | None
    settings: Settings
    fetching: "FetchConfig"
    publishes: bool


class _Shown(NamedTuple):
    """Where a job's results and events go."""

    results: Results
    events: Events
    watch: Watch
    memory: bool  # whether it is told what the job took


def _run(job: _Job, shown: _Shown) -> int:
    from gen_worker_child.executor import Executor

    spec = job.spec
    executor = Executor(job.specs, lambda: open_models(job.settings, shown.events, lambda: executor.current))
    try:
        payload = executor.decode(spec, job.body, "json")
        bindings = executor.models_of(spec, job.body, "json")
    except msgspec.ValidationError as error:
        hint = _advice(str(error), spec, job.body) or "`gen-worker run --list` shows what it takes"
        raise Failure(f"`{spec.name}` does not take this payload: {error}", hint) from None
    _look_for_gpus(spec, job.settings)
    _look_for_engine(spec)
    slots = {slot: binding.wanted for slot, binding in bindings.items()}
    inputs = with_inputs(payload, executor.inputs, job.settings, job.fetching)
    with inputs, slot_models(slots, job.fetching, shown.watch) as models:
        return _run_with(models, job, executor, payload, shown)


def _run_with(
    models: "list[SlotModel]", job: _Job, executor: "Executor", payload: msgspec.Struct, shown: _Shown
) -> int:
    from gen_worker.api.context import CancelFlag
    from gen_worker.cli import peak_memory

    spec, cancel = job.spec, CancelFlag()
    meter = peak_memory.Meter() if shown.memory else None
    context = _context(job, models, cancel, shown.events)
    try:
        if spec.instance and (failed := _set_up(executor, spec, models, shown.events)):
            return failed

        def ask() -> None:
            cancel.set()
            executor.cancel()
            announce("canceling; press Ctrl-C again to end at once", shown.events.erasing)

        with interrupts(ask, lambda: executor.leave(CANCELED)):
            status = _call(executor, job, context, payload, shown)
        if meter is not None:
            peak = meter.read(executor.instances.models_of(spec.instance))
            peak_memory.show(shown.events, spec.name, context.request_id, peak)
        return status
    finally:
        shown.events.hide()
        executor.shutdown(lambda error: _tell(error, "`shutdown()` failed"))


def _look_for_gpus(spec: "FunctionSpec", settings: Settings) -> None:
    """Say so where there is no GPU for a function that is made for one; raise `Failure` where there are too few."""
    count = spec.resources.gpu_count
    os.environ["GEN_WORKER_GPU_COUNT"] = str(count)
    if not spec.resources.gpu or settings.local_device is not None or sys.platform != "linux":
        return
    if not has_gpu_device():
        say("warning", f"`{spec.name}` is made for a GPU and there is none: it runs on the CPU")
    elif 0 < gpu_devices() < count:
        hint = "`--device cpu` runs it without, `--attach` on a server that has them, as of `serve --devices 0+1`"
        raise Failure(f"`{spec.name}` needs {count} GPUs, this machine has {gpu_devices()}", hint)


def _look_for_engine(spec: "FunctionSpec") -> None:
    """Raise `Failure` where the engine is not installed, before its model is fetched."""
    if spec.runtime is None:
        return
    from gen_worker.runtimes.server import not_there, program

    if program(spec.runtime, os.environ) is None:
        error = not_there(spec.runtime)
        raise Failure(error.message, error.hint, code=USER_CODE)


def _context(job: _Job, models: "Sequence[SlotModel]", cancel: "CancelFlag", events: Events) -> "RequestContext":
    from gen_worker.api.producers import context_class
    from gen_worker.outputs import FolderSink

    def emit(event: dict[str, Any]) -> None:
        value = dict(event["payload"])
        if "progress" in value:
            value["progress"] = min(1.0, max(0.0, value["progress"]))
        what = str(event["type"]).removeprefix("request.")
        events.show(job.spec.name, event["request_id"], what, value, event["timestamp"])

    request_id = f"local-{os.urandom(4).hex()}"
    own = {} if job.spec.kind == "inference" else _of_producer(job, request_id)
    return context_class(job.spec.kind)(
        request_id=request_id,
        owner=os.environ.get("USER") or "local-dev",
        emitter=emit,
        sink=FolderSink(job.settings.local_output_dir, job.settings.max_upload_bytes),
        cancel=cancel,
        models={model.slot: model.ref for model in models},
        **own,
    )


def _of_producer(job: _Job, request_id: str) -> dict[str, Any]:
    """Return what the context of a producer takes beside what every context takes."""
    from gen_worker.cli.destination import local_destination
    from gen_worker.cli.platform import LocalPlatform

    to = local_destination(job.settings, request_id, publishes=job.publishes)
    return {
        "platform": LocalPlatform(job.fetching, to),
        "publishes": job.publishes,
        "source_path": None if job.source is None else str(job.source),
        "hf_token": str(job.settings.hf_token),
    }


def _set_up(executor: "Executor", spec: "FunctionSpec", models: "Sequence[SlotModel]", events: Events) -> int:
    from gen_worker.capability import HardwareUnmetError
    from gen_worker.runtimes.server import ServerBootError

    try:
        executor.load(spec.instance, models)
    except ModelError as error:
        raise Failure(str(error), error.hint, code=NO_MODEL) from None
    except ServerBootError as error:  # what the server has printed was shown as it came
        raise Failure(error.message, error.hint, code=USER_CODE) from None
    except HardwareUnmetError as error:
        raise Failure(str(error), code=USER_CODE) from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - around the author's code
        _tell(error, f"`{spec.class_name or spec.name}` cannot be set up")
        return USER_CODE
    finally:
        events.hide()
    return OK


def _call(executor: "Executor", job: _Job, context: "RequestContext", payload: msgspec.Struct, shown: _Shown) -> int:
    spec = job.spec
    begun = _begun(context, payload)
    yielded = 0

    def on_item(item: Any) -> None:
        nonlocal yielded
        document = executor.encode(item, "json")
        shown.events.hide()
        shown.results.event("yield", document)
        yielded += 1

    try:
        with begun:
            value = executor.run(spec, context, payload, on_item)
        streams = spec.shape in ("generator", "async_generator")
        document = executor.encode({"yielded": yielded} if streams else value, "json")
        shown.events.hide()
        shown.results.event("result", document)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - around the author's code
        if shown.results.lost is not None:
            raise shown.results.failure() from None
        shown.events.hide()
        if (lost := executor.instances.engines.loss(0, spec.instance, error)) is not None:
            raise Failure(lost.message, "what it printed last stands above", code=USER_CODE) from None
        return _failed(error, job, asked=context.cancelled)
    return OK


def _advice(message: str, spec: "FunctionSpec", body: bytes) -> str:
    """Return what to write instead in a payload that an error is about, if that is known."""
    from gen_worker.cli.advice import advice
    from gen_worker.discovery.schemas import schema_of

    return advice(message, msgspec.json.decode(body), schema_of(spec.payload_type))


def _begun(context: "RequestContext", payload: msgspec.Struct) -> AbstractContextManager[None]:
    """Have a producer's source here; raise `Failure` where it cannot be had."""
    from gen_worker.api.errors import ArtifactTransferError, AuthError, CanceledError, ValidationError
    from gen_worker.api.producers import begin

    try:
        return begin(context, payload)
    except ValidationError as error:
        raise Failure(str(error)) from None
    except (ArtifactTransferError, AuthError) as error:
        hint = "`--source-path FOLDER` takes a folder of this machine as the source"
        raise Failure(f"the source cannot be had: {error}", hint, code=NO_MODEL) from None
    except CanceledError:
        raise Failure("canceled", code=CANCELED) from None


def _failed(error: BaseException, job: _Job, *, asked: bool) -> int:
    """Tell how the handler of a job ended; `asked` is whether it had been asked to."""
    from gen_worker.api.errors import CanceledError, ValidationError, classify

    verdict = classify(error)
    message = "canceled" if asked and verdict.kind == "canceled" else verdict.message
    hint = "" if verdict.kind == "canceled" else _advice(message, job.spec, job.body)
    if verdict.kind == "invalid":
        from gen_worker.discovery import author_stack

        say_error(message, hint or ("" if isinstance(error, ValidationError) else where_raised(author_stack(error))))
    else:
        _tell(error, message, hint, stack=not isinstance(error, CanceledError))
    return {"canceled": CANCELED, "invalid": USAGE}.get(verdict.kind, USER_CODE)


def _tell(error: BaseException, message: str, hint: str = "", *, stack: bool = True) -> None:
    from gen_worker.discovery import author_stack

    if stack:
        show_stack(author_stack(error))
    say_error(message, hint)
