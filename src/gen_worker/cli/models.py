"""`gen-worker models`: the models of a supervisor's functions, where they are, and what an operator wants of them."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

import click
import msgspec

from gen_worker.cli.command import Command, Group
from gen_worker.cli.completing import complete_bound_model, complete_device
from gen_worker.cli.devices import named, no_device
from gen_worker.cli.failure import CANCELED, MEANINGS, NOT_FOUND, OK, UNREACHABLE, USAGE, USER_CODE, Failure, nearest
from gen_worker.cli.supervisors import connected, socket_option
from gen_worker.cli.table import WIDTH, duration, room, size, table
from gen_worker.rundir import SupervisorUnreachable
from gen_worker.terminal import printable
from gen_worker.wire.status import HostModelStatus, Status

if TYPE_CHECKING:
    from gen_worker.client import Client
    from gen_worker.wire.control import Modeled

Operation: TypeAlias = Literal["load", "unload", "pin", "unpin"]

_HELP = """Look after the models of a supervisor's functions: where they are, and where they shall be.

REF is written as a function binds it, or its last part where only one model has that. What is pinned is let go of for
no other model, as long as the supervisor lives; it is unloaded by nobody, and a new child loads it again before a job
asks for it.

\b
gen-worker models ls
gen-worker models load acme/tiny-sdxl cuda:1
gen-worker models pin tiny-sdxl
gen-worker models unload acme/other --yes"""


class _Command(Command):
    meanings = {  # noqa: RUF012 - nobody changes it
        **MEANINGS,
        USER_CODE: "it was not done",
        NOT_FOUND: "no such model or device",
        CANCELED: "Ctrl-C, or a no",
    }


@click.group("models", cls=Group, help=_HELP)
def command() -> None:
    """Look after the models of a supervisor's functions."""


_CODES = (OK, USER_CODE, USAGE, UNREACHABLE, NOT_FOUND, CANCELED)
_ref_argument = click.argument("ref", shell_complete=complete_bound_model)
_device_argument = click.argument("device", required=False, shell_complete=complete_device)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print a document.")


# --- ls ---------------------------------------------------------------------------------------------------------------


@command.command("ls", cls=_Command, codes=(OK, USAGE, UNREACHABLE), help="List the models that functions need.")
@_json_option
@socket_option
def ls(as_json: bool, socket_: str | None) -> int:
    """List the models that functions need."""
    with connected(socket_, "gen-worker models") as client:
        status = client.list()
    click.echo(msgspec.json.encode(document(status)) if as_json else describe(status, room()))
    return OK


def document(status: Status) -> dict[str, Any]:
    """Return the models as a document: what the status says of each, and the devices that hold it."""
    return {"models": [{**msgspec.to_builtins(each), "devices": _held(status, each)} for each in status.models]}


def _held(status: Status, model: HostModelStatus) -> list[dict[str, Any]]:
    return [
        {"device": device.name, "tier": kept.tier, "bytes": kept.bytes, "rung": kept.rung, "instance": kept.instance}
        for device in status.gpus
        for kept in device.models
        if kept.ref == model.ref
    ]


def describe(status: Status, width: int = WIDTH) -> str:
    """Return the models as a table; what failed is told below it."""
    if not status.models:
        return "no function here needs a model"
    rows = [
        (
            model.ref,
            model.state,
            size(model.bytes),
            ", ".join(dict.fromkeys(each["device"] for each in _held(status, model))) or "-",
            ", ".join(model.pinned) or "-",
            "-" if model.used_s is None else f"{duration(model.used_s)} ago",
            ", ".join(model.functions) or "-",
        )
        for model in status.models
    ]
    heads = ("MODEL", "STATE", "SIZE", "DEVICE", "PINNED", "USED", "FUNCTIONS")
    failed = [f"`{model.ref}`: {model.error}" for model in status.models if model.error]
    elastic = ("MODEL", "DEVICE", "PINNED", "FUNCTIONS")
    return "\n\n".join([table(heads, rows, elastic=elastic, width=width), *failed])


# --- load, unload, pin, unpin -----------------------------------------------------------------------------------------


@command.command(
    "load",
    cls=_Command,
    codes=_CODES,
    help="Download a model if it is not here, and set up what needs it: on DEVICE, else on the one with most room. "
    "Waits until that is done; the jobs of the device go on meanwhile.",
)
@_ref_argument
@_device_argument
@_json_option
@socket_option
def load(ref: str, device: str | None, as_json: bool, socket_: str | None) -> int:
    """Have a model set up on a device."""
    return _operate("load", ref, device, as_json, socket_)


@command.command(
    "unload",
    cls=_Command,
    codes=_CODES,
    help="Have DEVICE, else every one, let go of a model. What a job runs on goes when that has ended; a job that "
    "needs it later brings it back.",
)
@_ref_argument
@_device_argument
@click.option("-y", "--yes", is_flag=True, help="Do not ask, where several devices have it.")
@_json_option
@socket_option
def unload(ref: str, device: str | None, yes: bool, as_json: bool, socket_: str | None) -> int:
    """Have a model gone from a device."""
    return _operate("unload", ref, device, as_json, socket_, yes=yes)


@command.command(
    "pin",
    cls=_Command,
    codes=_CODES,
    help="Let go of a model for no other: on DEVICE, else on every one that may have it. Loads nothing.",
)
@_ref_argument
@_device_argument
@_json_option
@socket_option
def pin(ref: str, device: str | None, as_json: bool, socket_: str | None) -> int:
    """Keep a model whatever comes next."""
    return _operate("pin", ref, device, as_json, socket_)


