"""Where models come from: which files a provider says one consists of, and where their bytes are had."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.network.transport import Transport
from gen_worker.fetch.sources import civitai, huggingface, modelscope, tensorhub
from gen_worker.fetch.sources.site import Resolved
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
            return tensorhub.described(wanted, snapshot)
        if not valid_repo(wanted):
            hint = "write the id of a model" if wanted.provider == "civitai" else "write `owner/name`"
            raise ModelError("not_found", f"`{wanted.ref[:200]}` is no ref of a model", hint, ref=wanted.ref)
        return _PROVIDERS[wanted.provider](wanted, config, transport, cancel)
    except ModelError as error:
        error.ref = wanted.ref
        if error.kind == "canceled" or wanted.repo in str(error):
            raise
        raise ModelError(error.kind, f"`{wanted.ref}`: {error}", error.hint, ref=wanted.ref, file=error.file) from error
