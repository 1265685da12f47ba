"""Files for the input assets that came as bytes: they lie in a folder of this process until their job ends."""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from gen_worker.api.errors import RetryableError
from gen_worker.api.shapes import records_of
from gen_worker.api.types import Asset
from gen_worker.filetypes import HEAD_BYTES, extension, mime_type
from gen_worker.scratch import PREFIX, claimed_folder, remove_abandoned

_NOTHING: AbstractContextManager[None] = nullcontext()
_WITHOUT_PARTS = frozenset((str, int, float, bool, bytes, type(None)))


@lru_cache(maxsize=256)
def holds_assets(type_: type[msgspec.Struct]) -> bool:
    """Tell whether values of a type may hold assets."""
    return any(issubclass(record.cls, Asset) for record in records_of(type_))


def assets_in(payload: msgspec.Struct) -> Iterator[Asset]:
    """Yield every asset in a decoded payload, however deep it lies."""
    waiting: list[Any] = [payload]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Asset):
            yield value
        else:
            waiting += [part for part in _parts(value) if type(part) not in _WITHOUT_PARTS]


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, dict):
        return value.values()
    names: Iterable[str] = getattr(value, "__struct_fields__", ()) or getattr(value, "__dataclass_fields__", ())
    return [getattr(value, name) for name in names]


def refuse_paths(payload: msgspec.Struct) -> None:
    """Raise `ValueError` when an asset names a file of this machine, which whoever asked has no say about."""
    if holds_assets(type(payload)) and any(asset.local_path is not None for asset in assets_in(payload)):
        raise ValueError("an asset from another machine has no `local_path` here; send its `inline_bytes`")


class InputFiles:
    """Writes the bytes of input assets to files, so that `local_path` works, and removes them with their job.

    Safe from any thread. The folder is made when it is first needed; what killed processes left is removed then.
    """

    def __init__(self) -> None:
        self._making = threading.Lock()
        self._folder: Path | None = None
        self._claim: int | None = None

    def of(self, payload: msgspec.Struct) -> AbstractContextManager[None]:
        """Give each asset that has bytes and no file a file, for as long as the returned context is open."""
        return self._written(payload) if holds_assets(type(payload)) else _NOTHING

    @contextmanager
    def _written(self, payload: msgspec.Struct) -> Iterator[None]:
        assets = [each for each in assets_in(payload) if each.inline_bytes is not None and not each.local_path]
        if not assets:
            yield
            return
        with _needs_room():
            folder = Path(tempfile.mkdtemp(dir=self._place()))
        try:
            with _needs_room():
                for number, asset in enumerate(assets):
                    asset.local_path = _write(folder / str(number), asset)
            yield
        finally:
            for asset in assets:
                asset.local_path = None  # an output that holds the asset shall not name a file that is gone
            shutil.rmtree(folder, ignore_errors=True)

    def _place(self) -> Path:
        with self._making:
            if self._folder is None and os.name == "posix":
                remove_abandoned()
                self._folder, self._claim = claimed_folder()
            elif self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            return self._folder

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            if self._claim is not None:
                os.close(self._claim)
            self._folder = self._claim = None


@contextmanager
def _needs_room() -> Iterator[None]:
    """Take what keeps us from writing for something that may pass."""
    try:
        yield
    except OSError as error:
        where, reason = tempfile.gettempdir(), (error.strerror or str(error)).lower()
        raise RetryableError(f"the files of the payload cannot be written to `{where}`: {reason}") from error


def _write(folder: Path, asset: Asset) -> str:
    """Write the bytes of an asset under its own name, with the ending of its kind if the name has none."""
    data = asset.inline_bytes or b""
    name = "".join(letter for letter in asset.ref.rpartition("/")[2] if letter.isalnum() or letter in "._- ").strip(
        ". "
    )
    name = name.encode()[-128:].decode(errors="ignore") or "input"
    kind = asset.mime_type or mime_type(data[:HEAD_BYTES], name)
    if not os.path.splitext(name)[1] and kind:
        name += extension(kind)
    folder.mkdir()
    (folder / name).write_bytes(data)
    return str(folder / name)
