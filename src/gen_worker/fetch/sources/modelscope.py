"""Models of ModelScope: the routes are those that its own library asks (`modelscope-hub`)."""

import hashlib
from collections.abc import Iterable, Iterator
from urllib.parse import urlencode

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.network.patience import HttpError
from gen_worker.fetch.network.transport import Transport
from gen_worker.fetch.sources.site import Resolved, Site, Size, refusal, selected
from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import Algorithm, Manifest, ManifestFile
from gen_worker.models.paths import check_digest, check_path
from gen_worker.models.wanted import Wanted

LISTED = 3000
"""Entries after which the site cuts a listing short without a word."""

DEPTH = 32  # of folders


class _Entry(msgspec.Struct, rename="pascal"):
    path: str
    type: str
    size: Size | None = None
    sha256: str | None = None


class _Entries(msgspec.Struct, rename="pascal"):
    files: list[_Entry] | None = None


class _Listing(msgspec.Struct, rename="pascal"):
    data: _Entries | None = None
    success: bool = True
    message: str = ""


def resolve(wanted: Wanted, config: FetchConfig, transport: Transport, cancel: Cancel) -> Resolved:
    """Return what a model consists of at its revision now; raise `ModelError`."""
    site = Site(
        transport,
        cancel,
        endpoint=config.modelscope_endpoint,
        token=config.modelscope_token,
        refusal=lambda error: _refusal(error, wanted, config),
    )
    api = f"{config.modelscope_endpoint}/api/v1/models/{wanted.repo}/repo"
    revision = wanted.revision or "master"
    entries = _entries(site, f"{api}/files", revision, "", 0)
    listing = [_file(entry, api, revision) for entry in entries if entry.type == "blob"]
    if not listing:
        raise ModelError("no_weights", f"`{wanted.ref}` of ModelScope has no files", "", ref=wanted.ref)
    selection, files = selected(site, listing, wanted, config.selection)
    return site.resolved(Manifest(wanted.ref, _commit(listing), files, selection.notes))


def _entries(site: Site, url: str, revision: str, root: str, depth: int) -> Iterator[_Entry]:
    """Yield all entries below a folder: folder by folder where one listing does not hold them all."""
    entries = _listed(site, url, revision, root, recursive=True)
    if len(entries) < LISTED:
        yield from entries
        return
    if depth == DEPTH:
        raise ModelError("bad_manifest", f"the folders of `{url}` do not end", "")
    entries = _listed(site, url, revision, root, recursive=False)
    if len(entries) >= LISTED:
        what = f"ModelScope lists only {LISTED} of the files in `{root or '/'}`"
        raise ModelError("download_failed", what, "name those that are meant with `files=`, or take another site")
    for entry in entries:
        if entry.type == "tree":
            yield from _entries(site, url, revision, check_path(entry.path), depth + 1)
        else:
            yield entry


def _listed(site: Site, url: str, revision: str, root: str, *, recursive: bool) -> list[_Entry]:
    asked = {"Revision": revision, "Recursive": str(recursive), **({"Root": root} if root else {})}
    listing = site.json(f"{url}?{urlencode(asked)}", _Listing)
    if not listing.success or listing.data is None:
        raise ModelError("download_failed", f"ModelScope lists no files: {listing.message[:200]}", "try again later")
    return listing.data.files or []


def _file(entry: _Entry, api: str, revision: str) -> ManifestFile:
    url = f"{api}?{urlencode({'Revision': revision, 'FilePath': check_path(entry.path)})}"
    digest = (entry.sha256 or "").strip()
    algorithm: Algorithm = "git-sha1" if len(digest) == 40 else "sha256"  # either is given under the one name
    if not digest:
        return ManifestFile(entry.path, entry.size, url=url)
    return ManifestFile(entry.path, entry.size, algorithm, check_digest(algorithm, digest), url)


def _commit(listing: Iterable[ManifestFile]) -> str:
    """Return what is the same for the same listing: the site does not say which commit a revision stands for."""
    lines = sorted(f"{file.path}\t{file.size}\t{file.digest}\n" for file in listing)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _refusal(error: HttpError, wanted: Wanted, config: FetchConfig) -> ModelError:
    if error.status in (401, 403) and not error.redirected:
        own = "`MODELSCOPE_API_TOKEN` is refused" if config.modelscope_token else "it needs a token"
        hint = "set `MODELSCOPE_API_TOKEN` to a token that may read it"
        return ModelError("unauthorized", f"`{wanted.ref}` cannot be read on ModelScope: {own}", hint, ref=wanted.ref)
    if error.status == 404:
        at = f", or no revision `{wanted.revision}` of it" if wanted.revision else ""
        own = "" if config.modelscope_token else ", and `MODELSCOPE_API_TOKEN` if it is private"
        what = f"ModelScope has no model `{wanted.repo}`{at}"
        return ModelError("not_found", what, f"check its owner, name and revision{own}", ref=wanted.ref)
    return refusal(error, wanted, "ModelScope")
