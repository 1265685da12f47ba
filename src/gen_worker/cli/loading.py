"""The models of a job that runs in the command's own process: on this machine, and in the slots of its instance."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gen_worker.cli.events import Events
from gen_worker.cli.failure import say, say_error
from gen_worker.cli.watching import Watch
from gen_worker.models.errors import ModelError
from gen_worker.models.snapshot import Snapshot
from gen_worker.models.wanted import Wanted
from gen_worker.settings import Settings

if TYPE_CHECKING:
    from gen_worker.api.context import RequestContext
    from gen_worker.fetch.config import FetchConfig
    from gen_worker.wire.messages import Degraded, Loading, SlotModel, Warned
    from gen_worker_child.models.plane import Models


@contextmanager
def slot_models(slots: Mapping[str, Wanted], config: "FetchConfig", watch: Watch) -> "Iterator[list[SlotModel]]":
    """Have the model of each slot on this machine until the body ends; raise `Failure` when one cannot be had."""
    if not slots:
        yield []
        return
    from gen_worker.cli.fetching import failure_of, fetched

    with fetched(slots.values(), config, watch) as outcomes:
        failed = [outcome for outcome in outcomes.values() if isinstance(outcome, ModelError)]
        for error in failed[1:]:
            say_error(str(error), error.hint)
        if failed:
            raise failure_of(failed[0])
        here = {wanted: each.snapshot for wanted, each in outcomes.items() if not isinstance(each, ModelError)}
        allowed = config.selection.allow_pickle
        yield [_slot_model(slot, wanted, here[wanted], allowed) for slot, wanted in slots.items()]


def _slot_model(slot: str, wanted: Wanted, snapshot: Snapshot, allow_pickle: Sequence[str]) -> "SlotModel":
    from gen_worker.wire.messages import SlotModel

    pickle = wanted.named_in(allow_pickle)
    return SlotModel(slot, wanted.ref, snapshot.path, snapshot.key, wanted.dtype, wanted.subfolder, pickle)


def open_models(settings: Settings, events: Events, current: "Callable[[], RequestContext | None]") -> "Models":
    """Return the models of this process, as a child has them; `current` is the job whose pipelines tell their steps."""
    from gen_worker.wire.messages import Loading
    from gen_worker_child.models.plane import Models

    def report(what: "Degraded | Loading | Warned") -> None:
        if not isinstance(what, Loading):
            events.hide()
            say("warning", what.message)
        elif events.form == "bar" and what.bytes_total:
            progress = {"progress": what.bytes_done / what.bytes_total, "stage": "loading"}
            events.show("", "", "progress", progress, 0.0)

    models = Models(
        device=settings.local_device or ("cuda" if has_cuda() else "cpu"),
        budget_bytes=int(settings.max_vram_gb * (1 << 30)),
        margin_bytes=int(settings.vram_margin_gb * (1 << 30)),
        derived=str(settings.cache_dir / "cas/derived"),
        report=report,
    )
    models.current = current
    return models


def has_gpu_device() -> bool:
    """Whether a driver shows a GPU; loads nothing to find out."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))


def gpu_devices() -> int:
    """Return how many GPUs this process may use, as far as a driver's files tell; loads nothing to find out."""
    there = sum(path.name.removeprefix("nvidia").isdecimal() for path in Path("/dev").glob("nvidia*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return there if visible is None else min(there, len([each for each in visible.split(",") if each.strip()]))


def has_cuda() -> bool:
    """Whether torch can use a GPU; loads it only where a driver shows one."""
    if not has_gpu_device():
        return False
    import torch

    return bool(torch.cuda.is_available())
