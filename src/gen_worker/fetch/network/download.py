"""Download one file: resumed where it was left, verified, and visible only when it is whole.

The caller holds the lock of the file's blob.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.network.answers import ChangedError, WrongError
from gen_worker.fetch.network.digests import POINTER, POINTER_BYTES
from gen_worker.fetch.network.links import Fresh, Link
from gen_worker.fetch.network.part import Part
from gen_worker.fetch.network.patience import FOR_FILES, HttpError, Patience, Tries, delay
from gen_worker.fetch.network.pieces import PIECE_BYTES
from gen_worker.fetch.network.pull import Means, PointerError, Pull
from gen_worker.fetch.network.traffic import Traffic
from gen_worker.fetch.network.transport import Transport
from gen_worker.models.errors import ModelError, ModelErrorKind
from gen_worker.models.manifest import ManifestFile

WRONG_AT_MOST = 3  # what is wrong so often was not damaged on its way
CHANGED_AT_MOST = 2  # a server whose answers do not fit together so often is asked for the whole file at once


def download(
    file: ManifestFile,
    to: Path,
    *,
    ref: str,
    transport: Transport,
    token: str = "",
    token_for: str = "",
    fresh: Fresh | None = None,
    on_bytes: Callable[[int], None],
    on_retry: Callable[[], None],
    cancel: Cancel,
    stall_timeout_s: float,
    connections: int = 4,
    piece_bytes: int = PIECE_BYTES,
    patience: Patience = FOR_FILES,
) -> int:
    """Have a file be at `to`, whole and as its manifest says; return how many bytes came over the network for it.

    When it fails, what is there of it stays in `<to>.part` and `<to>.part.map`. `on_bytes` is told of bytes that are
    there, also of those that were found, and of a negative number when they are thrown away; `on_retry` is told when
    something is tried again. `fresh` returns the file with a new URL for a signed one that has ended. Raises
    `ModelError`.
    """
    with _named(ref, file.path):
        if to.exists():
            on_bytes(to.stat().st_size)
            return 0
        means = Means(
            link=Link(file, transport, token=token, token_for=token_for, fresh=fresh),
            traffic=Traffic(patience, stall_timeout_s, on_bytes),
            patience=patience,
            cancel=cancel,
            on_retry=on_retry,
            connections=connections,
            piece_bytes=piece_bytes,
        )
        part = Part(to)
        try:
            part.publish(_pull(file, part, means))
        finally:
            part.close()
        return means.traffic.received


def _pull(file: ManifestFile, part: Part, means: Means) -> int:
    """Have the part hold the whole file; return the file's size."""
    tries = Tries(means.patience)
    gains = changed = wrong = 0
    while True:
        pull = Pull(file, part, means, ranges=changed < CHANGED_AT_MOST)
        try:
            _check(file, part, pull, pull.run())
            return pull.size
        except ChangedError as error:
            changed += 1
            if gains != means.traffic.gains:
                gains = means.traffic.gains
                tries.gained()
            seconds = _after(tries, error, means)
        except WrongError as error:
            wrong += 1
            if wrong == WRONG_AT_MOST:
                _throw_away(part, means)
                raise _mismatch(str(error)) from error
            seconds = delay(means.patience, wrong)
        except PointerError as error:
            _throw_away(part, means)
            raise _mismatch("a Git LFS pointer comes instead of the file") from error
        part.discard()
        means.traffic.lost()
        means.on_retry()
        means.cancel.wait(seconds)


def _after(tries: Tries, error: ChangedError, means: Means) -> float:
    try:
        return tries.failed(ConnectionError())
    except ConnectionError:
        text = f"the answers of `{means.link.url.origin}` do not fit together: {error}"
        raise ModelError("download_failed", text, "try again later, or ask another mirror") from error


def _check(file: ManifestFile, part: Part, pull: Pull, digest: str) -> None:
    if 0 < pull.size <= POINTER_BYTES:
        view = memoryview(bytearray(POINTER_BYTES))
        if bytes(view[: part.read(view, 0)]).startswith(POINTER):
            raise PointerError
    if digest != file.digest:
        raise WrongError(f"its {file.algorithm} is {digest}, not {file.digest}")


def _throw_away(part: Part, means: Means) -> None:
    part.remove()
    means.traffic.lost()


def _mismatch(text: str) -> ModelError:
    hint = "what is served is not what the listing promises: check the endpoint, or tell who owns the repository"
    return ModelError("digest_mismatch", text, hint)


@contextmanager
def _named(ref: str, file: str) -> Iterator[None]:
    """Have every error name the ref and the file."""
    try:
        yield
    except HttpError as error:
        raise _refused(error, ref, file) from error
    except ModelError as error:
        if error.kind == "canceled":
            raise
        text = f"`{file}` of `{ref}`: {error}"
        raise ModelError(error.kind, text, error.hint, ref=ref, file=file) from error


def _refused(error: HttpError, ref: str, file: str) -> ModelError:
    kind, hint = _REFUSED.get(error.status, ("unreachable" if error.status >= 500 else "download_failed", "try again"))
    if error.headers.get("x-error-code") == "GatedRepo":
        kind, hint = "gated", "accept its terms on the provider's site, with the account that the token is of"
    return ModelError(kind, f"`{file}` of `{ref}`: {error}", hint, ref=ref, file=file)


_SIGN_IN = "set the provider's token to one that may read this"
_REFUSED: dict[int, tuple[ModelErrorKind, str]] = {
    401: ("unauthorized", _SIGN_IN),
    403: ("unauthorized", _SIGN_IN),
    404: ("file_not_found", "it may have been removed: look at the repository, or bind another revision"),
    408: ("unreachable", "try again later"),
    410: ("file_not_found", "it was removed: bind another revision"),
    429: ("rate_limited", "wait, or set a token: providers allow more to whom they know"),
}
