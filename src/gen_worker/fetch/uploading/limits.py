"""How large the files of a job may be: as the operator set it, and as the job's token says. Pure."""

import base64
import binascii

import msgspec

from gen_worker.fetch.uploading.failure import UploadError


class Claims(msgspec.Struct, frozen=True):
    """What a job's token allows; 0: no limit."""

    max_total_bytes: int = 0
    """Of all files that are on their way at once."""

    max_bytes_per_file: int = 0


class _Payload(msgspec.Struct):
    max_total_bytes: int | float | None = None
    max_bytes_per_file: int | float | None = None


def claims_of(token: str) -> Claims:
    """Return what a JWT claims; its signature is for the store to check. A token of another kind claims nothing."""
    parts = token.split(".")
    if len(parts) != 3:
        return Claims()
    try:
        text = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        payload = msgspec.json.decode(text, type=_Payload)
    except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError):
        return Claims()
    return Claims(_limit(payload.max_total_bytes), _limit(payload.max_bytes_per_file))


def _limit(claim: int | float | None) -> int:
    return max(0, int(claim or 0))


def check_size(ref: str, size: int, claims: Claims, max_upload_bytes: int, *, empty: bool = False) -> None:
    """Raise `UploadError` for a file without bytes, unless it may be `empty`, or with more than a limit allows."""
    if size <= 0 and not empty:
        raise UploadError("transfer", f"`{ref}` has no bytes: the store keeps no empty files")
    limits = (
        (max_upload_bytes, "`WORKER_MAX_UPLOAD_BYTES`"),
        (claims.max_bytes_per_file, "`max_bytes_per_file` of the job's token"),
        (claims.max_total_bytes, "`max_total_bytes` of the job's token"),
    )
    for limit, name in limits:
        if 0 < limit < size:
            text = f"`{ref}` has {size} bytes, the limit is {limit}: {name}"
            raise UploadError("too_large", text, limit_bytes=limit)
