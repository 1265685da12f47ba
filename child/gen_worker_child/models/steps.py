"""Progress of a pipeline, told by itself: its denoising steps reach the job that runs it.

Every pipeline of diffusers counts its steps on the bar that its `progress_bar` returns, whatever callbacks it takes.
Putting one attribute on the instance is all that is needed: its class, its signature and the author's own callbacks
stay as they are. A job that was asked to end does so at its next step.
"""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from gen_worker.api.context import RequestContext

Current = Callable[[], RequestContext | None]


def watch_steps(pipeline: Any, current: Current) -> None:
    """Have a pipeline tell its steps to the job that `current` returns, in the thread that runs it.

    An author who calls `ctx.progress` is not talked over: from then on the steps of that job are not told. Objects
    without a `progress_bar` are left alone.
    """
    bar_of = getattr(pipeline, "progress_bar", None)
    if not callable(bar_of) or hasattr(bar_of, "watched"):
        return

    def progress_bar(*arguments: Any, **options: Any) -> Any:
        ctx = current()
        bar = bar_of(*arguments, **options)
        return bar if ctx is None else _Steps(bar, ctx)

    progress_bar.watched = True  # type: ignore[attr-defined]
    pipeline.progress_bar = progress_bar
    if not hasattr(pipeline, "_progress_bar_config"):
        pipeline.set_progress_bar_config(disable=True)  # nobody watches the log of a child for it


class _Steps:
    """A progress bar that also tells a job; everything else of it is the bar's own."""

    def __init__(self, bar: Any, ctx: RequestContext) -> None:
        self._bar = bar
        self._ctx = ctx
        self._total = _total(bar)
        self._done = 0
        ctx.raise_if_cancelled("canceled")

    def update(self, steps: float | None = 1) -> Any:
        """Count steps; raise `CanceledError` once the job was asked to end."""
        self._count(int(steps or 1))
        return self._bar.update(steps)

    def __iter__(self) -> Iterator[Any]:
        for each in self._bar:
            yield each
            self._count(1)

    def _count(self, steps: int) -> None:
        self._done += steps
        self._ctx.raise_if_cancelled("canceled")
        if self._total:
            self._ctx._stepped(self._done, self._total)

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)


def _total(bar: Any) -> int:
    """Return how many steps there will be, 0 where that is not known."""
    total = getattr(bar, "total", None)
    if total is None and hasattr(getattr(bar, "iterable", None), "__len__"):
        total = len(bar.iterable)
    return int(total or 0)
