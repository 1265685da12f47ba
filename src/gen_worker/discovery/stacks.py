"""The author's part of a traceback."""

import traceback
from collections.abc import Iterable
from types import FrameType, TracebackType

_NOT_THE_AUTHORS = ("gen_worker", "gen_worker_child", "importlib")


def author_stack(error: BaseException) -> list[str]:
    """Return the lines of the traceback, of its causes too, without the frames of gen-worker itself."""
    told = traceback.TracebackException.from_exception(error)
    _keep_author_frames(told, error)
    return "".join(told.format()).splitlines()


def refused_line(error: BaseException) -> str:
    """Return the author's line, as `file:line`, when what it calls of gen-worker refused it; else an empty text."""
    frames = list(traceback.walk_tb(error.__traceback__))
    raised_in = str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""
    if not isinstance(error, TypeError | ValueError) or not raised_in.startswith("gen_worker.api."):
        return ""
    authors = list(_author_frames(error.__traceback__))
    return f"{authors[-1][0].f_code.co_filename}:{authors[-1][1]}" if authors else ""


def _keep_author_frames(told: traceback.TracebackException, error: BaseException) -> None:
    """Cut our frames out of what will be told; both trees have the same shape."""
    told.stack = traceback.StackSummary.extract(_author_frames(error.__traceback__))
    for told_part, part in (
        (told.__cause__, error.__cause__),
        (told.__context__, error.__context__),
        *zip(getattr(told, "exceptions", None) or (), getattr(error, "exceptions", ()), strict=False),
    ):
        if told_part is not None and part is not None:
            _keep_author_frames(told_part, part)


def _author_frames(trace: TracebackType | None) -> Iterable[tuple[FrameType, int]]:
    for frame, line in traceback.walk_tb(trace):
        top = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if top not in _NOT_THE_AUTHORS and not frame.f_code.co_filename.startswith("<frozen "):
            yield frame, line
