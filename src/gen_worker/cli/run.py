"""`gen-worker run`: one function, once, in this process."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

import click
import msgspec

from gen_worker.cli.command import Command
from gen_worker.cli.failure import CANCELED, NO_MODEL, OK, USAGE, USER_CODE, Failure, say_error
from gen_worker.cli.payload import parse_payload, payload_in, payload_of
from gen_worker.cli.project import Project, find_project, project_options, show_stack, survey_of
from gen_worker.settings import Settings, SettingsError

if TYPE_CHECKING:
    from gen_worker.api.context import CancelFlag, RequestContext
    from gen_worker.discovery.specs import FunctionSpec
    from gen_worker_child.executor import Executor

PRESS_AGAIN_S = 2.0  # a second Ctrl-C in this time ends the process at once

_HELP = """Run one function once, in this process, and print its output.

FIELD=VALUE fills one field of the payload: `steps=20`, `text@notes.txt` (the content of a file), `sizes:=[1,2]`
(JSON), `style.name=oil`. A word without a field name fills the first text field. The only word can be the whole
payload: JSON, `@payload.json`, or `-` for stdin.

\b
gen-worker run "a cat in the snow" steps=20
gen-worker run --method upscale image@cat.png
gen-worker run --list"""


@click.command("run", cls=Command, help=_HELP, codes=(OK, USER_CODE, USAGE, NO_MODEL, CANCELED))
@click.argument("fields", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option("--class", "class_name", metavar="NAME", help="Only functions of this class.")
@click.option("--method", metavar="NAME", help="Only the function with this name.")
@click.option("--payload", metavar="JSON", help="The payload that the fields are put into.")
@click.option("--payload-file", metavar="PATH", help="The same from a file; `-` is stdin.")
@project_options
@click.option("--offline", is_flag=True, help="Use only what local caches hold.")
@click.option("--device", metavar="DEVICE", help="What `ctx.device` is: `cpu`, `cuda` or `cuda:N`.")
@click.option("--pretty", is_flag=True, help="Indent the JSON.")
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
    pretty: bool,
    wants_list: bool,
) -> int:
    """Run one function once, in this process."""
    if payload is not None and payload_file is not None:
        raise Failure("`--payload` and `--payload-file` together", "give one of them")
    start = _start(payload, payload_file)
    settings = _settings(device, offline)
    project = find_project(config, module)
    if wants_list:
        return _print_list(project, pretty)
    from gen_worker.discovery.stdout import reserved_stdout

    with reserved_stdout() as stdout:
        output = _Output(stdout, pretty)
        specs, main = _import(project)
        from gen_worker.cli.selection import select

        spec = select(specs, module=main.__name__, class_name=class_name, method=method)
        return _run(spec, specs, _encoded(spec, fields, start), settings, output)


def _settings(device: str | None, offline: bool) -> Settings:
    """Read the settings, then leave in the environment only what the author's code may see, as in a child."""
    from gen_worker.environment import passes

    environment = dict(os.environ)
    try:
        settings = Settings.load({"local_device": device}, env=environment)
    except SettingsError as error:
        raise Failure(str(error).replace("`local_device` must", "`--device` must")) from None
    for name in environment:
        if not passes(name):
            os.environ.pop(name, None)
    if settings.local_device is not None:
        os.environ["GEN_WORKER_LOCAL_DEVICE"] = settings.local_device
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    return settings


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
    from gen_worker.discovery import DiscoveryError, collect, import_main

    try:
        main = import_main(project.module, project.paths)
        return collect(main), main
    except DiscoveryError as error:
        show_stack(error.stack)
        raise Failure(error.message, error.hint) from None


def _start(payload: str | None, payload_file: str | None) -> dict[str, Any] | None:
    if payload_file is not None:
        return payload_in(payload_file)
    return None if payload is None else parse_payload(payload, "--payload")


def _encoded(spec: "FunctionSpec", fields: Sequence[str], start: dict[str, Any] | None) -> bytes:
    from gen_worker.discovery.schemas import schema_of

    return msgspec.json.encode(payload_of(fields, schema_of(spec.payload_type), start=start))


def _run(
    spec: "FunctionSpec", specs: "Sequence[FunctionSpec]", body: bytes, settings: Settings, output: "_Output"
) -> int:
    from gen_worker.api.context import CancelFlag
    from gen_worker_child.executor import Executor

    executor = Executor(specs)
    try:
        payload = executor.decode(spec, body, "json")
    except msgspec.ValidationError as error:
        hint = "`gen-worker run --list` shows what it takes"
        raise Failure(f"`{spec.name}` does not take this payload: {error}", hint) from None
    _refuse_models(spec)
    _warn_without_gpu(spec, settings)
    cancel = CancelFlag()
    context = _context(spec, settings, cancel)
    try:
        if spec.instance and (failed := _set_up(executor, spec)):
            return failed
        with _cooperative_interrupt(executor, cancel):
            return _call(executor, spec, context, payload, output)
    finally:
        executor.shutdown(lambda error: _tell(error, "`shutdown()` failed"))


