"""What the handlers of producers are given: endpoints that make models or data sets rather than answers."""

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from gen_worker.api.context import RequestContext
from gen_worker.api.decorator import Kind
from gen_worker.api.platform import Platform
from gen_worker.api.types import Compute
from gen_worker.outputs import safe_ref

CHECKPOINT_FOLDER = ".gen-worker-run/checkpoints"


class ProducerContext(RequestContext):
    """The part that all producers share."""

    __slots__ = ("_platform", "_publishes", "compute", "destination", "hf_token", "source", "source_path")

    def __init__(
        self,
        *,
        hf_token: str = "",
        compute: Compute | None = None,
        source_info: Mapping[str, Any] | None = None,
        source_path: str | None = None,
        destination_info: Mapping[str, Any] | None = None,
        platform: Platform | None = None,
        publishes: bool = True,
        **request: Any,
    ) -> None:
        super().__init__(**request)
        self._platform = platform
        self._publishes = publishes
        self.hf_token = hf_token
        self.compute = compute or Compute()
        self.source = dict(source_info or {})
        self.source_path = source_path
        self.destination = dict(destination_info or {})


class ConversionContext(ProducerContext):
    """The request of a conversion, with folders to work in."""

    __slots__ = ("__weakref__", "_checkpoint_root", "_scratch")

    def __init__(self, *, checkpoint_root: str | os.PathLike[str] = CHECKPOINT_FOLDER, **request: Any) -> None:
        super().__init__(**request)
        self._checkpoint_root = Path(checkpoint_root)
        self._scratch: Path | None = None

    def mktemp(self) -> Path:
        """Make an empty folder that goes away with this context."""
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="gen-worker-"))
            weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=self._scratch))

    def checkpoint_dir(self, *, key: str) -> Path:
        """Return a folder that outlives this attempt: the same one for every attempt of the job with this key."""
        folder = self._checkpoint_root / safe_ref(self._job_id or self._request_id) / safe_ref(key)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


class DatasetContext(ProducerContext):
    """The request of an endpoint that makes a data set."""

    __slots__ = ()


class TrainingContext(ProducerContext):
    """The request of a training."""

    __slots__ = ()


_CONTEXTS: dict[Kind, type[RequestContext]] = {
    "inference": RequestContext,
    "conversion": ConversionContext,
    "dataset": DatasetContext,
    "training": TrainingContext,
}


@contextmanager
def begin(ctx: RequestContext, payload: msgspec.Struct) -> Iterator[None]:
    """Have a producer's source here and its context filled from the payload; let go of what it held in the end."""
    yield


def context_class(kind: Kind) -> type[RequestContext]:
    """Return the context that the handlers of an endpoint of this kind receive."""
    return _CONTEXTS[kind]
