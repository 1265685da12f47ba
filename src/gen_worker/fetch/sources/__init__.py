"""Where models come from: which files a provider says one consists of, and where their bytes are had."""

from collections.abc import Sequence
from urllib.parse import urlsplit

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.network.patience import HttpError
from gen_worker.fetch.network.transport import Transport
from gen_worker.fetch.sources import civitai, huggingface, modelscope, tensorhub
from gen_worker.fetch.sources.joined import join
from gen_worker.fetch.sources.site import Resolved, Site, refusal
from gen_worker.models.errors import ModelError
from gen_worker.models.refs import valid_repo
from gen_worker.models.wanted import SnapshotFile, Wanted

__all__ = ["Resolved", "host_of", "resolve"]

_PROVIDERS = {
    "hf": huggingface.resolve,
    "tensorhub": tensorhub.resolve,
    "civitai": civitai.resolve,
    "modelscope": modelscope.resolve,
}


def host_of(wanted: Wanted, config: FetchConfig) -> str:
    """Return whom `resolve` asks about a model, as messages name it."""
    endpoints = {
        "hf": config.hf_endpoint,
        "tensorhub": config.cozy_hub_url,
        "civitai": config.civitai_endpoint,
        "modelscope": config.modelscope_endpoint,
    }
    return f"`{urlsplit(endpoints[wanted.provider]).hostname or wanted.provider}`"


def resolve(
    wanted: Wanted,
    config: FetchConfig,
    transport: Transport,
    cancel: Cancel,
    snapshot: Sequence[SnapshotFile] | None = None,
) -> Resolved:
    """Return what a model consists of now, by its provider or by the snapshot that an orchestrator describes.

    Fetches descriptions only. Every path, digest and commit in the answer is checked. Raises `ModelError`, whose text
    names the ref.
    """
    try:
        if snapshot is not None:
            return _with_parts(tensorhub.described(wanted, snapshot), wanted, config, transport, cancel)
        if not valid_repo(wanted):
            hint = "write the id of a model" if wanted.provider == "civitai" else "write `owner/name`"
            raise ModelError("not_found", f"`{wanted.ref[:200]}` is no ref of a model", hint, ref=wanted.ref)
        resolved = _PROVIDERS[wanted.provider](wanted, config, transport, cancel)
        return resolved if wanted.provider != "tensorhub" else _with_parts(resolved, wanted, config, transport, cancel)
    except ModelError as error:
        error.ref = wanted.ref
        if error.kind == "canceled" or wanted.repo in str(error):
            raise
        raise ModelError(error.kind, f"`{wanted.ref}`: {error}", error.hint, ref=wanted.ref, file=error.file) from error


def _with_parts(
    resolved: Resolved, wanted: Wanted, config: FetchConfig, transport: Transport, cancel: Cancel
) -> Resolved:
    """Return a snapshot of the platform in which files that come in parts stand for their parts."""

    def refused(error: HttpError) -> ModelError:
        if error.status in (401, 403, 410):
            return ModelError("url_expired", f"the signed URL is no longer good: {error}", "try again", ref=wanted.ref)
        return refusal(error, wanted, host_of(wanted, config))

    site = Site(transport, cancel, endpoint="", token="", refusal=refused)  # signed URLs are shown no token
    manifest = resolved.manifest
    files = join(manifest.files, site.document)
    return resolved._replace(manifest=msgspec.structs.replace(manifest, files=files))
