"""The author's part of a traceback."""

import traceback
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType

_NOT_THE_AUTHORS = ("gen_worker", "gen_worker_child", "importlib", "contextlib")
_ON_THE_WAY = ("concurrent", "asyncio")  # between gen-worker and async code; the author's own use stands further in


def author_stack(error: BaseException) -> list[str]:
    """Return the lines of the traceback, of its causes too, without the frames of gen-worker itself.

    Of what gen-worker raised about another exception only that other one is told, and nothing where no line is the
    author's.
    """
    inner = _inner(error)
    if inner is not error and not any(map(_has_author_frames, _causes(inner))):
        return []
    error = inner
    told = traceback.TracebackException.from_exception(error)
    _keep_author_frames(told, error)
    return "".join(told.format()).splitlines()


def briefly(stack: list[str], most: int) -> list[str]:
    """Return so many lines of a traceback at most: where it began in the author's code, and its end.

    Of several tracebacks, each the cause of the next one, the last matters most. A line `  ...` stands for what is left
    out; what follows it begins with a frame.
    """
    if len(stack) <= most:
        return stack
    began = max((at for at, line in enumerate(stack) if line.startswith("Traceback ")), default=0)
    first = stack[began : began + 3] if began < len(stack) - most + 1 else []  # its heading, and its first frame
    rest = len(stack) - most + len(first) + 1
    starts = (at for at in range(rest, len(stack)) if stack[at].startswith(("  File ", "Traceback ")))
    return [*first, "  ...", *stack[next(starts, rest) :]]


def refused_line(error: BaseException) -> str:
    """Return the author's line, as `file:line`, when what it calls of gen-worker refused it; else an empty text."""
    frames = list(traceback.walk_tb(error.__traceback__))
    raised_in = str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""
    if not isinstance(error, TypeError | ValueError) or not raised_in.startswith("gen_worker.api."):
        return ""
    authors = list(_author_frames(error.__traceback__))
    return f"{authors[-1][0].f_code.co_filename}:{authors[-1][1]}" if authors else ""


def _inner(error: BaseException) -> BaseException:
    """Return what an exception of gen-worker's own is about; of any other: itself."""
    while (
        error.__cause__ is not None
        and type(error).__module__.partition(".")[0] in _NOT_THE_AUTHORS
        and not _has_author_frames(error)
    ):
        error = error.__cause__
    return error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, and what led to it."""
    at: BaseException | None = error
    while at is not None:
        yield at
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)


def _has_author_frames(error: BaseException) -> bool:
    return any(True for _ in _author_frames(error.__traceback__))


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
    left_out: tuple[str, ...] = _NOT_THE_AUTHORS + _ON_THE_WAY
    for frame, line in traceback.walk_tb(trace):
        top = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if top not in left_out and not frame.f_code.co_filename.startswith("<frozen "):
            left_out = _NOT_THE_AUTHORS
            yield frame, line
