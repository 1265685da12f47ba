"""The binary values of a result - bytes and saved files - and the files that `-o` writes them to."""

import base64
import binascii
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from gen_worker.cli.failure import Failure
from gen_worker.cli.schema import Place, Schema
from gen_worker.filetypes import HEAD_BYTES, extension, mime_type

_FORCE = "`--force` overwrites it"
_Readable: TypeAlias = io.BufferedReader | io.BytesIO


class Binary:
    """One binary value: where it stands in its result, and what is in it."""

    def __init__(self, path: tuple[str, ...], holder: Any, key: Any, *, remote: bool = False) -> None:
        self.path = path
        self._holder = holder
        self._key = key
        self._value = holder[key] if key is not None else holder
        self._remote = remote

    @property
    def _local_path(self) -> str | None:
        """The file of this machine that the value is in; raise `Failure` for another machine's."""
        path = isinstance(self._value, dict) and self._value.get("local_path")
        if not path:
            return None
        if self._remote:
            if self._value.get("inline_bytes"):
                return None
            hint = "return its bytes, or call `gen-worker invoke` over the server's Unix socket"
            raise Failure(f"`{path}` is on the server's machine, and over TCP it is not fetched", hint)
        return str(path)

    @property
    def name(self) -> str:
        """A file name made of the fields that lead to the value, with the ending of what it is."""
        stem = ".".join(re.sub(r"[^\w-]+", "_", step) for step in self.path) or "output"
        return stem + extension(self._mime_type())

    def _mime_type(self) -> str | None:
        named = isinstance(self._value, dict) and self._value.get("mime_type")
        if isinstance(named, str) and extension(named) != ".bin":
            return named
        ref = self._value.get("ref") if isinstance(self._value, dict) else ""
        with self._open() as source:
            return mime_type(source.read(HEAD_BYTES), str(ref or ""))

    def _open(self) -> _Readable:
        """Return a file to read the value from."""
        local = self._local_path
        if local is None:
            text = self._value["inline_bytes"] if isinstance(self._value, dict) else self._value
            return io.BytesIO(base64.b64decode(text))
        try:
            return open(local, "rb")
        except OSError as error:
            hint = "it is on the server's machine; the server's folder of outputs must be reachable from here"
            raise Failure(f"cannot read `{local}`: {(error.strerror or str(error)).lower()}", hint) from None

    def write(self, target: Path, *, force: bool) -> None:
        """Write the value to a file, and put that file's path into the result in its place."""
        local = self._local_path
        with self._open() as source:
            if local:
                self._refuse_replaced(source, local)
            if force and local and target.exists() and os.path.samefile(local, target):
                return  # to write a file over itself would lose it
            with open(target, "wb" if force else "xb") as file:
                try:
                    shutil.copyfileobj(source, file)
                except BaseException:
                    with suppress(FileNotFoundError):
                        target.unlink()
                    raise
        if isinstance(self._value, dict):
            self._value["local_path"] = str(target)
            self._value.pop("inline_bytes", None)
        else:
            self._holder[self._key] = str(target)

    def _refuse_replaced(self, source: _Readable, local: str) -> None:
        """Raise `Failure` for a file that is not what the job saved any more."""
        saved = self._value.get("sha256")
        if not isinstance(saved, str):
            return
        import hashlib

        if hashlib.file_digest(source, "sha256").hexdigest() != saved:
            text = f"`{local}` is not what this request saved: it has been replaced since"
            hint = "have the handler save under a ref of each request's own, as `f'{ctx.request_id}/cat.png'`, or none"
            raise Failure(text, hint)
        source.seek(0)


def binaries(value: Any, schema: Schema | None, *, remote: bool = False) -> Iterator[Binary]:
    """Yield the binary values in a result, of a server that may be on another machine with `remote`.

    Without a schema only what looks like an `Asset` is known as one.
    """
    for holder, key, path in _within(value, None, Place(schema, schema or {}), (), value):
        yield Binary(path, holder, key, remote=remote)


_Found: TypeAlias = tuple[Any, Any, tuple[str, ...]]


def _within(holder: Any, key: Any, place: Place, path: tuple[str, ...], value: Any) -> Iterator[_Found]:
    if isinstance(value, dict):
        if _stands_for_file(value, place):
            yield value, None, path
            return
        for name, member in value.items():
            below = place.below(name, value) or Place(place.root, {})
            yield from _within(value, name, below, (*path, name), member)
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from _within(value, index, place.item(index), (*path, str(index)), member)
    elif isinstance(value, str) and value and place.is_bytes() and _is_base64(value):
        yield holder, key, path


def _stands_for_file(value: dict[str, Any], place: Place) -> bool:
    if "ref" not in value or (place.root is not None and not place.whole(value).is_asset()):
        return False
    inline = value.get("inline_bytes")
    return bool(value.get("local_path")) or (isinstance(inline, str) and _is_base64(inline))


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


class Folder:
    """Where `-o PATH` puts the binary values of a call's results: one file, or a folder of them."""

    def __init__(self, path: str, *, force: bool, schema: Schema | None, streams: bool, remote: bool = False) -> None:
        self.written = 0
        self._remote = remote
        self._path = Path(path)
        self._is_folder = streams or path.endswith("/") or self._path.is_dir()
        self._streams = streams
        self._force = force
        self._schema = schema
        self._items = 0
        self._taken: set[str] = set()

    def refuse_early(self) -> None:
        """Raise `Failure` when it can be known before the call that nothing could be written."""
        if self._is_folder and self._path.exists() and not self._path.is_dir():
            raise Failure(f"`{self._path}` is a file, and the items of a stream need a folder")
        if not self._is_folder and self._path.exists() and not self._force:
            raise Failure(f"`{self._path}` is there already", _FORCE)
        if not self._is_folder and not self._path.parent.is_dir():
            raise Failure(f"no folder `{self._path.parent}`", f"a folder is made for `-o {self._path.parent}/`")

    def take(self, result: bytes) -> bytes:
        """Write the binary values of a result, or of an item of a stream; return its JSON with paths in their places.

        Raises `Failure` when they cannot be written.
        """
        try:
            value = json.loads(result)
            found = list(binaries(value, self._schema, remote=self._remote))
        except (ValueError, RecursionError) as error:
            raise Failure(f"the output cannot be read: {error}") from None
        prefix = f"{self._items:04}." if self._streams else ""
        self._items += 1
        if not found:
            return result
        try:
            if self._is_folder or len(found) > 1:
                self._write_all(found, prefix)
            else:
                found[0].write(self._path, force=self._force)
        except FileExistsError as error:
            raise Failure(f"`{error.filename}` is there already", _FORCE) from None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise Failure(f"cannot write `{error.filename or self._path}`: {reason}") from None
        self.written += len(found)
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")

    def _write_all(self, found: list[Binary], prefix: str) -> None:
        if self._path.exists() and not self._path.is_dir():
            folder = self._path.with_suffix("")
            raise Failure(
                f"`{self._path}` is a file, and the output has {len(found)} binary values",
                f"name a folder: `-o {folder}/`",
            )
        self._path.mkdir(parents=True, exist_ok=True)
        for each in found:
            each.write(self._path / self._unique(prefix + each.name), force=self._force)

    def _unique(self, name: str) -> str:
        """Return the name, or one like it when two fields have the same."""
        unique, number = name, 2
        while unique in self._taken:
            unique, number = f"{Path(name).stem}_{number}{Path(name).suffix}", number + 1
        self._taken.add(unique)
        return unique
