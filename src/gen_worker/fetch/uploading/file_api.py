"""Files of the earlier generation: each is written whole, at a route of its own.

`PUT <base>/api/v1/file/<ref>` writes a file, `POST` one that is not there yet, `HEAD` and `GET` read it.
"""

from collections.abc import Callable
from contextlib import suppress
from urllib.parse import quote

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.network.origins import Url
from gen_worker.fetch.network.transport import Transport
from gen_worker.fetch.uploading.asking import Answer, ask
from gen_worker.fetch.uploading.failure import UploadError
from gen_worker.fetch.uploading.pace import Pace, may_pass, pause_after
from gen_worker.fetch.uploading.source import Source
from gen_worker.wire.fetching import Destination, Upload
from gen_worker.wire.messages import Stored


class _Meta(msgspec.Struct):
    ref: str | None = ""
    size_bytes: int | None = None
    sha256: str | None = ""
    mime_type: str | None = ""


def file_url(base_url: str, ref: str) -> str:
    """Return where a file is, each part of its name percent-encoded."""
    return f"{base_url.rstrip('/')}/api/v1/file/{'/'.join(quote(part, safe='') for part in ref.split('/'))}"


def file_headers(destination: Destination) -> dict[str, str]:
    """Return what the file API must be shown."""
    headers = {"Authorization": f"Bearer {destination.token}"} if destination.token else {}
    if owner := destination.owner:
        headers["X-Cozy-Tenant-Id"] = owner if owner.isascii() and owner.isprintable() else quote(owner)
    if destination.traceparent:
        headers["traceparent"] = destination.traceparent
    return headers


def output_ref(request_id: str, ref: str) -> str:
    """Return under which name a run's file is stored: in the run's own folder, whether its author wrote that or not."""
    folder = f"runs/{request_id}/outputs/"
    return ref if ref.startswith(folder) else folder + ref


def write_file(
    order: Upload,
    source: Source,
    transport: Transport,
    pace: Pace,
    cancel: Cancel,
    on_progress: Callable[[int, int], None],
) -> Stored:
    """Write one file and return what the API says of it; raise `UploadError`, of the kind `exists` if it is there."""
    destination = order.destination
    ref = output_ref(destination.request_id, order.ref)
    url = file_url(destination.base_url, ref)
    headers = {**file_headers(destination), "Content-Type": "application/octet-stream"}
    digests = source.digests(cancel)
    failures = 0
    while True:
        sent = 0

        def count(size: int) -> None:
            nonlocal sent
            sent += size
            on_progress(max(0, min(sent, order.length)), order.length)

        body = source.part(0, order.length, count)
        try:
            method = "POST" if order.create else "PUT"
            answer = ask(transport, method, url, headers=headers, body=body, cancel=cancel)
            if answer.status < 300:
                return _stored(answer, order, ref, digests.sha256)
            raise _refused(answer, ref, Url(url))
        except UploadError as error:
            failures += 1
            if not error.retryable or failures >= pace.part_tries:
                raise
        cancel.wait(pause_after(failures, pace))


def _stored(answer: Answer, order: Upload, ref: str, sha256: str) -> Stored:
    meta = _Meta()
    with suppress(msgspec.MsgspecError, RecursionError):  # it need not describe what it wrote
        meta = msgspec.json.decode(answer.content, type=_Meta)
    if (meta.size_bytes or order.length) != order.length or (meta.sha256 or sha256).lower() != sha256:
        raise UploadError("transfer", f"`{ref}` is stored with other bytes than were sent", retryable=True)
    owner = order.destination.owner
    return Stored(meta.ref or ref, order.length, owner, meta.mime_type or order.mime_type, sha256)


def _refused(answer: Answer, ref: str, url: Url) -> UploadError:
    status, who = answer.status, f"`{url.origin}`"
    if status in (401, 403):
        return UploadError("auth", f"`{ref}` was not taken: {who} refuses the run's token ({status})", status=status)
    if status == 409:
        return UploadError("exists", f"`{ref}` already exists", status=status)
    text = f"`{ref}` was not taken: {who} answers {status}"
    return UploadError("too_large" if status == 413 else "transfer", text, retryable=may_pass(status), status=status)
