"""What tests of endpoints are written with: a client, hub and store on the loopback, tiny models.

with Client("my_endpoint.main") as client:
    assert client.run("greet", name="Ada").output.text == "hello Ada"

with LoopbackHub() as hub:
    hub.add_repo("acme/tiny", make_tiny("sdxl", tmp_path / "tiny"))
    subprocess.run([...], env={**os.environ, **hub.variables(), "TENSORHUB_CACHE_DIR": str(tmp_path / "cache")})

A name is imported when it is first used: pytest loads `gen_worker.testing.plugin` in projects that never use it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gen_worker.testing.client import Client, Job
    from gen_worker.testing.engine import install_engine
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
    from gen_worker.testing.results import Log, Progress, Result
    from gen_worker.testing.stand_ins import FakeModel, fake_model
    from gen_worker.testing.store import LoopbackStore, StoredFile
    from gen_worker.testing.tiny import make_tiny

__all__ = [
    "BadRange",
    "ChangingETag",
    "Client",
    "Corrupt",
    "Cut",
    "ETag",
    "Expire",
    "FakeModel",
    "InProgress",
    "Job",
    "Log",
    "LoopbackHub",
    "LoopbackStore",
    "Name",
    "NoETag",
    "NoRange",
    "NoSize",
    "Oversize",
    "Pointer",
    "Progress",
    "Request",
    "Result",
    "Slow",
    "Stall",
    "Status",
    "StoredFile",
    "Truncate",
    "fake_model",
    "install_engine",
    "make_tiny",
]

_HOMES = {
    "Client": "client",
    "FakeModel": "stand_ins",
    "Job": "client",
    "Log": "results",
    "LoopbackHub": "loopback",
    "LoopbackStore": "store",
    "Progress": "results",
    "Request": "origin",
    "Result": "results",
    "StoredFile": "store",
    "fake_model": "stand_ins",
    "install_engine": "engine",
    "make_tiny": "tiny",
}


if not TYPE_CHECKING:  # else a type checker takes every misspelt name for one that is there

    def __getattr__(name: str) -> Any:
        import importlib

        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"gen_worker.testing.{_HOMES.get(name, 'faults')}"), name)
        globals()[name] = value
        return value
