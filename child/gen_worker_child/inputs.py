"""Files for the assets of a payload, for as long as their job runs.

Those that came as bytes are written to a folder of this process; those behind URLs are fetched by others, which this
module tells apart and puts in.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from gen_worker.api.errors import RetryableError
from gen_worker.api.shapes import records_of
from gen_worker.api.types import Asset, Tensors
from gen_worker.filetypes import HEAD_BYTES, extension, mime_type
from gen_worker.scratch import PREFIX, claimed_folder, remove_abandoned
from gen_worker.wire.messages import FRAME_LIMIT, MOST_INPUTS, InputAsset, InputFile

_NOTHING: AbstractContextManager[None] = nullcontext()
_WITHOUT_PARTS = frozenset((str, int, float, bool, bytes, type(None)))
_SCHEMES = ("http://", "https://")
_MOST_DEPTH = 8  # below the payload; assets that lie deeper are not fetched
_ADDRESSES_BYTES = FRAME_LIMIT - 1024  # of all the assets that are asked for together, which travel in one frame
_ANY = 1 << 53  # stands for every larger number of a caller's


@lru_cache(maxsize=256)
def holds_assets(type_: type[msgspec.Struct]) -> bool:
    """Tell whether values of a type may hold assets."""
    return any(issubclass(record.cls, Asset | Tensors) for record in records_of(type_))


def assets_in(payload: msgspec.Struct, most_depth: int | None = None) -> Iterator[Asset | Tensors]:
    """Yield every asset in a decoded payload in its order, however deep it lies, or down to a depth.

    Weights, `Tensors`, are assets as well: theirs lie behind URLs, and never come as bytes.
    """
    waiting: list[tuple[Any, int]] = [(payload, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, Asset | Tensors):
            yield value
        elif depth != most_depth:
            parts = [(part, depth + 1) for part in _parts(value) if type(part) not in _WITHOUT_PARTS]
            waiting += reversed(parts)


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


def needed(payload: msgspec.Struct, *, refs: bool = False) -> list[InputAsset]:
    """Return the assets whose files must be fetched before the job can run, in the payload's order.

    With `refs`, those too whose refs are no URLs: names of files that whoever asked keeps.

    Raises `ValueError` for more of them than may be.
    """
    assets = _elsewhere(payload, refs)
    if len(assets) > MOST_INPUTS:
        raise ValueError(f"it names {len(assets)} files by URLs, the limit is {MOST_INPUTS}")
    wanted = [_described(asset) for asset in assets]
    size = len(msgspec.msgpack.encode(wanted)) if wanted else 0
    if size > _ADDRESSES_BYTES:
        raise ValueError(f"the URLs of its files take {size} bytes, the limit is {_ADDRESSES_BYTES}")
    return wanted


def filled(payload: msgspec.Struct, files: Sequence[InputFile], *, refs: bool = False) -> AbstractContextManager[None]:
    """Give the assets that `needed` found their files, for as long as the returned context is open."""
    return _filled(_elsewhere(payload, refs), files) if files else _NOTHING


@contextmanager
def _filled(assets: Sequence[Asset | Tensors], files: Sequence[InputFile]) -> Iterator[None]:
    for asset, file in zip(assets, files, strict=True):
        asset.local_path, asset.size_bytes = file.local_path, file.size_bytes
        if isinstance(asset, Asset):
            asset.mime_type = file.mime_type
            asset.sha256, asset.owner = file.sha256 or asset.sha256, file.owner or asset.owner
    try:
        yield
    finally:
        for asset in assets:
            asset.local_path = None  # an output that holds the asset shall not name a file that is gone


def _elsewhere(payload: msgspec.Struct, refs: bool) -> list[Asset | Tensors]:
    if not holds_assets(type(payload)):
        return []
    return [asset for asset in assets_in(payload, _MOST_DEPTH) if _is_elsewhere(asset, refs)]


def _is_elsewhere(asset: Asset | Tensors, refs: bool) -> bool:
    if asset.local_path or _bytes_of(asset) is not None:
        return False
    return bool(asset.ref) if refs else asset.ref[:8].lower().startswith(_SCHEMES)


def _bytes_of(asset: Asset | Tensors) -> bytes | None:
    return asset.inline_bytes if isinstance(asset, Asset) else None


def _described(asset: Asset | Tensors) -> InputAsset:
    if isinstance(asset, Tensors):
        return InputAsset(asset.ref)
    limits = (asset.url_max_bytes, asset.url_max_width, asset.url_max_height, asset.url_max_pixels)
    size, width, height, pixels = (min(max(0, limit or 0), _ANY) for limit in limits)
    return InputAsset(asset.ref, size, asset.url_allowed_mime_types, width, height, pixels)


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
        assets = [each for each in assets_in(payload) if isinstance(each, Asset) and not each.local_path]
        assets = [each for each in assets if each.inline_bytes is not None]
        if not assets:
            yield
            return
        folder = self.folder()
        try:
            with _needs_room():
                for number, asset in enumerate(assets):
                    asset.local_path = _write(folder / str(number), asset)
            yield
        finally:
            for asset in assets:
                asset.local_path = None  # an output that holds the asset shall not name a file that is gone
            shutil.rmtree(folder, ignore_errors=True)

    def folder(self) -> Path:
        """Make a folder for the files of one job, which whoever asked removes."""
        with _needs_room():
            return Path(tempfile.mkdtemp(dir=self._place()))

    def _place(self) -> Path:
        with self._making:
            if self._folder is not None and not self._folder.is_dir():  # somebody has tidied up what is old
                self.close()
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
        where = f" to `{tempfile.tempdir}`" if tempfile.tempdir else ""  # unset: none was found that can be written to
        reason = (error.strerror or str(error)).lower()
        raise RetryableError(f"the files of the payload cannot be written{where}: {reason}") from error


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
