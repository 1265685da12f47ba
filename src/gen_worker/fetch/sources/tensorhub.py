"""Snapshots of the platform's hub: described by an orchestrator, or asked for by tag or digest.

The routes of the hub: `/api/v1/repos/<org>/<repo>/resolve?tag=` gives a digest, `…/snapshots/<digest>/manifest` the
files in the root and the objects, one per folder, and `/api/v1/objects/<digest>/manifest` the files of one. URLs of
files are signed and end soon, so no credentials go with them, and new ones are had from the same routes. In place of a
URL there may be a grant, which lends keys to an object of a bucket: its URL is signed here.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.network.patience import HttpError
from gen_worker.fetch.network.transport import Transport
from gen_worker.fetch.sources.site import Resolved, Site, Size, refusal
from gen_worker.fetch.uploading.failure import UploadError
from gen_worker.fetch.uploading.places import grant_of
from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import Algorithm, Manifest, ManifestFile
from gen_worker.models.paths import check_digest, check_paths
from gen_worker.models.wanted import SnapshotFile, Wanted


class _Tagged(msgspec.Struct):
    digest: str


class _File(msgspec.Struct):
    path: str
    url: str = ""
    size_bytes: Size | None = None
    size: Size | None = None
    blake3: str = ""
    blake3_hex: str = ""
    digest: str = ""
    transfer_grant: dict[str, Any] | None = None
    s3_transfer_grant: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<{self.path}>"  # a URL is a permission, and a grant has keys


class _Files(msgspec.Struct):
    files: list[_File] = []
    root_files: list[_File] = []
    entries: list[_File] = []
    objects: dict[str, str] = {}
    snapshot_digest: str = ""


class Composition(NamedTuple):
    """What a snapshot is made of: the files in its root by path, and the digests of its objects by their folders."""

    root: Mapping[str, ManifestFile]
    objects: Mapping[str, str]


def described(wanted: Wanted, files: Sequence[SnapshotFile]) -> Resolved:
    """Return a snapshot that an orchestrator describes; its URLs are good for a while and nothing else is asked."""
    found = [_signed(_File(file.path, file.url, file.size_bytes, blake3=file.blake3)) for file in files]
    check_paths(file.path for file in found)
    if not found:
        raise ModelError("bad_manifest", f"the snapshot of `{wanted.ref}` has no files", "", ref=wanted.ref)
    commit = digits_of(wanted.digest) if wanted.digest else blake3_tree_hash(found)
    return Resolved(Manifest(wanted.ref, commit, tuple(found)))


def resolve(wanted: Wanted, config: FetchConfig, transport: Transport, cancel: Cancel) -> Resolved:
    """Return what a snapshot of the hub consists of; raise `ModelError`."""
    hub = Hub.of(wanted, config, transport, cancel)
    digest = wanted.digest or hub.tagged()
    files = hub.snapshot(digest)
    check_paths(files)
    if not files:
        raise ModelError("no_weights", f"`{wanted.ref}` has no files", "", ref=wanted.ref)

    def fresh(file: ManifestFile, cancel: Cancel) -> ManifestFile:
        return hub.until(cancel).snapshot(digest).get(file.path, file)

    return hub.site.resolved(Manifest(wanted.ref, digits_of(digest), tuple(files.values())), fresh)


def blake3_tree_hash(files: Iterable[ManifestFile]) -> str:
    """Return the blake3 of a list of files, which is the same for the same paths and contents.

    That of a line `path TAB size TAB blake3 LF` for each, in the order of the paths' bytes.
    """
    from blake3 import blake3

    lines = sorted((file.path.encode(), f"\t{file.size}\t{file.digest}\n".encode()) for file in files)
    return blake3(b"".join(path + rest for path, rest in lines)).hexdigest()


class Hub:
    """The hub's routes, asked for one repository. URLs that it returns begin to be good then."""

    def __init__(self, site: Site, wanted: Wanted) -> None:
        self.site = site
        self._wanted = wanted
        self._api = f"{site.endpoint}/api/v1"

    @classmethod
    def of(cls, wanted: Wanted, config: FetchConfig, transport: Transport, cancel: Cancel) -> "Hub":
        """Return the hub that has a model; raise `ModelError` where nobody said which that is."""
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
        return cls(site, wanted)

    def until(self, cancel: Cancel) -> "Hub":
        """Return this hub, asked until something else is canceled."""
        return Hub(self.site.until(cancel), self._wanted)

    def tagged(self) -> str:
        """Return the digest of the snapshot that the tag stands for now."""
        asked = {"tag": self._wanted.tag or "prod"} | ({"flavor": self._wanted.flavor} if self._wanted.flavor else {})
        return self.site.json(f"{self._api}/repos/{self._wanted.repo}/resolve?{urlencode(asked)}", _Tagged).digest

    def composition(self, digest: str) -> Composition:
        """Return what a snapshot is made of."""
        digits_of(digest)
        manifest = self.site.json(f"{self._api}/repos/{self._wanted.repo}/snapshots/{_quoted(digest)}/manifest", _Files)
        return Composition(_by_path((*manifest.root_files, *manifest.files, *manifest.entries)), manifest.objects)

    def object(self, digest: str) -> Mapping[str, ManifestFile]:
        """Return the files of an object by their paths in it."""
        digits_of(digest)
        inner = self.site.json(f"{self._api}/objects/{_quoted(digest)}/manifest", _Files)
        return _by_path((*inner.files, *inner.root_files, *inner.entries))

    def snapshot(self, digest: str) -> Mapping[str, ManifestFile]:
        """Return all files of a snapshot by path."""
        root, objects = self.composition(digest)
        files = dict(root)
        for name, its in objects.items():
            inner = ((f"{name}/{path}", file) for path, file in self.object(its).items())
            files |= {path: msgspec.structs.replace(file, path=path) for path, file in inner}
        return files


def _by_path(files: Iterable[_File]) -> Mapping[str, ManifestFile]:
    return {file.path: _signed(file) for file in files}


def _signed(file: _File) -> ManifestFile:
    size = file.size if file.size_bytes is None else file.size_bytes
    digest = check_digest("blake3", file.blake3 or file.blake3_hex or file.digest)
    if not digest or (size or 0) < 0:
        raise ModelError("bad_manifest", f"the hub gives `{file.path[:100]}` no blake3, or a size below 0", "")
    return ManifestFile(file.path, size, "blake3", digest, file.url or _granted(file), signed=True)


def _granted(file: _File) -> str:
    """Return the URL of a file that is an object of a bucket, whose keys are lent; empty where there is none."""
    grant = file.transfer_grant or file.s3_transfer_grant
    if grant is None:
        return ""
    try:
        return grant_of(grant, "the hub").readable(time.time())
    except (UploadError, ValueError):
        raise ModelError(
            "bad_manifest", f"the hub grants `{file.path[:100]}` in a way that cannot be read", ""
        ) from None


def digits_of(digest: str) -> str:
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
