"""What authors use when they mind a device's memory themselves. The worker does the same for the models it loads."""

import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from gen_worker.api.diagnostics import emit_diagnostic_log
from gen_worker.models.out_of_memory import is_out_of_memory
from gen_worker.models.placement import climb, free_bytes, free_cache, measure, place, possible, reset, rung_of, sizes
from gen_worker.models.rungs import GB, NEXT, Rung, fitting_rung

__all__ = ["apply_low_vram_config", "flush_memory", "with_oom_retry"]

T = TypeVar("T")


def flush_memory() -> None:
    """Collect what nobody refers to any more, and give the GPU the memory that torch keeps for later."""
    free_cache()


def apply_low_vram_config(pipeline: Any, *, mode: str = "", margin_gb: float = 2.0) -> str:
    """Place a pipeline so that it fits, and return how that is: `off`, when it is plainly on its device.

    `mode` is `off`, `vae_only`, `layerwise_fp8`, `model_offload` or `group_offload`; empty: the one that what is free
    on the GPU allows, with `margin_gb` left over, and never an earlier one than it is on. Without a GPU a pipeline
    stays where it is unless `mode` says otherwise. `layerwise_fp8` changes what comes out and is never chosen by
    itself. Raises `ValueError` for a mode that there is not or that the pipeline cannot take.
    """
    device = _device()
    before = rung_of(pipeline)
    if mode:
        rung = _rung(mode)
    elif device == "cpu":
        return before.value
    else:
        free = (free_bytes(device) or 0) + measure(pipeline, on="cuda")
        can = possible(pipeline)
        fitting = fitting_rung(
            sizes(pipeline), free_bytes=free, margin_bytes=int(margin_gb * GB), possible=can - {Rung.LAYERWISE_FP8}
        )
        rung = fitting or max(can - {Rung.LAYERWISE_FP8}, key=list(Rung).index)
        rung = before if before in NEXT[rung] else rung
    placed = place(pipeline, rung, device)
    if placed is not before:
        _tell(pipeline, placed)
    return placed.value


def with_oom_retry(fn: Callable[..., T], *args: Any, pipelines: Any = None, max_retries: int = 2, **kwargs: Any) -> T:
    """Call `fn` and, when the GPU runs out of memory, again with more room; at most `max_retries` times.

    Before each further call memory that is kept for later is given back, and each of `pipelines`, one or several, is
    placed so that it needs less: `vae_only`, then `model_offload`, then `group_offload`. After the last call its error
    is raised; any other error is raised at once.
    """
    given = list(pipelines) if isinstance(pipelines, Iterable) and not hasattr(pipelines, "components") else [pipelines]
    models = [each for each in given if each is not None]
    for _ in range(max_retries):
        try:
            return fn(*args, **kwargs)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        _make_room(models)  # out of the handler, which holds on to what the failed call had
    return fn(*args, **kwargs)


def _make_room(models: list[Any]) -> None:
    device = _device()
    for model in models:
        reset(model)
    free_cache()
    for model in models:
        if (rung := climb(model, device)) is not None:
            _tell(model, rung)
    free_cache()


def _rung(mode: str) -> Rung:
    try:
        return Rung(mode)
    except ValueError:
        choices = ", ".join(f"`{rung}`" for rung in Rung)
        raise ValueError(f"no mode `{mode}`: there are {choices}") from None


def _device() -> str:
    torch: Any = sys.modules.get("torch")  # whoever has a pipeline has loaded it
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"


def _tell(model: Any, rung: Rung) -> None:
    name = type(model).__name__
    emit_diagnostic_log(
        "model_placement", f"`{name}` placed as `{rung}`", {"model": name, "rung": rung.value}, severity="warning"
    )
