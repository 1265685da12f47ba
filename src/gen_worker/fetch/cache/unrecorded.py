"""Find models that somebody else laid into a cache: an image, a mount, or Hugging Face's own libraries.

Nobody recorded what they consist of. In Hugging Face's layout the listing of the commit says what a wish needs, else
the files that are there do; every other folder got its name when it was whole.
"""

import os
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from gen_worker.fetch.cache.layout import Layout, Record, content_key, is_commit, plain_commit
from gen_worker.fetch.cache.ledger import UNREADABLE
from gen_worker.fetch.cache.linking import hub_listing
from gen_worker.models.errors import ModelError
from gen_worker.models.headers import read_header
from gen_worker.models.manifest import ManifestFile
from gen_worker.models.selection import INDEX, OPTIONAL_COMPONENTS, Asks, Known, SelectionOptions, select
from gen_worker.models.wanted import Wanted

_ROUNDS = 8  # of questions about a selection; the last ones ask for precisions


def unrecorded(layout: Layout, wanted: Wanted, options: SelectionOptions, recorded: Collection[Path]) -> Record | None:
    """Return what a folder says that a model consists of; None when there is no such folder, or it is not enough.

    `recorded` are the folders that somebody recorded something of: what is in one of them may be a part.
    """
    try:
        commit = _commit(layout, wanted)
        if not commit:
            return None
        folder = layout.snapshot(_record(wanted, commit, ()))
        if not folder.is_dir():
            return None
        guessing = folder not in recorded
        if wanted.provider == "hf":
            paths = _chosen(layout, wanted, commit, options, guessing=guessing)
        else:
            paths = _matching(wanted, folder) if guessing else ()
        if not paths:
            return None
        listed = {file.path: file for file in hub_listing(layout, _record(wanted, commit, ()))}
        return _record(wanted, commit, tuple(_described(folder, path, listed.get(path)) for path in paths))
    except (ModelError, OSError, *UNREADABLE):  # its provider says better what is wrong with it
        return None


def _commit(layout: Layout, wanted: Wanted) -> str:
    """Return the commit that a wish means on this disk; empty when that is not known."""
    match wanted.provider:
        case "tensorhub":
            return plain_commit(wanted.digest)
        case "civitai":
            return wanted.version
        case "modelscope":
            return wanted.revision
    ref = layout.ref(wanted)
    return wanted.revision if ref is None else ref.read_text().strip()


def _record(wanted: Wanted, commit: str, files: tuple[ManifestFile, ...]) -> Record:
    key = content_key(wanted.provider, wanted.repo, commit, [file.path for file in files])
    return Record(key, wanted.provider, wanted.repo, commit, wanted, files)


def _chosen(
    layout: Layout, wanted: Wanted, commit: str, options: SelectionOptions, *, guessing: bool
) -> tuple[str, ...]:
    """Return the files that a wish needs, as they would be chosen from the repository itself."""
    repository = layout.repository(wanted.repo)
    folder = repository / "snapshots" / commit
    listing = _listing(repository / "trees" / f"{commit}.json")
    if listing is None:
        listing = _present(folder)
        if not guessing or not _has_components(folder, listing):
            return ()
    known = Known()
    for _round in range(_ROUNDS):
        answer = select(listing, wanted, options, known)
        if not isinstance(answer, Asks):
            return answer.files
        known = _looked_up(folder, answer, known)
    return ()


def _looked_up(folder: Path, asked: Asks, known: Known) -> Known:
    documents = {path: (folder / path).read_bytes() for path in asked.documents}
    precisions = {path: read_header(folder / path).precision for path in asked.precisions}
    return Known({**known.documents, **documents}, {**known.precisions, **precisions})


def _listing(path: Path) -> dict[str, int | None] | None:
    """Return the sizes of all files of a commit, as Hugging Face's libraries noted them; None when they did not."""
    try:
        document: dict[str, Any] = msgspec.json.decode(path.read_bytes())
        if document["format_version"] != 1:
            return None
        return {str(name): int(entry["size"]) for name, entry in document["files"].items()}
    except (OSError, *UNREADABLE, KeyError, TypeError, AttributeError):
        return None


def _present(folder: Path) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for where, _folders, names in os.walk(folder):
        for name in names:
            path = Path(where, name)
            found[str(path.relative_to(folder))] = path.stat().st_size
    return found


def _has_components(folder: Path, listing: dict[str, int | None]) -> bool:
    """Whether something is there of each component that a pipeline names: a download may have been cut short."""
    if INDEX not in listing:
        return True
    index = msgspec.json.decode((folder / INDEX).read_bytes(), type=dict[str, Any])
    named = (name for name, entry in index.items() if isinstance(entry, list) and any(entry))
    needed = (name for name in named if not name.startswith("_") and name not in OPTIONAL_COMPONENTS)
    return all(any(path.startswith(f"{name}/") for path in listing) for name in needed)


def _matching(wanted: Wanted, folder: Path) -> tuple[str, ...]:
    paths = sorted(_present(folder))
    if wanted.files:
        paths = [path for path in paths if any(fnmatchcase(path, glob) for glob in wanted.files)]
    return tuple(paths)


def _described(folder: Path, path: str, listed: ManifestFile | None) -> ManifestFile:
    """Return a file with the digest that its blob is named by in Hugging Face's layout, or that its listing says."""
    file = folder / path
    size = file.stat().st_size
    name = os.path.basename(os.readlink(file)) if file.is_symlink() else ""
    if not is_commit(name):
        return listed if listed is not None and listed.size == size else ManifestFile(path, size)
    return ManifestFile(path, size, "sha256" if len(name) == 64 else "git-sha1", name, etag=name)
