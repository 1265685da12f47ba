"""What could come next on a command line: functions, fields, files and requests.

Asks the file beside a server's socket, the disk or a supervisor, and never imports the author's module.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from gen_worker.cli.failure import Failure
from gen_worker.cli.ndjson import address_of
from gen_worker.cli.schema import Place
from gen_worker.cli.servers import described, field_names, functions_in, served_here, sidecar
from gen_worker.rundir import DEFAULT_SOCKET

if TYPE_CHECKING:
    from gen_worker.client import Client

_ANSWER_S = 0.5  # of a supervisor: somebody waits at the keyboard
OPEN = "open"  # the kind of a candidate that something has to follow: no space comes after it


def _functions(ctx: click.Context) -> list[dict[str, Any]]:
    try:
        return functions_in(sidecar(address_of(ctx.params.get("socket_") or DEFAULT_SOCKET)))
    except Failure:
        return []


def complete_function(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the functions of the server that the command line means."""
    return _items(name for name in _names(_functions(ctx)) if name.startswith(begun))


def complete_method(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the functions of the server at the default socket, which most often serves the project here."""
    return _items(name for name in _names(served_here()) if name.startswith(begun))


def complete_fields(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the fields of the function that `invoke` names, and files after `@`."""
    return _items(fields(_known(ctx.params.get("function"), _functions(ctx)), begun))


def complete_run_fields(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the fields of the function that `run` means, as far as a server here tells, and files after `@`."""
    functions = served_here()
    name = ctx.params.get("method") or (functions[0].get("name") if len(functions) == 1 else None)
    return _items(fields(_known(name, functions), begun))


def complete_address(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the sockets here."""
    return _items(files(begun, lambda path: path.is_socket()))


def complete_path(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the files and folders here."""
    return _items(files(begun))


def complete_module(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the modules of this folder and of its `src`, and those of the packages there."""
    return _items(name for root in (Path(), Path("src")) for name in modules(root, begun))


def complete_place(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return what children can be served from here: the GPUs that the driver shows, and CPU slots."""
    return _begun_so(["auto", *map(str, _gpus()), "cpu", "cpu:2"], begun)


def complete_one_place(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return what one child can run on here."""
    return _begun_so(["auto", *map(str, _gpus()), "cpu"], begun)


def complete_torch_device(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return what torch may call a device here."""
    return _begun_so(["cpu", "cuda", *(f"cuda:{number}" for number in _gpus())], begun)


def _gpus() -> list[int]:
    return sorted(int(path.name[6:]) for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit())


def _begun_so(words: Iterable[str], begun: str) -> list[CompletionItem]:
    return _items(word for word in words if word.startswith(begun))


def complete_ref(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return where models come from, and the models of the server here."""
    from gen_worker.models.refs import PREFIXES

    prefix_of = {provider: prefix for prefix, provider in PREFIXES.items()}
    bindings = [binding for function in served_here() for binding in (function.get("models") or {}).values()]
    known = {f"{prefix_of.get(each.get('provider'), '')}{each.get('ref')}" for each in bindings}
    refs = [CompletionItem(each) for each in sorted(known) if each.startswith(begun) and ":" in begun]
    return refs + [CompletionItem(each, type=OPEN) for each in PREFIXES if each.startswith(begun)]


def complete_request(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the requests of the supervisor that the command line means."""
    return _asked(ctx, begun, lambda client: [job.id for job in client.list().jobs])


def complete_device(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the devices of the supervisor that the command line means."""
    return _asked(ctx, begun, lambda client: [device.name for device in client.list().gpus])


def complete_target(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the devices and the requests of the supervisor that the command line means."""

    def names(client: "Client") -> list[str]:
        status = client.list()
        return [*(device.name for device in status.gpus), *(job.id for job in status.jobs)]

    return _asked(ctx, begun, names)


def complete_served(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the functions of the supervisor that the command line means."""
    return _asked(ctx, begun, lambda client: [function.name for function in client.list().functions])


def complete_bound_model(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the models of the supervisor that the command line means."""
    return _asked(ctx, begun, lambda client: [model.ref for model in client.list().models])


def complete_charged(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the functions whose payloads are charged at the supervisor that the command line means."""
    return _asked(ctx, begun, lambda client: [charge.function for charge in client.quarantined().charges])


def _asked(ctx: click.Context, begun: str, names: "Callable[[Client], list[str]]") -> list[CompletionItem]:
    """Return what the supervisor that the command line means knows; nothing where it cannot be asked."""
    from gen_worker.cli.supervisors import connected

    try:
        with connected(ctx.params.get("socket_"), "gen-worker completion", _ANSWER_S) as client:
            return _items(name for name in dict.fromkeys(names(client)) if name.startswith(begun))
    except Failure:
        return []


def complete_postmortem(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the post-mortems of the run directory, the latest first."""
    from gen_worker.cli.settings import read_settings
    from gen_worker.postmortem import PostMortemError, folder_in, names

    try:
        found = names(folder_in(read_settings().run_dir))
    except (Failure, PostMortemError):
        return []
    return _items(name for name in ["latest", *reversed(found)] if name.startswith(begun))


def complete_model(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the models on this machine's disk, with or without their providers, as the word begins."""
    from gen_worker.cli.models_here import models_here

    try:
        names = models_here()
    except Failure:
        return []
    bare = [name.partition(":")[2] for name in names] if begun else []
    return _items(name for name in [*names, *bare] if name.startswith(begun))


def _names(functions: list[dict[str, Any]]) -> list[str]:
    return [str(each.get("name")) for each in functions]


def _known(name: object, functions: list[dict[str, Any]]) -> dict[str, Any]:
    try:
        return described(str(name), functions) if name else {}
    except Failure:
        return {}


def fields(function: dict[str, Any], begun: str) -> list[str]:
    """Return how a word that fills a field of the function could go on; a file's name after `field@` and `@`."""
    field, at, path = begun.partition("@")
    if at and "=" not in field:
        return [f"{field}@{each}" for each in files(path)]
    words = [f"{name}{marker(place)}" for name, place in field_names(function).items()]
    return [word for word in words if word.startswith(begun)]


def marker(place: Place) -> str:
    """Return the marker that most often follows the name of a field."""
    if place.is_asset() or place.is_bytes():
        return "@"
    return ":=" if place.kinds() - {"null"} <= {"array", "object"} else "="


def files(begun: str, wanted: Callable[[Path], bool] = lambda _path: True) -> list[str]:
    """Return the paths that begin so, folders with a `/` at their end."""
    folder, _, start = begun.rpartition("/")
    place = Path(f"{folder}/") if "/" in begun else Path()
    prefix = begun[: len(begun) - len(start)]
    found = []
    try:
        entries = sorted(os.scandir(place), key=lambda entry: entry.name)
    except OSError:
        return []
    for entry in entries:
        if entry.name.startswith(start) and (start.startswith(".") or not entry.name.startswith(".")):
            if entry.is_dir():
                found.append(f"{prefix}{entry.name}/")
            elif wanted(Path(entry.path)):
                found.append(f"{prefix}{entry.name}")
    return found


def modules(root: Path, begun: str) -> list[str]:
    """Return the names of modules under `root` that begin so, each package with what it holds."""
    package, dot, start = begun.rpartition(".")
    names = [name for name in _modules_in(root.joinpath(*package.split("."))) if name.startswith(start)]
    found = []
    for name in names:
        whole = f"{package}{dot}{name}"
        found += [whole, *(f"{whole}.{each}" for each in _modules_in(root.joinpath(*whole.split("."))))]
    return found


def _modules_in(folder: Path) -> list[str]:
    return sorted(
        path.stem
        for path in folder.glob("*")
        if path.stem.isidentifier()
        and path.stem not in ("__init__", "conftest")
        and (path.suffix == ".py" or (path / "__init__.py").is_file())
    )


def _items(words: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(word, type=OPEN if word.endswith(("=", "@", "/")) else "plain") for word in words]
