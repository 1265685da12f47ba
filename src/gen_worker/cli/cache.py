"""`gen-worker cache`: the models on this machine's disk."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from gen_worker.cli.command import Command, Group
from gen_worker.cli.completing import complete_model, complete_path
from gen_worker.cli.failure import MEANINGS, NOT_FOUND, OK, USAGE, USER_CODE, Failure, nearest, say
from gen_worker.cli.models_here import PREFIXES, names_of, ref_of, store_here
from gen_worker.cli.settings import read_settings
from gen_worker.cli.table import duration, room, size, table

if TYPE_CHECKING:  # what moves models is imported when it is used
    from gen_worker.fetch.cache.store import Listed, Store
    from gen_worker.models.wanted import Wanted

_ALL = "-"  # of a repository's files those that every binding gets that says nothing of them
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZES = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_MEANINGS = {
    **MEANINGS,
    USER_CODE: "files were damaged",
    USAGE: "wrong usage, or it cannot be done",
    NOT_FOUND: "no such model on this machine",
}

_HELP = """Look after the models on this machine's disk.

Models are kept where `TENSORHUB_CACHE_DIR` says, those of Hugging Face in `hub` in it or in `HF_HOME`, and used by all
endpoints. Nothing that is in use is ever removed.

\b
gen-worker cache ls
gen-worker cache rm hf:acme/tiny-sdxl
gen-worker cache prune --older-than 7d
gen-worker cache verify
gen-worker cache compiled
gen-worker cache export hf:acme/tiny-sdxl -o tiny.tar
gen-worker cache import tiny.tar"""


class _Command(Command):
    meanings = _MEANINGS


@click.group("cache", cls=Group, help=_HELP)
def command() -> None:
    """Look after the models on this machine's disk."""


_json_option = click.option("--json", "as_json", is_flag=True, help="Print a document.")
_yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
_refs_argument = click.argument("refs", nargs=-1, metavar="[REF]...", shell_complete=complete_model)
_some_refs_argument = click.argument("refs", nargs=-1, required=True, metavar="REF...", shell_complete=complete_model)


# --- ls, path ---------------------------------------------------------------------------------------------------------


@command.command(
    "ls", cls=_Command, codes=(OK, USAGE), help="List the models, the last used first, and what they take."
)
@_json_option
def ls(as_json: bool) -> int:
    """List the models."""
    from gen_worker.fetch.cache.disk import device_of, free_bytes

    store = store_here()
    listed = store.listed()
    free, hub = free_bytes(store.layout.root), store.layout.hub
    if as_json:
        _print_json(
            {
                "root": str(store.layout.root),
                "hub": str(hub),
                "bytes": store.used(),
                "free_bytes": free,
                "hub_free_bytes": free_bytes(hub),
                "models": [_document(store, each) for each in listed],
            }
        )
        return OK
    if listed:
        click.echo(_table(store, listed))
    models = "1 model" if len(listed) == 1 else f"{len(listed)} models"
    elsewhere = f", {size(free_bytes(hub))} in `{hub}`" if device_of(hub) != device_of(store.layout.root) else ""
    click.echo(f"{models}, {size(store.used())}; {size(free)} free in `{store.layout.root}`{elsewhere}")
    return OK


def _table(store: "Store", listed: Sequence["Listed"]) -> str:
    """Return the models, one a line; what is not shown on a terminal has all words whole."""
    now = time.time()
    chosen = [_selection(store, each) for each in listed]
    narrowed = any(text != _ALL for text in chosen)
    heads = ["REF", *(["SELECTION"] if narrowed else []), "SIZE", "LAST USED", "IN USE", "PATH"]
    rows = [
        [
            ref_of(each),
            *([text] if narrowed else []),
            size(each.size + each.copies),
            _ago(now, each.last_used),
            _use(each),
            each.path,
        ]
        for each, text in zip(listed, chosen, strict=True)
    ]
    return table(heads, rows, elastic=("REF", "SELECTION", "PATH"), width=room())