def _refuse_models(spec: "FunctionSpec") -> None:
    for slot, binding in spec.bindings.items():
        raise Failure(
            f"no resolver for `{binding.wire_ref}` ({binding.provider}), which `{spec.name}` needs as `{slot}`",
            "without a binding the function can load its own weights in `setup()`",
            code=NO_MODEL,
        )


def _warn_without_gpu(spec: "FunctionSpec", settings: Settings) -> None:
    here = any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))
    if spec.resources.gpu and settings.local_device is None and sys.platform == "linux" and not here:
        sys.stderr.write(f"warning: `{spec.name}` is made for a GPU and there is none: it runs on the CPU\n")


def _context(spec: "FunctionSpec", settings: Settings, cancel: "CancelFlag") -> "RequestContext":
    from gen_worker.api.producers import context_class
    from gen_worker.outputs import FolderSink

    return context_class(spec.kind)(
        request_id=f"local-{os.urandom(4).hex()}",
        owner=os.environ.get("USER") or "local-dev",
        emitter=_emit,
        sink=FolderSink(settings.local_output_dir),
        cancel=cancel,
    )


def _emit(event: dict[str, object]) -> None:
    sys.stderr.write(msgspec.json.encode(event, order="sorted").decode() + "\n")
    sys.stderr.flush()


def _set_up(executor: "Executor", spec: "FunctionSpec") -> int:
    try:
        executor.load(spec.instance)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - around the author's code
        _tell(error, f"`{spec.class_name}` cannot be set up")
        return USER_CODE
    return OK


def _call(
    executor: "Executor", spec: "FunctionSpec", context: "RequestContext", payload: msgspec.Struct, output: "_Output"
) -> int:
    yielded = 0

    def on_item(item: Any) -> None:
        nonlocal yielded
        output.write("yield", executor.encode(item, "json"))
        yielded += 1

    try:
        value = executor.run(spec, context, payload, on_item)
        streams = spec.shape in ("generator", "async_generator")
        output.write("result", executor.encode({"yielded": yielded} if streams else value, "json"))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - around the author's code
        if output.lost is not None:
            raise output.failure() from None
        return _failed(error)
    return OK


def _failed(error: BaseException) -> int:
    from gen_worker.api.errors import CanceledError, ValidationError, classify

    verdict = classify(error)
    _tell(error, verdict.message, stack=not isinstance(error, ValidationError | CanceledError))
    return {"canceled": CANCELED, "invalid": USAGE}.get(verdict.kind, USER_CODE)


def _tell(error: BaseException, message: str, *, stack: bool = True) -> None:
    from gen_worker.discovery import author_stack

    if stack:
        show_stack(author_stack(error))
    say_error(message)


@contextmanager
def _cooperative_interrupt(executor: "Executor", cancel: "CancelFlag") -> Iterator[None]:
    """Make the first Ctrl-C ask the job to end, and a second one soon after end the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = -PRESS_AGAIN_S

    def on_press(_signal: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        now = time.monotonic()
        if now - pressed < PRESS_AGAIN_S:
            os._exit(CANCELED)
        pressed = now
        cancel.set()
        executor.cancel()
        os.write(2, b"canceling; press Ctrl-C again to stop at once\n")

    before = signal.signal(signal.SIGINT, on_press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Output:
    """The real stdout, for results only: whatever the author's code prints goes to stderr."""

    def __init__(self, descriptor: int, pretty: bool) -> None:
        self.lost: OSError | None = None
        self._descriptor = descriptor
        self._pretty = pretty

    def failure(self) -> Exception:
        """Return what to raise because the results could not be written."""
        if self.lost is None or isinstance(self.lost, BrokenPipeError):
            return self.lost or BrokenPipeError()
        return Failure(f"the result cannot be written: {(self.lost.strerror or str(self.lost)).lower()}")

    def write(self, event: str, value: bytes) -> None:
        """Write one event; an error is kept in `lost`, so that it is not taken for the author's."""
        from gen_worker.discovery.stdout import write_all

        document = b'{"event":"%b","value":%b}' % (event.encode(), value)
        if self._pretty:
            document = msgspec.json.format(document, indent=2)
        try:
            write_all(self._descriptor, document + b"\n")
        except OSError as error:
            self.lost = error
            raise
