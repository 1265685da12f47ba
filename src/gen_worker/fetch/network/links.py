"""Where the bytes of a file come from at the moment: its URL, what that redirects to, and a new one when it is over."""

import threading
from collections.abc import Callable

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.network.origins import Url
from gen_worker.fetch.network.patience import HttpError
from gen_worker.fetch.network.transport import Response, Transport
from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import ManifestFile

_OVER = (401, 403, 410)  # what signed URLs answer when their time is over
Fresh = Callable[[ManifestFile, Cancel], ManifestFile]
"""Returns a file with a new URL when the one it has is over, unless it is canceled. For any thread."""


class Link:
    """Asks for ranges of a file. For any number of threads."""

    def __init__(
        self, file: ManifestFile, transport: Transport, *, token: str, token_for: str, fresh: Fresh | None
    ) -> None:
        self._transport = transport
        self._token = token
        self._token_for = token_for
        self._fresh = fresh
        self._lock = threading.Lock()
        self._file = file
        self._at = ""  # where the URL redirected to; that is asked at once next time
        self.fresh_urls = 0
        """How often there was a new URL. It may name another copy of the file, with an ETag of its own."""
        self._renewals = 0
        self._renewed_at = -1  # how many bytes there were when the last renewal was made

    @property
    def url(self) -> Url:
        """The file's URL at the moment."""
        return Url(self._file.url)

    def ask(self, headers: Callable[[], dict[str, str]], cancel: Cancel, gained: Callable[[], int]) -> Response:
        """Return the answer to one request, with a new URL if the one there is has ended.

        `headers` is asked anew for each URL. `gained` tells how many bytes have come so far: a renewal that brought
        none is not repeated. Raises what `Transport.once` raises.
        """
        while True:
            with self._lock:
                file, at, renewals = self._file, self._at, self._renewals
            token = "" if file.signed else self._token
            try:
                response = self._transport.once(
                    at or file.url,
                    headers=headers(),
                    token=token,
                    token_for=self._token_for or file.url,
                    cancel=cancel,
                    accepted=(416,),
                )
            except HttpError as error:
                if error.status not in _OVER:
                    raise
                self._renew(error, renewals, cancel, gained)
                continue
            with self._lock:
                if renewals == self._renewals and str(response.url) != file.url:
                    self._at = str(response.url)
            return response

    def _renew(self, error: HttpError, renewals: int, cancel: Cancel, gained: Callable[[], int]) -> None:
        with self._lock:
            if renewals != self._renewals:
                return  # another thread was told the same, and has done it
            there = gained()
            if self._at and self._at != self._file.url:
                self._at = ""  # what it redirected to is over: the URL itself redirects to a new one
            elif self._fresh is None or there == self._renewed_at:
                raise self._over(error) from error
            else:
                self._file = self._fresh(self._file, cancel)
                self._renewed_at = there
                self.fresh_urls += 1
            self._renewals += 1

    def _over(self, error: HttpError) -> Exception:
        if self._file.signed or error.redirected:
            return ModelError("url_expired", f"the signed URL is no longer good: {error}", "try again")
        return error
