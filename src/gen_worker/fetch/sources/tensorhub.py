"""Snapshots of the platform's hub: described by an orchestrator, or asked for by tag or digest.

The routes of the hub: `/api/v1/repos/<org>/<repo>/resolve?tag=` gives a digest, `…/snapshots/<digest>/manifest` the
files in the root and the objects, one per folder, and `/api/v1/objects/<digest>/manifest` the files of one. URLs of
files are signed and end soon, so no credentials go with them, and new ones are had from the same routes.
"""

from collections.abc import Mapping, Sequence
from urllib.parse import quote, urlencode

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.network.patience import HttpError
from gen_worker.fetch.network.transport import Transport
from gen_worker.fetch.sources.site import Resolved, Site, Size, refusal
from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import Algorithm, Manifest, ManifestFile
from gen_worker.models.paths import check_digest, check_paths
from gen_worker.models.wanted import SnapshotFile, Wanted


class _Tagged(msgspec.Struct):
    digest: str


class _File(msgspec.Struct):
    path: str
    url: str
    size_bytes: Size | None = None
    size: Size | None = None
    blake3: str = ""
    blake3_hex: str = ""


class _Files(msgspec.Struct):
    files: list[_File] = []
    root_files: list[_File] = []
    objects: dict[str, str] = {}
    snapshot_digest: str = ""


def described(wanted: Wanted, files: Sequence[SnapshotFile]) -> Resolved:
    """Return a snapshot that an orchestrator describes; its URLs are good for a while and nothing else is asked."""
    found = [_signed("", _File(file.path, file.url, file.size_bytes, blake3=file.blake3)) for file in files]
    check_paths(file.path for file in found)
    if not found:
        raise ModelError("bad_manifest", f"the snapshot of `{wanted.ref}` has no files", "", ref=wanted.ref)
    commit = _hex(wanted.digest) if wanted.digest else tree_digest(found)
    return Resolved(Manifest(wanted.ref, commit, tuple(found)))


def resolve(wanted: Wanted, config: FetchConfig, transport: Transport, cancel: Cancel) -> Resolved:
    """Return what a snapshot of the hub consists of; raise `ModelError`."""
    if not config.cozy_hub_url:
        what = f"`{wanted.ref}` is on the platform's hub, whose address is not set"
        raise ModelError("not_configured", what, "set `COZY_HUB_URL` to it, as `https://…`", ref=wanted.ref)
    site = Site(
        transport,
        cancel,
        endpoint=config.cozy_hub_url,
        token=config.cozy_hub_token,
        refusal=lambda error: _refusal(error, wanted, config),
    )
    hub = _Hub(site, wanted)
    digest = wanted.digest or hub.tagged()
    files = hub.snapshot(digest)
    check_paths(files)
    if not files:
        raise ModelError("no_weights", f"`{wanted.ref}` has no files", "", ref=wanted.ref)

    def fresh(file: ManifestFile, cancel: Cancel) -> ManifestFile:
        return _Hub(site.until(cancel), wanted).snapshot(digest).get(file.path, file)

    return site.resolved(Manifest(wanted.ref, _hex(digest), tuple(files.values())), fresh)


def tree_digest(files: Sequence[ManifestFile]) -> str:
    """Return the blake3 of a list of files, which is the same for the same paths and contents.

    That of a line `path TAB size TAB blake3 LF` for each, in the order of the paths' bytes.
    """
    from blake3 import blake3

    lines = sorted((file.path.encode(), f"\t{file.size}\t{file.digest}\n".encode()) for file in files)
    return blake3(b"".join(path + rest for path, rest in lines)).hexdigest()


class _Hub:
    """The hub's routes, asked for one repository."""

    def __init__(self, site: Site, wanted: Wanted) -> None:
        self._site = site
        self._wanted = wanted
        self._api = f"{site.endpoint}/api/v1"

    def tagged(self) -> str:
        """Return the digest of the snapshot that the tag stands for now."""
        asked = {"tag": self._wanted.tag or "prod"} | ({"flavor": self._wanted.flavor} if self._wanted.flavor else {})
        return self._site.json(f"{self._api}/repos/{self._wanted.repo}/resolve?{urlencode(asked)}", _Tagged).digest

    def snapshot(self, digest: str) -> Mapping[str, ManifestFile]:
        """Return the files of a snapshot by path, with URLs that begin to be good now."""
        _hex(digest)
        manifest = self._site.json(
            f"{self._api}/repos/{self._wanted.repo}/snapshots/{_quoted(digest)}/manifest", _Files
        )
        files = [_signed("", file) for file in (*manifest.root_files, *manifest.files)]
        for name, its in manifest.objects.items():
            _hex(its)
            inner = self._site.json(f"{self._api}/objects/{_quoted(its)}/manifest", _Files)
            files += [_signed(f"{name}/", file) for file in (*inner.files, *inner.root_files)]
        return {file.path: file for file in files}


def _signed(below: str, file: _File) -> ManifestFile:
    size = file.size if file.size_bytes is None else file.size_bytes
    digest = check_digest("blake3", file.blake3 or file.blake3_hex)
    if not digest or (size or 0) < 0:
        raise ModelError("bad_manifest", f"the hub gives `{file.path[:100]}` no blake3, or a size below 0", "")
    return ManifestFile(below + file.path, size, "blake3", digest, file.url, signed=True)


def _hex(digest: str) -> str:
    """Return the digits of `blake3:<hex>`, `sha256:<hex>` or bare hex; raise `ModelError` for others."""
    algorithm: Algorithm = "sha256" if digest.startswith("sha256:") else "blake3"
    if not (digits := check_digest(algorithm, digest)):
        raise ModelError("bad_manifest", "the hub names a snapshot without a digest", "")
    return digits


def _quoted(digest: str) -> str:
    return quote(digest, safe=":")


def _refusal(error: HttpError, wanted: Wanted, config: FetchConfig) -> ModelError:
    if error.status in (401, 403) and not error.redirected:
        own = "`COZY_HUB_TOKEN` is refused" if config.cozy_hub_token else "it needs a token"
        hint = "set `COZY_HUB_TOKEN` to a token that may read it"
        return ModelError("unauthorized", f"`{wanted.ref}` cannot be read on the hub: {own}", hint, ref=wanted.ref)
    if error.status == 404:
        own = "" if config.cozy_hub_token else ", and `COZY_HUB_TOKEN` if it is private"
        hint = f"check its owner, name and tag{own}"
        return ModelError("not_found", f"`{wanted.ref}` is not on {config.cozy_hub_url}", hint, ref=wanted.ref)
    return refusal(error, wanted, config.cozy_hub_url)
