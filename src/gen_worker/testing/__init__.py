"""What tests of endpoints are written with: a hub of models on the loopback, and tiny models to put on it.

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
    Name,
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
from gen_worker.testing.tiny import make_tiny

__all__ = [
    "BadRange",
    "ChangingETag",
    "Corrupt",
    "Cut",
    "ETag",
    "Expire",
    "LoopbackHub",
    "Name",
    "NoRange",
    "NoSize",
    "Oversize",
    "Pointer",
    "Request",
    "Slow",
    "Stall",
    "Status",
    "Truncate",
    "make_tiny",
]
