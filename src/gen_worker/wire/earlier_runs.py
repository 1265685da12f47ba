"""How what the earlier wire says of a run reaches a child: in the frame, but for tables of models that are too long."""

import os
from contextlib import suppress

import msgspec

from gen_worker.wire.messages import TENANT_CHARS, EarlierRun

INLINE_BYTES = 4096  # of the tables; a frame has room for so much beside a payload

_Tables = tuple[tuple[str, ...], dict[str, str]]


def packed(run: EarlierRun | None, *, names_models: bool) -> tuple[EarlierRun | None, list[int]]:
    """Return what a frame says of a run, and where tables lie in a memfd that: to be attached last, and to be closed.

    `names_models` is whether the function looks models up at all.
    """
    if run is None:
        return None, []
    run = msgspec.structs.replace(run, tenant_id=run.tenant_id[:TENANT_CHARS], user_id=run.user_id[:TENANT_CHARS])
    bare = msgspec.structs.replace(run, model_ids=(), model_keys={})
    if not names_models:
        return bare, []
    tables = msgspec.msgpack.encode((run.model_ids, run.model_keys))
    if len(tables) <= INLINE_BYTES:
        return run, []
    fd = os.memfd_create("gen-worker-tables", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(tables)
    except BaseException:
        with suppress(OSError):
            os.close(fd)
        raise
    return msgspec.structs.replace(bare, tables_bytes=len(tables)), [fd]


def unpacked(run: EarlierRun, fd: int) -> EarlierRun:
    """Return what is said of a run whose tables lie in a memfd, which is taken over."""
    with open(fd, "rb") as file:
        tables = os.pread(file.fileno(), run.tables_bytes, 0)
    model_ids, model_keys = msgspec.msgpack.decode(tables, type=_Tables)
    return msgspec.structs.replace(run, model_ids=model_ids, model_keys=model_keys, tables_bytes=0)
