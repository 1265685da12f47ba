"""The text of a transformers model, piece by piece while it is made."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any


def iter_transformers_text_deltas(
    *,
    model: Any,
    tokenizer: Any,
    generation_kwargs: Mapping[str, Any],
    cancel_checker: Callable[[], bool] | None = None,
    skip_prompt: bool = True,
    timeout: float = 0.5,
    join_timeout: float = 2.0,
    streamer_cls: Any = None,
    decode_kwargs: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Run `model.generate` in a thread and return an iterator of its text, without empty pieces.

    `cancel_checker` is asked at every token and stops the generation. What `generate` raises is raised here, after the
    text that came before it. Leaving the iterator ends the generation at its next token, and waits `join_timeout`
    seconds for it.
    """
    for name, value in (("model", model), ("tokenizer", tokenizer), ("generation_kwargs", generation_kwargs)):
        if value is None:
            raise ValueError(f"`{name}=` must be given")
    make_streamer = streamer_cls or _transformers_streamer()
    streamer = make_streamer(tokenizer, skip_prompt=skip_prompt, timeout=timeout, **(decode_kwargs or {}))
    spoken = _Spoken(streamer)
    arguments = {**generation_kwargs, "streamer": spoken}
    if cancel_checker is not None:
        arguments["stopping_criteria"] = _stopping(arguments.get("stopping_criteria"), cancel_checker)
    return _pieces(_Generation(model, spoken, arguments), spoken, join_timeout)


class _LeftError(Exception):
    """Nobody reads the text any more."""


class _Spoken:
    """What `generate` says goes to a streamer until the reader has left; then saying ends the generation."""

    def __init__(self, streamer: Any) -> None:
        self.streamer = streamer
        self.left = False

    def put(self, value: Any) -> None:
        if self.left:
            raise _LeftError
        self.streamer.put(value)

    def end(self) -> None:
        end = getattr(self.streamer, "end", None)
        if end is not None:
            end()


class _Generation(threading.Thread):
    """One call of `generate`; keeps what it raised."""

    def __init__(self, model: Any, spoken: "_Spoken", arguments: dict[str, Any]) -> None:
        super().__init__(name="generate", daemon=True)
        self.model, self.spoken, self.arguments = model, spoken, arguments
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.model.generate(**self.arguments)
        except _LeftError:
            pass
        except BaseException as error:  # noqa: BLE001  raised again in the thread that reads
            self.error = error
            self.spoken.end()  # the text that it held back comes before the error


def _pieces(generation: _Generation, spoken: _Spoken, join_timeout: float) -> Iterator[str]:
    generation.start()
    texts = iter(spoken.streamer)
    try:
        while (text := _next(texts, generation)) is not None:
            if text:
                yield text
    finally:
        spoken.left = True
        generation.join(join_timeout)
    if generation.error is not None:
        raise generation.error


def _next(texts: Iterator[str], generation: _Generation) -> str | None:
    """Wait for the next text; None when there will be no more."""
    while True:
        try:
            return next(texts, None)
        except queue.Empty:  # the streamer's own time-out: not an end while the model still works
            if not generation.is_alive():
                return None


def _transformers_streamer() -> Any:
    from transformers import TextIteratorStreamer

    return TextIteratorStreamer


def _stopping(given: Any, cancel_checker: Callable[[], bool]) -> Any:
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Cancelled(StoppingCriteria):  # type: ignore[misc]
        """Ends every sequence of the batch once the job was cancelled."""

        def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
            return torch.full((input_ids.shape[0],), cancel_checker(), dtype=torch.bool, device=input_ids.device)

    return StoppingCriteriaList([*(given or []), Cancelled()])
