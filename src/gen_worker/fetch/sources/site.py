"""Asking a provider's site about one model: small documents, listings, and the precision of weights it keeps."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Annotated, NamedTuple, TypeAlias, TypeVar

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.network.digests import digest_of
from gen_worker.fetch.network.links import Fresh
from gen_worker.fetch.network.origins import Url
from gen_worker.fetch.network.patience import HttpError
from gen_worker.fetch.network.transport import Response, Transport, translated
from gen_worker.models.errors import ModelError
from gen_worker.models.headers import header_length, parse_header
from gen_worker.models.manifest import Manifest, ManifestFile
from gen_worker.models.selection import Asks, Known, Selection, SelectionOptions, select
from gen_worker.models.wanted import Wanted
from gen_worker.models.weights import UNKNOWN

HEAD_BYTES = 256 << 10  # most headers are shorter: that of SDXL's unet has 200 KiB
DOCUMENT_BYTES = 64 << 20
AT_ONCE = 4
WRONG_AT_MOST = 3  # answers in a row with another content
CUTS = 5  # answers in a row that may end too soon

T = TypeVar("T")
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
"""Bytes of a file, as a site says them."""


class Resolved(NamedTuple):
    """What a model consists of now, and what its bytes are asked for with."""

    manifest: Manifest
    token: str = ""
    token_for: str = ""
    """The URL whose origin may see the token."""

    fresh: Fresh | None = None

    def __repr__(self) -> str:
        return f"<{self.manifest.ref}: {len(self.manifest.files)} files>"  # the token is nobody's to see


class Page(NamedTuple):
    """One answer of a listing."""

    body: bytes
    headers: Mapping[str, str]


class Site:
    """A provider's site, asked about one model. `refusal` makes of a status above 400 what people read."""

    def __init__(
        self,
        transport: Transport,
        cancel: Cancel,
        *,
        endpoint: str,
        token: str,
        refusal: Callable[[HttpError], ModelError],
    ) -> None:
        self.endpoint = endpoint
        self._transport = transport
        self._cancel = cancel
        self._token = token
        self._refusal = refusal

    def resolved(self, manifest: Manifest, fresh: Fresh | None = None) -> Resolved:
        """Return a manifest with what its bytes are asked for with."""
        return Resolved(manifest, self._token, self.endpoint, fresh)

    def until(self, cancel: Cancel) -> "Site":
        """Return this site, asked until something else is canceled."""
        return Site(self._transport, cancel, endpoint=self.endpoint, token=self._token, refusal=self._refusal)

    def page(self, url: str) -> Page:
        """Return a document and the headers it came with."""
        return self._asked(url, lambda response: Page(response.read(DOCUMENT_BYTES), response.headers))

    def document(self, file: ManifestFile) -> bytes:
        """Return the content of a small file; raise `ModelError` when it is not what its digest says."""
        for _ in range(WRONG_AT_MOST):
            content = self.page(file.url).body
            if _is_content(content, file):
                return content
        what = f"`{file.path}` comes with another content than its listing says, {WRONG_AT_MOST} times"
        hint = "check the endpoint, or tell who owns the repository"
        raise ModelError("digest_mismatch", what, hint, file=file.path)

    def json(self, url: str, kind: type[T]) -> T:
        """Return a JSON document of an expected shape."""
        return decoded(self.page(url).body, kind, url)

    def precision(self, url: str, path: str) -> str:
        """Return what the weights in a safetensors file are, from its first bytes.

        `UNKNOWN` when they are no such file: that is for the download to tell, which checks every byte.
        """
        try:
            start = self._first_bytes(url, HEAD_BYTES)
            before = header_length(start, path)
            return parse_header(start if before <= len(start) else self._first_bytes(url, before), None, path).precision
        except ModelError as error:
            if error.kind != "load_failed":
                raise
            return UNKNOWN

    def check(self, url: str) -> None:
        """Raise `ModelError` when a file is not given to whoever asks."""
        self._first_bytes(url, 1)

    def _first_bytes(self, url: str, count: int) -> bytes:
        def take(response: Response) -> bytes:
            buffer = bytearray(count)
            view, at = memoryview(buffer), 0
            while at < count and (came := response.read_into(view[at:])):
                at += came
            return bytes(view[:at])

        return self._asked(url, take, {"Range": f"bytes=0-{count - 1}"})

    def _asked(self, url: str, take: Callable[[Response], T], headers: Mapping[str, str] = {}) -> T:
        """Return what is taken of an answer; ask again when it is cut short."""
        for cuts in range(1, CUTS + 1):
            try:
                with self._transport.open(
                    url, headers=headers, token=self._token, token_for=self.endpoint, cancel=self._cancel
                ) as response:
                    return take(response)
            except HttpError as error:
                raise self._refusal(error) from error
            except (OSError, HTTPException) as error:
                self._cancel.raise_if_set()
                if cuts == CUTS:
                    raise translated(error, Url(url)) from error
        raise AssertionError("the last cut raises")


def _is_content(content: bytes, file: ManifestFile) -> bool:
    if not file.digest:
        return True
    digest = digest_of(file.algorithm, len(content))
    digest.update(memoryview(content))
    return digest.hexdigest() == file.digest


def decoded(body: bytes, kind: type[T], url: str) -> T:
    """Return a JSON document of an expected shape; raise `ModelError` for another."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as error:
        raise ModelError("download_failed", f"`{Url(url).shown}` answers something else: {error}") from None


def selected(
    site: Site, files: Iterable[ManifestFile], wanted: Wanted, options: SelectionOptions
) -> tuple[Selection, tuple[ManifestFile, ...]]:
    """Return which of a repository's files are needed, looking into those that decide it."""
    by_path = {file.path: file for file in files}
    listing = {path: file.size for path, file in by_path.items()}
    known = Known()
    with ThreadPoolExecutor(AT_ONCE, "gen-worker-ask") as threads:
        while isinstance(answer := select(listing, wanted, options, known), Asks):
            documents = threads.map(lambda path: site.document(by_path[path]), answer.documents)
            precisions = threads.map(lambda path: site.precision(by_path[path].url, path), answer.precisions)
            known = Known(
                {**known.documents, **dict(zip(answer.documents, documents, strict=True))},
                {**known.precisions, **dict(zip(answer.precisions, precisions, strict=True))},
            )
    return answer, tuple(by_path[path] for path in answer.files)


def refusal(error: HttpError, wanted: Wanted, site: str) -> ModelError:
    """Return what people read when a site will not answer, for reasons that are the same at all of them."""
    ref = wanted.ref
    if error.status == 429:
        hint = "wait, or set its token: who is known may ask more often"
        return ModelError("rate_limited", f"{site} is asked too often: {error}", hint, ref=ref)
    if error.status >= 500:
        return ModelError("unreachable", f"{site} is out of order: {error}", "try again later", ref=ref)
    return ModelError("download_failed", f"{site} does not give `{ref}`: {error}", "", ref=ref)
