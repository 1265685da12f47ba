"""Models of Hugging Face, and of mirrors that have its routes (https://huggingface.co/docs/hub/api).

The routes are those that `huggingface_hub` asks; they are asked here so that a cancel, the proxies, the authorities and
the limits that hold for files hold for them, too. Large files come over plain HTTP by `/resolve`, also those that the
hub keeps in Xet.
"""

import re
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import HUGGING_FACE, FetchConfig
from gen_worker.fetch.network.patience import HttpError
from gen_worker.fetch.network.transport import Transport
from gen_worker.fetch.sources.site import Resolved, Site, Size, decoded, refusal, selected
from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import Manifest, ManifestFile
from gen_worker.models.paths import check_commit, check_digest, check_path
from gen_worker.models.wanted import Wanted

PAGES = 1000  # of a listing, each with 1000 entries
_NEXT = re.compile(r'<([^<>]+)>\s*;\s*rel="?next"?')
_BAD_TOKEN = (
    "invalid credentials in authorization header"  # the one text that tells a bad token from a hidden repository
)


def _stored_token(config: FetchConfig) -> str:
    """Return the token that `hf auth login` stored; it is for Hugging Face itself, and goes to no mirror."""
    if config.hf_endpoint != HUGGING_FACE:
        return ""
    from huggingface_hub import get_token

    return get_token() or ""


class _About(msgspec.Struct):
    sha: str
    gated: bool | str | None = None


class _Lfs(msgspec.Struct):
    oid: str
    size: Size | None = None


class _Entry(msgspec.Struct):
    type: str
    path: str
    size: Size | None = None
    oid: str = ""
    lfs: _Lfs | None = None


def resolve(wanted: Wanted, config: FetchConfig, transport: Transport, cancel: Cancel) -> Resolved:
    """Return what a model consists of at the commit that its revision stands for now; raise `ModelError`."""
    token = config.hf_token or _stored_token(config)
    site = Site(
        transport,
        cancel,
        endpoint=config.hf_endpoint,
        token=token,
        refusal=lambda error: _refusal(error, wanted, config),
    )
    api = f"{config.hf_endpoint}/api/models/{wanted.repo}"
    about = site.json(f"{api}/revision/{quote(wanted.revision or 'main', safe='')}", _About)
    commit = check_commit(about.sha)
    at_commit = f"{config.hf_endpoint}/{wanted.repo}/resolve/{commit}"
    entries = _entries(site, f"{api}/tree/{commit}?recursive=true&expand=false")
    listing = tuple(_file(entry, at_commit) for entry in entries if entry.type == "file")
    selection, files = selected(site, listing, wanted, config.selection)
    if about.gated and files:  # the listing is everybody's: better told now than by the first download
        site.check(min(files, key=lambda file: file.size or 0).url)
    return site.resolved(Manifest(wanted.ref, commit, files, selection.notes, listing))


def _entries(site: Site, url: str) -> Iterator[_Entry]:
    for _ in range(PAGES):
        page = site.page(url)
        yield from decoded(page.body, list[_Entry], url)
        following = _NEXT.search(page.headers.get("link", ""))
        if following is None:
            return
        url = f"{url.partition('?')[0]}?{urlsplit(following[1]).query}"  # a mirror's link may lead to the hub itself
    raise ModelError("bad_manifest", f"the listing of `{url.partition('?')[0]}` does not end")


def _file(entry: _Entry, at_commit: str) -> ManifestFile:
    path = check_path(entry.path)
    url = f"{at_commit}/{quote(path)}"
    if entry.lfs is not None:
        digest = check_digest("sha256", entry.lfs.oid)
        return ManifestFile(path, entry.lfs.size, "sha256", digest, url, etag=digest)
    digest = check_digest("git-sha1", entry.oid)
    return ManifestFile(path, entry.size, "git-sha1", digest, url, etag=digest)


def _refusal(error: HttpError, wanted: Wanted, config: FetchConfig) -> ModelError:
    """Return what people read for a status, by the codes that the hub gives with it."""
    code, ref = error.headers.get("x-error-code", ""), wanted.ref
    page = f"{config.hf_endpoint}/{wanted.repo}"
    if code == "GatedRepo":
        has = "set `HF_TOKEN` to your token" if not config.hf_token else "use the token of an account that was let in"
        what = f"`{ref}` is gated: its terms have to be accepted"
        return ModelError("gated", what, f"accept them at {page} and {has}", ref=ref)
    if error.status == 401 and error.headers.get("x-error-message", "").lower().startswith(_BAD_TOKEN):
        hint = f"set `HF_TOKEN` to a token of {config.hf_endpoint}/settings/tokens that is still good"
        return ModelError(
            "unauthorized", f"the token in `HF_TOKEN` is refused, as `{ref}` was asked for", hint, ref=ref
        )
    if code == "RevisionNotFound":
        what = f"`{wanted.repo}` has no revision `{wanted.revision or 'main'}`"
        return ModelError("revision_not_found", what, f"see {page}/tree/main for those there are", ref=ref)
    if code == "EntryNotFound":
        return ModelError("file_not_found", f"`{ref}` lacks a file that it lists: {error}", "try again", ref=ref)
    if code == "RepoNotFound" or error.status in (401, 404):
        what = f"`{ref}` is not on {config.hf_endpoint}, or it is private"
        own = "set `HF_TOKEN` if it is private" if not config.hf_token else "the account of `HF_TOKEN` may not see it"
        return ModelError("not_found", what, f"check the name at {page}; {own}", ref=ref)
    if error.status == 403 and not error.redirected:
        what = f"the token in `HF_TOKEN` may not read `{ref}`" if config.hf_token else f"`{ref}` needs a token"
        hint = f"set `HF_TOKEN` to a token of {config.hf_endpoint}/settings/tokens that may read it"
        return ModelError("unauthorized", what, hint, ref=ref)
    return refusal(
        error, wanted, "Hugging Face" if config.hf_endpoint.endswith("huggingface.co") else config.hf_endpoint
    )
