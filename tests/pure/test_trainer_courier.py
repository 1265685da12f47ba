"""What a training tells its platform: all of it, in order, once, whoever dies or does not answer meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gen_worker.api.errors import ArtifactTransferError, AuthError, CanceledError, ValidationError
from gen_worker.trainer.courier import Courier, Made, News, Numbers, news_between, pause_after
from gen_worker.trainer.events import EventFile

KINDS = ("metric", "checkpoint", "sample")


class Platform:
    """Takes news, and raises what it was told to first."""

    def __init__(self, *refusals: Exception) -> None:
        self.taken: list[News] = []
        self.said: list[str] = []
        self.refusals = list(refusals)

    def take(self, news: News) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.taken.append(news)


@pytest.fixture
def events(tmp_path: Path) -> EventFile:
    return EventFile(tmp_path / "events.jsonl", "r")


@contextmanager
def courier(events: EventFile, platform: Platform) -> Iterator[Courier]:
    made = Courier(events.path, KINDS, platform.take, platform.said.append, pause_after=lambda failures: 0.001)
    try:
        yield made
    finally:
        made.close()


def measured(events: EventFile, step: int, **metrics: float) -> None:
    for name, value in metrics.items():
        events.write("metric", name=name, value=value, step=step)


def test_what_was_measured_after_a_step_is_one_piece_of_news(events: EventFile) -> None:
    events.write("started", run_id="r")
    measured(events, 1, loss=2.0, lr=0.5)
    measured(events, 2, loss=1.0)
    events.write("checkpoint", path="/c", step=2)
    measured(events, 2, loss=3.0)  # by an attempt that has begun after step 1
    end = events.path.stat().st_size
    numbers = [Numbers(1, {"loss": 2.0, "lr": 0.5}), Numbers(2, {"loss": 1.0})]
    again = Numbers(2, {"loss": 3.0})
    assert [news for news, _ in news_between(events.path, 0, end, KINDS)] == [
        *numbers,
        Made("checkpoint", 2, "/c"),
        again,
    ]
    assert [news for news, _ in news_between(events.path, 0, end, ("metric",))] == [*numbers, again]
    files = [news for news, _ in news_between(events.path, 0, end, ("checkpoint", "sample"))]
    assert files == [Made("checkpoint", 2, "/c"), None]
    for _, at in news_between(events.path, 0, end, KINDS):  # whoever goes on from there misses nothing
        assert events.path.read_bytes()[at - 1 : at] == b"\n"


def test_what_was_not_told_before_a_death_is_told_after_it(events: EventFile) -> None:
    first, second = Platform(), Platform()
    measured(events, 1, loss=1.0)
    with courier(events, first) as told:
        told.tell()
        told.wait(lambda: False)
    measured(events, 2, loss=2.0)
    with courier(events, second) as told:
        assert not told.pending
        told.tell()
        told.wait(lambda: False)
        assert not told.pending
    assert (first.taken, second.taken) == ([Numbers(1, {"loss": 1.0})], [Numbers(2, {"loss": 2.0})])


def test_of_events_that_were_begun_anew_all_is_told(events: EventFile) -> None:
    platform = Platform()
    for step in (1, 2):
        measured(events, step, **{"a_longer_name" if step == 1 else "loss": 1.0})
        with courier(events, platform) as told:
            told.tell()
            told.wait(lambda: False)
        events.path.unlink()
    assert [numbers.step for numbers in platform.taken if isinstance(numbers, Numbers)] == [1, 2]


def test_nobody_who_answers_is_waited_for_and_that_is_said_once(events: EventFile) -> None:
    platform = Platform(*[ArtifactTransferError("nobody is there", retryable=True)] * 3)
    measured(events, 1, loss=1.0)
    with courier(events, platform) as told:
        told.tell()
        told.wait(lambda: False)
    assert platform.taken == [Numbers(1, {"loss": 1.0})]
    (said,) = platform.said
    assert said == "not told: nobody is there; it is tried again until it is taken, and the training goes on"


@pytest.mark.parametrize("refusal", [ValidationError("no"), ArtifactTransferError("no"), OSError("no")])
def test_news_that_nobody_takes_holds_no_other_back(events: EventFile, refusal: Exception) -> None:
    platform = Platform(refusal)
    measured(events, 1, loss=1.0)
    measured(events, 2, loss=2.0)
    with courier(events, platform) as told:
        told.tell()
        told.wait(lambda: False)
    assert platform.taken == [Numbers(2, {"loss": 2.0})]
    assert platform.said == ["not told: no"]


def test_a_token_that_is_refused_ends_the_training_the_next_time_that_it_tells_something(events: EventFile) -> None:
    platform = Platform(AuthError("refused"))
    measured(events, 1, loss=1.0)
    with courier(events, platform) as told:
        told.tell()
        told.wait(lambda: False)
        with pytest.raises(AuthError, match="refused"):
            told.tell()
    with courier(events, platform) as told:  # with a fresh one
        told.tell()
        told.wait(lambda: False)
    assert platform.taken == [Numbers(1, {"loss": 1.0})]


def test_what_a_canceled_job_may_not_tell_any_more_is_told_by_the_next_one(events: EventFile) -> None:
    platform = Platform(CanceledError("canceled"))
    measured(events, 1, loss=1.0)
    for _ in range(2):
        with courier(events, platform) as told:
            told.tell()
            told.wait(lambda: False)
    assert platform.taken == [Numbers(1, {"loss": 1.0})]
    assert platform.said == []


def test_pauses_grow_up_to_half_a_minute() -> None:
    assert [pause_after(failures) for failures in (0, 1, 2, 6, 1000)] == [0.5, 1.0, 2.0, 30.0, 30.0]
