"""Large files that the platform keeps in parts: what the list of the parts of one says, so that it can be put together.

Such a file is not in its snapshot. What is there is `NAME.parts.json`, which says
`{"original_path": PATH, "parts": [{"digest": BLAKE3}, …]}`, and beside it the parts, `NAME.part0000` and so on. Whoever
loads the model sees neither.
"""

import re
from collections.abc import Callable, Iterator, Mapping

import msgspec

from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import ManifestFile
from gen_worker.models.paths import check_digest, check_path, check_paths

LIST = ".parts.json"
LIST_BYTES = 4 << 20  # fifty thousand parts
_PART = re.compile(r"(.+)\.part\d+")


class _Part(msgspec.Struct):
    digest: str


class _Listed(msgspec.Struct):
    original_path: str
    parts: list[_Part]


def join(files: tuple[ManifestFile, ...], read: Callable[[ManifestFile], bytes]) -> tuple[ManifestFile, ...]:
    """Return the files of a snapshot with large ones in place of their parts; `read` returns the content of a list.

    Raises `ModelError` where a list names what is not there, or is none.
    """
    lists = dict(_lists(files))
    if not lists:
        return files
    pieces = {file.digest: file for file in files if _owner(file.path) in lists}
    others = tuple(file for file in files if file.path not in lists.values() and _owner(file.path) not in lists)
    by_path = {file.path: file for file in files}
    joined = tuple(_joined(by_path[path], pieces, read) for path in lists.values())
    check_paths(file.path for file in (*others, *joined))
    return (*others, *joined)


def _lists(files: tuple[ManifestFile, ...]) -> Iterator[tuple[str, str]]:
    """Yield the name that the parts of a file begin with, and the path of their list."""
    owners = {_owner(file.path) for file in files}
    for file in files:
        if file.path.endswith(LIST) and (name := file.path.removesuffix(LIST)) in owners:
            yield name, file.path


def _owner(path: str) -> str:
    match = _PART.fullmatch(path)
    return match[1] if match else ""


def _joined(
    listing: ManifestFile, pieces: Mapping[str, ManifestFile], read: Callable[[ManifestFile], bytes]
) -> ManifestFile:
    if (listing.size or 0) > LIST_BYTES:
        raise _bad(listing, f"has {listing.size} bytes, at most {LIST_BYTES} are read")
    try:
        listed = msgspec.json.decode(read(listing), type=_Listed)
    except (ValueError, RecursionError) as error:
        raise _bad(listing, f"is no list of parts: {error}") from None
    parts = [pieces.get(check_digest("blake3", part.digest)) for part in listed.parts]
    found = tuple(part for part in parts if part is not None and part.size is not None)
    if not found or len(found) != len(parts):
        raise _bad(listing, "names parts that are not in the snapshot")
    size = sum(part.size or 0 for part in found)
    return ManifestFile(check_path(listed.original_path), size, signed=True, parts=found)


def _bad(listing: ManifestFile, what: str) -> ModelError:
    hint = "nothing was fetched; tell the owner of the repository"
    return ModelError("bad_manifest", f"`{listing.path[:100]}` {what}", hint, file=listing.path[:100])