def _selection(store: "Store", listed: "Listed") -> str:
    """Return which files of its repository a model has, as the bindings that came to it say."""
    return "; ".join(sorted({_narrowed(wanted) for wanted in store.wishes(listed)}))


def _narrowed(wanted: "Wanted") -> str:
    words = [f"{name}={value}" for name in ("dtype", "subfolder") if (value := getattr(wanted, name))]
    words += [f"files={','.join(wanted.files)}"] if wanted.files else []
    return " ".join([*words, *(["trust_remote_code"] if wanted.trust_remote_code else [])]) or _ALL


def _use(listed: "Listed") -> str:
    return "read-only" if listed.lower else "yes" if listed.in_use else "-"


def _ago(now: float, then: float) -> str:
    if not then:
        return "-"
    seconds = max(0.0, now - then)
    return f"{seconds / 86400:.0f}d ago" if seconds >= 2 * 86400 else f"{duration(seconds)} ago"


def _document(store: "Store", listed: "Listed") -> dict[str, Any]:
    record = listed.record
    return {
        "ref": ref_of(listed),
        "refs": list(listed.refs),
        "selection": _selection(store, listed),
        "provider": record.provider,
        "repo": record.repo,
        "commit": record.commit,
        "key": record.key,
        "bytes": listed.size,
        "copies_bytes": listed.copies,
        "files": len(record.files),
        "last_used": listed.last_used,
        "in_use": listed.in_use,
        "used_by": store.users(record) if listed.in_use else [],
        "read_only": listed.lower,
        "path": listed.path,
    }


@command.command("path", cls=_Command, codes=(OK, USAGE, NOT_FOUND), help="Print where a model's files lie.")
@click.argument("ref", shell_complete=complete_model)
def path(ref: str) -> int:
    """Print where a model's files lie."""
    for listed in _meant(store_here(), [ref]):
        click.echo(listed.path)
    return OK


# --- rm, prune --------------------------------------------------------------------------------------------------------


@command.command(
    "rm",
    cls=_Command,
    codes=(OK, USAGE, NOT_FOUND),
    help="Remove models from the disk; those in use are refused. What other models share with them stays. A ref means "
    "all selections of its files; `cache ls --json` says the key of each, which means that one.",
)
@_some_refs_argument
@click.option("--selection", metavar="TEXT", help="Only those whose SELECTION `cache ls` shows so: `dtype=fp16`.")
@_yes_option
@_json_option
def rm(refs: tuple[str, ...], selection: str | None, yes: bool, as_json: bool) -> int:
    """Remove models from the disk."""
    store = store_here()
    meant = _meant(store, refs)
    if selection is not None:
        there = ", ".join(sorted({f"`{_selection(store, each)}`" for each in meant}))
        meant = [each for each in meant if _selection(store, each) == selection]
        if not meant:
            raise Failure(f"no selection `{selection}` of it on this machine", f"there is {there}", code=NOT_FOUND)
    for each in meant:
        if each.lower:
            raise Failure(f"`{ref_of(each)}` lies in a cache that is only read: `{each.path}`")
        if each.in_use:
            raise _in_use(store, each)
    _ask([ref_of(each) for each in meant], sum(each.size + each.copies for each in meant), yes)
    with _told():
        gone = store.evict([each.record.key for each in meant])
    still = {each.record.key for each in store.listed() if not each.lower}
    left = [each for each in meant if each.record.key in still]
    if left:
        raise _in_use(store, left[0])
    _tell_gone(gone, 0, as_json)
    return OK


def _in_use(store: "Store", listed: "Listed") -> Failure:
    users = store.users(listed.record)
    by = " by " + ", ".join(f"process {pid} (`{_program(pid)}`)" for pid in users) if users else ""
    hint = "end what uses it first: `gen-worker ps` shows the jobs of a supervisor"
    return Failure(f"`{ref_of(listed)}` is in use{by}", hint)


