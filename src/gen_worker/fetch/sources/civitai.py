"""Models of Civitai (https://developer.civitai.com): the safetensors of one version, the primary file first."""

from urllib.parse import urlsplit

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.network.patience import HttpError
from gen_worker.fetch.network.transport import Transport
from gen_worker.fetch.sources.site import Resolved, Site, refusal
from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import Algorithm, Manifest, ManifestFile
from gen_worker.models.paths import check_commit, check_digest, check_paths
from gen_worker.models.refs import version_id
from gen_worker.models.selection import PICKLES
from gen_worker.models.wanted import Wanted

OWN_HOSTS = ("civitai.com", "www.civitai.com", "api.civitai.com")

_HASHES: tuple[tuple[str, Algorithm], ...] = (("SHA256", "sha256"), ("BLAKE3", "blake3"))


class _File(msgspec.Struct):
    name: str
    downloadUrl: str  # as the site spells it
    sizeKB: float | None = None
    primary: bool = False
    hashes: dict[str, str | None] = {}


class _Version(msgspec.Struct):
    id: int
    files: list[_File] = []


class _Numbered(msgspec.Struct):
    id: int


class _Model(msgspec.Struct):
    modelVersions: list[_Numbered] = []  # the latest first


def resolve(wanted: Wanted, config: FetchConfig, transport: Transport, cancel: Cancel) -> Resolved:
    """Return what a version of a model consists of, the latest when none is named; raise `ModelError`."""
    site = Site(
        transport,
        cancel,
        endpoint=config.civitai_endpoint,
        token=config.civitai_token,
        refusal=lambda error: _refusal(error, wanted, config),
    )
    api = f"{config.civitai_endpoint}/api/v1"
    named = version_id(wanted.version) or (version_id(wanted.repo) if wanted.repo.startswith("versions/") else "")
    if wanted.version and not named:
        hint = 'write its number, as in `version="130072"`'
        raise ModelError("not_found", f"`{wanted.version}` is no version of Civitai's", hint, ref=wanted.ref)
    if not named:
        versions = site.json(f"{api}/models/{wanted.repo}", _Model).modelVersions
        if not versions:
            raise _no_weights(wanted, "has no version")
        named = str(versions[0].id)
    version = site.json(f"{api}/model-versions/{named}", _Version)
    files = tuple(_file(file, config) for file in _taken(version, wanted, config))
    check_paths(file.path for file in files)
    return site.resolved(Manifest(wanted.ref, check_commit(str(version.id)), files))


def _taken(version: _Version, wanted: Wanted, config: FetchConfig) -> list[_File]:
    """Return the files to fetch: all safetensors, the primary one first; a pickle only where those are allowed."""
    in_order = sorted(version.files, key=lambda file: not file.primary)
    if safe := [file for file in in_order if file.name.endswith(".safetensors")]:
        return safe
    pickles = [file for file in in_order if file.name.endswith(PICKLES)]
    if pickles and wanted.named_in(config.selection.allow_pickle):
        return pickles[:1]
    there = ", ".join(f"`{file.name[:100]}`" for file in in_order[:6])
    raise _no_weights(wanted, f"has no safetensors, but {there}" if there else "has no files")


def _file(file: _File, config: FetchConfig) -> ManifestFile:
    size = None if file.sizeKB is None else file.sizeKB * 1024
    exact = round(size) if size is not None and abs(size - round(size)) < 1e-3 else None  # some are rounded to 10 bytes
    url = _own(file.downloadUrl, config.civitai_endpoint)
    for name, algorithm in _HASHES:
        if digest := check_digest(algorithm, file.hashes.get(name) or ""):
            return ManifestFile(file.name, exact, algorithm, digest, url)
    return ManifestFile(file.name, exact, url=url)


def _own(url: str, endpoint: str) -> str:
    """Return a URL of one of the site's own hosts as one of the endpoint's, to which the token may go."""
    split = urlsplit(url)
    if split.hostname not in (*OWN_HOSTS, urlsplit(endpoint).hostname):
        return url
    return f"{endpoint}{split.path}{f'?{split.query}' if split.query else ''}"


def _no_weights(wanted: Wanted, what: str) -> ModelError:
    hint = "take another version, or allow its pickle with `GEN_WORKER_ALLOW_PICKLE`, which can run any code"
    return ModelError(
        "no_weights", f"`{wanted.ref}` of Civitai {what} (civitai_no_supported_files)", hint, ref=wanted.ref
    )


def _refusal(error: HttpError, wanted: Wanted, config: FetchConfig) -> ModelError:
    if error.status in (401, 403) and not error.redirected:
        own = "the token in `CIVITAI_API_KEY` may not have it" if config.civitai_token else "it needs a token"
        hint = "set `CIVITAI_API_KEY` to a key of an account that may download it"
        what = f"`{wanted.ref}` of Civitai is refused: {own} (civitai_access_denied)"
        return ModelError("unauthorized", what, hint, ref=wanted.ref)
    if error.status == 404:
        version = f", version `{wanted.version}`" if wanted.version else ""
        hint = (
            f"check the numbers in the address of its page, {config.civitai_endpoint}/models/<id>?modelVersionId=<id>"
        )
        what = f"Civitai has no model `{wanted.repo}`{version} (civitai_not_found)"
        return ModelError("not_found", what, hint, ref=wanted.ref)
    return refusal(error, wanted, "Civitai")
