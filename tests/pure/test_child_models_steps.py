"""Steps of a pipeline as progress of its job."""

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import pytest

from gen_worker.api.context import CancelFlag, RequestContext
from gen_worker.api.errors import CanceledError
from gen_worker_child.models.steps import watch_steps


class Bar:
    """A progress bar as diffusers' pipelines use it."""

    def __init__(self, iterable: Any = None, total: int | None = None) -> None:
        self.iterable = iterable
        self.total = total if total is not None or iterable is None else len(iterable)
        self.seen = 0
        self.closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True

    def __iter__(self) -> Iterator[Any]:
        for each in self.iterable:
            self.seen += 1
            yield each

    def update(self, steps: int = 1) -> None:
        self.seen += steps

    def set_postfix(self, text: str) -> str:
        return text


class Pipeline:
    def __init__(self) -> None:
        self.bars: list[Bar] = []
        self.settings: dict[str, object] = {}

    def set_progress_bar_config(self, **settings: object) -> None:
        self.settings = settings

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Bar:
        self.bars.append(Bar(iterable, total))
        return self.bars[-1]

    def __call__(self, steps: int, at_step: Any = lambda step: None) -> int:
        with self.progress_bar(total=steps) as bar:
            for step in range(steps):
                at_step(step)
                bar.update()
        return steps


class Watched:
    def __init__(self) -> None:
        self.news: list[dict[str, Any]] = []
        self.cancel = CancelFlag()
        self.ctx: RequestContext | None = RequestContext(request_id="r", emitter=self.hear, cancel=self.cancel)
        self.pipeline = Pipeline()
        watch_steps(self.pipeline, lambda: self.ctx)

    def hear(self, event: dict[str, object]) -> None:
        news = event["payload"]
        assert isinstance(news, dict)
        self.news.append(news)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_each_step_is_told(watched: Watched) -> None:
    assert watched.pipeline(4) == 4
    assert watched.news == [{"progress": step / 4, "stage": f"step {step}/4"} for step in (1, 2, 3, 4)]
    assert watched.pipeline.bars[0].seen == 4
    assert watched.pipeline.bars[0].closed


def test_pipelines_that_walk_their_bar_are_told_too(watched: Watched) -> None:
    assert list(watched.pipeline.progress_bar([7, 8])) == [7, 8]
    assert [each["progress"] for each in watched.news] == [0.5, 1.0]


def test_an_author_who_tells_the_progress_is_not_talked_over(watched: Watched) -> None:
    assert watched.ctx is not None
    ctx = watched.ctx
    watched.pipeline(2, at_step=lambda step: ctx.progress(0.25, "mine") if step else None)
    assert watched.news == [{"progress": 0.5, "stage": "step 1/2"}, {"progress": 0.25, "stage": "mine"}]


def test_a_job_that_was_asked_to_end_ends_at_its_next_step(watched: Watched) -> None:
    steps = []

    def at_step(step: int) -> None:
        steps.append(step)
        if step == 1:
            watched.cancel.set()

    with pytest.raises(CanceledError):
        watched.pipeline(50, at_step=at_step)
    assert steps == [0, 1]
    assert watched.pipeline.bars[0].closed
    with pytest.raises(CanceledError):
        watched.pipeline(1)  # not even the first step, while the job is one that shall end
    watched.ctx = None
    assert watched.pipeline(3) == 3  # the pipeline is as good as before


def test_outside_of_a_job_the_pipeline_is_left_alone(watched: Watched) -> None:
    watched.ctx = None
    assert isinstance(watched.pipeline.progress_bar(total=3), Bar)
    assert watched.news == []


def test_a_pipeline_is_watched_once(watched: Watched) -> None:
    watch_steps(watched.pipeline, lambda: watched.ctx)
    watched.pipeline(1)
    assert len(watched.news) == 1


def test_everything_else_of_the_bar_is_the_bars(watched: Watched) -> None:
    assert watched.pipeline.progress_bar(total=3).set_postfix("loss") == "loss"
    assert watched.pipeline.settings == {"disable": True}


def test_what_has_no_steps_is_left_alone() -> None:
    tokenizer = object()
    watch_steps(tokenizer, lambda: None)
