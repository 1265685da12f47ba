"""Text of a model, piece by piece."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from gen_worker import iter_transformers_text_deltas


class Streamer:
    """A queue with the interface of transformers' text streamer."""

    def __init__(self, tokenizer: Any, skip_prompt: bool, timeout: float, **options: Any) -> None:
        self.texts: queue.Queue[str | None] = queue.Queue()
        self.timeout, self.options = timeout, options

    def put(self, text: str | None) -> None:
        self.texts.put(text)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        text = self.texts.get(timeout=self.timeout)
        if text is None:
            raise StopIteration
        return text


class Model:
    """Says its pieces, then ends, fails, or dies without a word."""

    def __init__(self, *pieces: str, error: Exception | None = None, last: bool = True) -> None:
        self.pieces, self.error, self.last = pieces, error, last
        self.thread: threading.Thread | None = None

    def generate(self, streamer: Streamer, **options: Any) -> None:
        self.thread = threading.current_thread()
        for piece in self.pieces:
            streamer.put(piece)
        if self.error is not None:
            raise self.error
        if self.last:
            streamer.put(None)


def deltas(model: Any, **options: Any) -> Iterator[str]:
    arguments: dict[str, Any] = {"tokenizer": object(), "generation_kwargs": {}, "timeout": 0.01} | options
    return iter_transformers_text_deltas(model=model, streamer_cls=Streamer, **arguments)


def test_empty_pieces_are_left_out() -> None:
    model = Model("Hel", "", "lo")
    assert list(deltas(model)) == ["Hel", "lo"]
    assert model.thread is not None
    assert not model.thread.is_alive()


def test_what_the_model_raises_comes_after_the_text_it_made() -> None:
    stream = deltas(Model("Hel", error=RuntimeError("boom")))
    assert next(stream) == "Hel"
    with pytest.raises(RuntimeError, match="boom"):
        next(stream)


def test_a_stream_ends_with_its_model_even_without_a_last_word() -> None:
    assert list(deltas(Model("Hel", last=False))) == ["Hel"]


def test_a_reader_who_leaves_ends_the_generation() -> None:
    class Endless(Model):
        def generate(self, streamer: Streamer, **options: Any) -> None:
            self.thread = threading.current_thread()
            while True:
                streamer.put("a")

    model = Endless()
    stream = deltas(model)
    assert next(stream) == "a"
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    assert model.thread is not None
    assert not model.thread.is_alive()


@pytest.mark.parametrize("missing", ["model", "tokenizer", "generation_kwargs"])
def test_what_is_needed_must_be_given(missing: str) -> None:
    arguments: dict[str, Any] = {"model": Model(), "tokenizer": object(), "generation_kwargs": {}} | {missing: None}
    with pytest.raises(ValueError, match=f"`{missing}=` must be given"):
        iter_transformers_text_deltas(**arguments)