@command.command("unpin", cls=_Command, codes=_CODES, help="Take a pin back: from DEVICE, else from every one.")
@_ref_argument
@_device_argument
@_json_option
@socket_option
def unpin(ref: str, device: str | None, as_json: bool, socket_: str | None) -> int:
    """Keep a model no longer than others."""
    return _operate("unpin", ref, device, as_json, socket_)


def _operate(
    operation: Operation, ref: str, device: str | None, as_json: bool, socket_: str | None, *, yes: bool = True
) -> int:
    """Have the supervisor do something with a model, and say how that went."""
    with connected(socket_, f"gen-worker models {operation}") as client:
        status = client.list()
        name = "" if device is None else _device(status, device)
        if not yes and not name:
            _ask(status, ref)
        with _progress(client, ref, name, told=operation == "load" and not as_json):
            try:
                answer = client.model(operation, ref, name)
            except KeyboardInterrupt:
                sys.stderr.write(f"no longer waiting for it; the {operation} goes on\n")
                raise
        if answer.outcome != "done":
            _refuse(answer, name, client.list())
    if as_json:
        told = {"operation": operation, "ref": ref, "devices": answer.devices, "seconds": round(answer.seconds, 3)}
        click.echo(msgspec.json.encode(told))
    else:
        click.echo(_done(answer))
    return OK


def _device(status: Status, device: str) -> str:
    found = named(device, status.gpus)
    if found is None:
        raise no_device(device, [each.name for each in status.gpus])
    return found.name


def _not_found(text: str, wanted: str, known: Sequence[str]) -> Failure:
    near = nearest(wanted, [*known, *(each.rpartition("/")[2] for each in known)])
    listed = f"there are: {', '.join(f'`{each}`' for each in known)}" if known else "no function here needs a model"
    return Failure(text, f"did you mean `{near}`?" if near else listed, code=NOT_FOUND)


def _ask(status: Status, ref: str) -> None:
    """Go on with a model that several devices have only when a person says so."""
    refs = {model.ref for model in status.models if names(model, ref)}
    holding = [device.name for device in status.gpus if any(kept.ref in refs for kept in device.models)]
    if len(holding) < 2:
        return
    if not sys.stdin.isatty():
        text = f"`{ref}` is on {len(holding)} devices, and nobody can be asked whether it shall go from all"
        raise Failure(text, "run it again with `--yes`, or name a device")
    click.confirm(f"unload `{ref}` from {', '.join(holding)}?", abort=True, err=True)


def names(model: HostModelStatus, ref: str) -> bool:
    """Whether a person may mean a model by a ref: with or without its provider, or by the last part of its name."""
    bare = ref.partition(":")[2] if ":" in ref.partition("/")[0] else ref
    return bare in (model.ref, model.ref.rpartition("/")[2].partition("@")[0].partition("#")[0])


def _done(answer: "Modeled") -> str:
    ref, where = answer.ref, ", ".join(f"`{each}`" for each in answer.devices)
    match answer.operation:
        case "load":
            return f"`{ref}` is loaded on {where} after {duration(answer.seconds)}"
        case "unload":
            return f"`{ref}` is unloaded from {where}" if where else f"no device had `{ref}`"
        case "pin":
            return f"`{ref}` is pinned on {where}"
        case "unpin":
            return f"`{ref}` is pinned no longer on {where}" if where else f"`{ref}` was not pinned"


def _refuse(answer: "Modeled", device: str, status: Status) -> NoReturn:
    if answer.outcome == "not_found":
        raise _not_found(answer.message, answer.ref, answer.candidates)
    hint = pin_hint(answer, device, status) or "`gen-worker models ls` shows what is where; the log says more"
    raise Failure(answer.message, hint, code=USER_CODE)


def pin_hint(answer: "Modeled", device: str, status: Status) -> str:
    """Return which pin is in the way of what was asked for on a device, or on any; empty where none is."""
    unloads = answer.operation == "unload"
    if not unloads and "insufficient_vram" not in answer.message:
        return ""
    for model in status.models:
        held = [each for each in model.pinned if device in ("", each)]
        if held and names(model, answer.ref) == unloads:
            pin = f"{model.ref} {held[0]}" if len(held) == 1 else model.ref
            return (
                f"`gen-worker models unpin {pin}` first" if unloads else f"`gen-worker models unpin {pin}` lets it go"
            )
    return ""


# --- how far it is ----------------------------------------------------------------------------------------------------


@contextmanager
def _progress(client: "Client", ref: str, device: str, *, told: bool) -> Iterator[None]:
    """Say on stderr how far a model is, inside the block."""
    if not told:
        yield
        return
    import threading

    over = threading.Event()

    def follow() -> None:
        said = ""
        with suppress(SupervisorUnreachable):  # whoever waits for the answer says so
            for told in client.watch(1.0, jobs=0):
                if over.is_set():
                    return
                line = progress(msgspec.json.decode(told, type=Status), ref, device)
                if line and line != said:
                    said = line
                    sys.stderr.write(f"{printable(line)}\n")
                    sys.stderr.flush()

    threading.Thread(target=follow, name="gen-worker-progress", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def progress(status: Status, ref: str, device: str) -> str:
    """Return how far a model is on its way, in tenths; empty when nothing is known of it."""
    refs = {model.ref for model in status.models if names(model, ref)}
    for each in status.downloads:
        if each.ref in refs:
            share = f" {each.bytes_done * 10 // each.bytes_total}0% of" if each.bytes_total else ""
            return f"{each.state} `{each.ref}`{share}{f' {size(each.bytes_total)}' if each.bytes_total else ''}"
    loading = [each for each in status.gpus if each.loading is not None and device in ("", each.name)]
    if len(loading) != 1:
        return ""
    (at,) = loading
    share = f" {(at.loading_bytes or 0) * 10 // at.loading_total}0%" if at.loading_total else ""
    return f"setting up `{at.loading}` on {at.name}{share}"
