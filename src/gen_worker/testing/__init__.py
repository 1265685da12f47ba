"""What tests of endpoints are written with: a hub of models and a store of files on the loopback, and tiny models.

with LoopbackHub() as hub:
    hub.add_repo("acme/tiny", make_tiny("sdxl", tmp_path / "tiny"))
    subprocess.run([...], env={**os.environ, **hub.variables(), "TENSORHUB_CACHE_DIR": str(tmp_path / "cache")})
"""

from gen_worker.testing.faults import (
    BadRange,
    ChangingETag,
    Corrupt,
    Cut,
    ETag,
    Expire,
    InProgress,
    Name,
    NoETag,
    NoRange,
    NoSize,
    Oversize,
    Pointer,
    Slow,
    Stall,
    Status,
    Truncate,
)
from gen_worker.testing.loopback import LoopbackHub
from gen_worker.testing.origin import Request
from gen_worker.testing.store import LoopbackStore, StoredFile
from gen_worker.testing.tiny import make_tiny

__all__ = [
    "BadRange",
    "ChangingETag",
    "Corrupt",
    "Cut",
    "ETag",
    "Expire",
    "InProgress",
    "LoopbackHub",
    "LoopbackStore",
    "Name",
    "NoETag",
    "NoRange",
    "NoSize",
    "Oversize",
    "Pointer",
    "Request",
    "Slow",
    "Stall",
    "Status",
    "StoredFile",
    "Truncate",
    "make_tiny",
]