def _program(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "ended"
    return " ".join(Path(word).name if word.startswith("/") else word for word in words if word)[:60]


def _ask(names: Sequence[str], bytes_: int, yes: bool) -> None:
    """Go on only when a person says so, or `--yes` did."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Failure("nothing was removed: nobody can be asked", "`--yes` removes without asking")
    what = f"`{names[0]}`" if len(names) == 1 else f"{len(names)} models"
    click.confirm(f"remove {what}, {size(bytes_)}?", abort=True, err=True)


@command.command(
    "prune",
    cls=_Command,
    codes=(OK, USAGE),
    help="Remove what nobody will finish, and models by their last use: until what is left takes `--bytes`, or those "
    "not used for `--older-than`. With neither, until the cache keeps to `GEN_WORKER_CACHE_BYTES`.",
)
@click.option("--bytes", "limit", metavar="N", help="What the cache may hold then, as `50G`.")
@click.option("--older-than", metavar="AGE", help="Remove what was not used for so long: `7d`, `12h`, `30m`.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@_yes_option
@_json_option
def prune(limit: str | None, older_than: str | None, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Remove models by their last use."""
    from gen_worker.fetch.cache.eviction import surplus, total

    if limit is not None and older_than is not None:
        raise Failure("`--bytes` and `--older-than` exclude each other")
    settings = read_settings()
    store = store_here()
    entries, now = store.entries(), time.time()
    if older_than is not None:
        age = _seconds(older_than)
        keys = [each.key for each in entries if not each.in_use and now - each.last_used >= age]
    else:
        most = settings.cache_bytes if limit is None else _bytes(limit)
        keys = surplus(entries, most, now) if limit is not None or most else []
    chosen = [each for each in entries if each.key in keys]
    if dry_run:
        going = [(ref, each.size) for each in chosen for ref in each.refs[:1]]
        _tell_gone(going, store.sweepable(), as_json, dry_run=True)
        return OK
    if chosen:
        _ask([each.refs[0] for each in chosen], total(chosen), yes)
    with _told():
        gone = store.evict(keys)
        swept = store.sweep()
    _tell_gone(gone, swept, as_json)
    return OK


def _tell_gone(gone: Sequence[tuple[str, int]], swept: int, as_json: bool, *, dry_run: bool = False) -> None:
    freed = sum(bytes_ for _ref, bytes_ in gone) + swept
    if as_json:
        removed = [{"ref": ref, "bytes": bytes_} for ref, bytes_ in gone]
        _print_json({"removed": removed, "unfinished_bytes": swept, "bytes": freed, "dry_run": dry_run})
        return
    for ref, bytes_ in gone:
        click.echo(f"{'would remove' if dry_run else 'removed'} `{ref}`: {size(bytes_)}")
    if swept:
        click.echo(f"{'would remove' if dry_run else 'removed'} what was never finished: {size(swept)}")
    if gone or swept:
        click.echo(f"{'would free' if dry_run else 'freed'} {size(freed)}")
    else:
        click.echo("nothing to remove")


# --- compiled ---------------------------------------------------------------------------------------------------------


@command.command(
    "compiled",
    cls=_Command,
    codes=(OK, USAGE),
    help="List what torch, Triton and CUDA compiled for children, by kind of device and versions. `--clear` removes "
    "what no server uses; it is compiled again when it is needed.",
)
@click.option("--clear", is_flag=True, help="Remove what no server uses.")
@_json_option
def compiled(clear: bool, as_json: bool) -> int:
    """List what was compiled for children, or remove it."""
    from gen_worker import compile_caches

    root = read_settings().cache_dir / "compiled"
    found = compile_caches.compiled(root)
    gone = compile_caches.remove(root, [each.key for each in found if not each.in_use]) if clear else []
    if as_json:
        folders = [each._asdict() for each in found if each.key not in gone]
        _print_json({"root": str(root), "compiled": folders, "removed": gone})
        return OK
    now = time.time()
    shown = [each for each in found if not clear or each.key in gone]
    for each in shown if clear else ():
        click.echo(f"removed `{each.key}`: {size(each.bytes)}")
    if shown and not clear:
        rows = [
            [each.key, size(each.bytes), _ago(now, each.last_used), "yes" if each.in_use else "-"] for each in shown
        ]
        click.echo(table(["COMPILED FOR", "SIZE", "LAST USED", "IN USE"], rows[::-1], elastic=["COMPILED FOR"]))
    if not shown:
        click.echo("nothing to remove" if clear else "nothing is compiled")
    return OK


# --- verify -----------------------------------------------------------------------------------------------------------


@command.command(
    "verify",
    cls=_Command,
    codes=(OK, USER_CODE, USAGE, NOT_FOUND),
    help="Read all files of models again, or of all, and compare them with their digests. Damaged ones are removed and "
    "are fetched again when their model is used next.",
)
@_refs_argument
@_json_option
def verify(refs: tuple[str, ...], as_json: bool) -> int:
    """Compare files with their digests."""
    store = store_here()
    listed = _meant(store, refs) if refs else store.listed()
    damaged, kept = [], []
    with _told(), _progress("verified", sum(each.size for each in listed)) as progress:
        for each in listed:
            with store.holding(each):
                found = store.damaged(each.record, progress.add)
            damaged += found if each.lower else store.discard(each.record, found)
            kept += [each.path] if found and each.lower else []
    if as_json:
        told = [{"ref": each.ref, "path": each.path, "reason": each.reason} for each in damaged]
        _print_json({"ok": not damaged, "verified": [ref_of(each) for each in listed], "damaged": told})
        return USER_CODE if damaged else OK
    for bad in damaged:
        say("error", f"`{bad.path}` of `{bad.ref}` is damaged: {bad.reason}")
    for place in kept:
        say("warning", f"it stays, as it lies in a cache that is only read: `{place}`")
    if damaged:
        if not kept and len(damaged) == 1:
            say("hint", "it was removed, and is fetched again when its model is used next")
        elif not kept:
            say("hint", "they were removed, and are fetched again when their models are used next")
        return USER_CODE
    if not listed:
        click.echo("there are no models to verify")
        return OK
    models = "1 model is as it was" if len(listed) == 1 else f"{len(listed)} models are as they were"
    click.echo(f"{models}: {size(sum(each.size for each in listed))}")
    return OK


# --- export, import ---------------------------------------------------------------------------------------------------


@command.command(
    "export",
    cls=_Command,
    codes=(OK, USAGE, NOT_FOUND),
    help="Write models into a tar, for a host without a network. `gen-worker cache import` reads it there. `-o "
    "/dev/stdout` writes it into a pipe.",
)
@_some_refs_argument
@click.option("-o", "--output", required=True, metavar="FILE", shell_complete=complete_path, help="The tar to write.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def export(refs: tuple[str, ...], output: str, force: bool) -> int:
    """Write models into a tar."""
    from contextlib import ExitStack

    from gen_worker.fetch.cache.transfer import is_stream, pack

    target = Path(output)
    _check_target(target, force)
    store = store_here()
    meant = _meant(store, refs)
    with _told(target), ExitStack() as held, _progress("written", sum(each.size for each in meant)) as progress:
        for each in meant:
            held.enter_context(store.holding(each))
        bytes_ = pack(store, meant, target, progress.add)
    named = ", ".join(f"`{ref_of(each)}`" for each in meant)
    click.echo(f"wrote {named} to `{output}`: {size(bytes_)}", err=is_stream(target))
    return OK


def _check_target(target: Path, force: bool) -> None:
    """Raise `Failure` for a place that no tar can or should be written to."""
    if target.is_dir():
        raise Failure(f"`{target}` is a folder", "name the tar in it")
    if not target.parent.is_dir():
        raise Failure(f"no such folder: `{target.parent}`", "make it first, or name another")
    if target.is_file() and not target.is_relative_to("/dev") and not force:
        raise Failure(f"`{target}` exists already", "`--force` replaces it")


@command.command(
    "import",
    cls=_Command,
    codes=(OK, USAGE),
    help="Read models from a tar that `gen-worker cache export` wrote. All digests are checked before any is used.",
)
@click.argument("file", shell_complete=complete_path)
def import_(file: str) -> int:
    """Read models from a tar."""
    import os

    from gen_worker.fetch.cache.transfer import unpack

    source = Path(file)
    if source.is_dir():
        raise Failure(f"`{file}` is a folder", "name the tar that `gen-worker cache export` wrote")
    if not source.exists():
        raise Failure(f"no such file: `{file}`")
    with _told(source), _progress("read", source.stat().st_size) as progress:
        found = unpack(store_here(), source, progress.add)
    for each in found:
        os.close(each.lease)
        snapshot = each.snapshot
        name = PREFIXES[snapshot.wanted.provider] + snapshot.wanted.ref
        click.echo(f"`{name}`: {size(snapshot.size)} in `{snapshot.path}`")
    return OK


# --- what they share --------------------------------------------------------------------------------------------------


def _meant(store: "Store", refs: Sequence[str]) -> list["Listed"]:
    """Return the models that refs mean, with a prefix or without; raise `Failure` for a ref that means none."""
    listed = store.listed()
    chosen: dict[str, Listed] = {}
    for ref in refs:
        found = [each for each in listed if ref in names_of(each)]
        if not found:
            near = nearest(ref, (name for each in listed for name in names_of(each)), likeness=0.8)
            hint = f"did you mean `{near}`?" if near else "`gen-worker cache ls` lists the models"
            raise Failure(f"no model `{ref}` on this machine", hint, code=NOT_FOUND)
        chosen |= {f"{each.layout.root} {each.record.key}": each for each in found}
    return list(chosen.values())


@contextmanager
def _told(file: Path | None = None) -> Iterator[None]:
    """Turn what the cache refuses inside this block into a `Failure`."""
    from gen_worker.models.errors import ModelError

    try:
        yield
    except ModelError as error:
        where = f"`{file}`: " if file is not None and error.kind in ("bad_manifest", "digest_mismatch") else ""
        raise Failure(f"{where}{error}", error.hint) from None
    except OSError as error:
        if file is None or error.filename is None:
            raise
        raise Failure(f"`{error.filename}`: {(error.strerror or str(error)).lower()}") from None


class _Progress:
    """A line on a terminal's stderr that says how far something is."""

    def __init__(self, verb: str, total: int) -> None:
        self._verb = verb
        self._total = total
        self._done = 0
        self._shown = 0.0
        self._visible = sys.stderr.isatty()

    def add(self, bytes_: int) -> None:
        self._done += bytes_
        if self._visible and time.monotonic() - self._shown > 0.1:
            self._shown = time.monotonic()
            share = self._done / self._total if self._total else 1.0
            sys.stderr.write(f"\r{self._verb} {size(self._done)} of {size(self._total)}, {min(share, 1.0):.0%} ")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@contextmanager
def _progress(verb: str, total: int) -> Iterator[_Progress]:
    progress = _Progress(verb, total)
    try:
        yield progress
    finally:
        progress.clear()


def _print_json(document: dict[str, Any]) -> None:
    click.echo(msgspec.json.encode(document))


def _bytes(text: str) -> int:
    digits = text.removesuffix("iB").removesuffix("B")
    unit = digits[-1:].upper() if not digits[-1:].isdigit() else ""
    number = digits.removesuffix(digits[-1:]) if unit else digits
    if not number.isascii() or not number.isdigit() or unit not in _SIZES:
        raise Failure(f"`--bytes` must be a size, as `50G`, not `{text}`")
    return int(number) << _SIZES[unit]


def _seconds(text: str) -> float:
    number, unit = text[:-1], text[-1:]
    if not number.isascii() or not number.isdigit() or unit not in _UNITS:
        raise Failure(f"`--older-than` must be a time, as `7d`, `12h` or `30m`, not `{text}`")
    return int(number) * _UNITS[unit]
